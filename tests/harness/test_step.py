"""One step: micro-batches add up to the batch, compiled equals eager, nothing recompiles for a new point."""

import pytest
import torch

from harness import step as step_module
from harness.optimizer import Hyper
from harness.step import Step
from models import llama
from models.llama import Llama, init_weights
from models.parameterization import scales

from .helpers import point

CPU = torch.device("cpu")


def setting(*overrides):
    p = point("model.width=16", "model.head_dim=8", "model.depth=1", "model.context=16", "batch_size=6",
              "tokens=9600", "model.z_loss=1e-3", *overrides)  # fmt: skip
    tokens = torch.randint(0, 256, (6, 17), generator=torch.Generator().manual_seed(1))
    return p, tokens


def steps_of(p, tokens, compiled=False, micro_batch=6, n=3, shared_pass=None):
    model = Llama(p.shape, scales(p.shape, p.parameterization))
    init_weights(model, p.shape, p.parameterization, p.seed)
    hyper = Hyper.of(p, CPU)
    step = Step(p.shape, p.parameterization, p.precision, "cpu", compiled, shared_pass)
    w, m, v = step.place({k: t.detach() for k, t in model.named_parameters()}), step.zeros(), step.zeros()
    out = [step(w, m, v, hyper.per_step[i], hyper.fixed, tokens, micro_batch) for i in range(n)]
    return torch.stack(out), w


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_add_up(micro_batch):
    p, tokens = setting("precision=fp32")
    whole, w = steps_of(p, tokens)
    parts, v = steps_of(p, tokens, micro_batch=micro_batch)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    for k in w:
        torch.testing.assert_close(v[k], w[k], rtol=1e-3, atol=1e-4)


def test_bf16_is_near_fp32():
    p, tokens = setting("precision=fp32")
    q, _ = setting("precision=bf16")
    torch.testing.assert_close(steps_of(q, tokens)[0], steps_of(p, tokens)[0], rtol=2e-2, atol=2e-2)


def test_compiled_equals_eager_and_new_points_reuse_the_library(tmp_path, monkeypatch):
    """A new learning rate, schedule, seed, horizon, weight decay or parameterization is an input, never a recompilation."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    p, tokens = setting("precision=fp32")
    torch.testing.assert_close(steps_of(p, tokens, True)[0], steps_of(p, tokens)[0], rtol=1e-4, atol=1e-5)
    (library,) = (tmp_path / "steps").iterdir()
    made = library.stat().st_ino
    for change in ("optimizer.lr=0.02", "schedule=cosine", "seed=3", "tokens=19200", "optimizer.weight_decay=0.3",
                   "parameterization=mup", "parameterization=completep", "optimizer.beta2=0.99"):  # fmt: skip
        monkeypatch.setattr(step_module, "_FUNCTIONS", {})  # asked for on disk again
        q, _ = setting("precision=fp32", "parameterization.base_width=8", change)
        compiled, eager = steps_of(q, tokens, True)[0], steps_of(q, tokens)[0]
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    assert [path.stat().st_ino for path in (tmp_path / "steps").iterdir()] == [made]


def test_a_shared_pass_serves_all_batches_that_it_divides_with_one_library(tmp_path, monkeypatch):
    """Its own size too; and a large vocabulary by chunks, compiled, is the plain loss."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    p, tokens = setting("precision=fp32")
    batches = tokens, tokens[:4], tokens[:2]
    plain = [steps_of(p, part) for part in batches]
    monkeypatch.setattr(llama, "WHOLE_LOGITS", 0)
    monkeypatch.setattr("models.loss.CHUNK", 256 * 20)  # of the 32 tokens of a pass
    libraries = []
    for part, (whole, w) in zip(batches, plain, strict=True):
        monkeypatch.setattr(step_module, "_FUNCTIONS", {})
        shared, v = steps_of(p, part, compiled=True, shared_pass=2)
        torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-5)
        for k in w:
            torch.testing.assert_close(v[k], w[k], rtol=1e-3, atol=1e-4)
        libraries.append({path.name for path in (tmp_path / "steps").iterdir()})
    assert len(libraries[0]) == 2 and libraries[0] == libraries[1] == libraries[2]  # gradients, update


def test_evaluation_is_the_mean_over_all_tokens():
    p, tokens = setting("precision=fp32", "model.z_loss=0")
    step = Step(p.shape, p.parameterization, p.precision, "cpu", False)
    model = Llama(p.shape, scales(p.shape, p.parameterization))
    w = step.place({k: t.detach() for k, t in model.named_parameters()})
    with torch.no_grad():
        expected = float(model.loss(tokens)[0])
    assert step.evaluate(w, tokens, 4) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_large_vocabularys_loss_by_chunks_is_the_same_step(monkeypatch, tied):
    p, tokens = setting("precision=fp32", f"model.tied={tied}")
    whole, w = steps_of(p, tokens)
    monkeypatch.setattr(llama, "WHOLE_LOGITS", 0)
    monkeypatch.setattr("models.loss.CHUNK", 256 * 40)  # of the 96 tokens of a batch
    parts, v = steps_of(p, tokens)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    for k in w:
        torch.testing.assert_close(v[k], w[k], rtol=1e-3, atol=1e-5)
