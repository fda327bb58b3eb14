"""benchmarks/gpu.py without a GPU: it says so and writes nothing; on a CPU it tries all but compiling and graphs."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.stacked import join, split, stacked_step
from harness.flat import group_index, layout
from harness.step import _whole_step, skeleton
from models.count import count_params
from models.llama import multipliers
from models.parameterization import Parameterization, scales


def test_without_a_gpu_it_says_so_and_leaves_the_figures_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu.gpu_names.cache_clear()
    try:
        (tmp_path / "gpu.json").write_text("as it was")
        assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    finally:
        gpu.gpu_names.cache_clear()
    said = capsys.readouterr()
    assert "no GPU here" in said.err and said.err.count("\n") == 1 and not said.out
    assert (tmp_path / "gpu.json").read_text() == "as it was"


def test_its_way_is_gone_on_a_cpu(tmp_path):
    assert gpu.main(["--device", "cpu", "--quick", "--limit", "3000", "--json", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["ratios"]) == {"gpu_tiny_vs_eager", "gpu_tiny_share", "gpu_tiny_share_causal"}
    rates = found["sizes"]["tiny"]["tokens_per_second"]
    assert set(rates) == {*gpu.WAYS, *gpu.PACKED} and all(len(r) == 2 and min(r) > 0 for r in rates.values())
    assert found["peak_is"] == "measured matrix products" and found["mps"] is False


@pytest.mark.parametrize("size, params", zip(gpu.SIZES, (1e6, 5e6, 25e6, 100e6, 350e6, 1e9), strict=True))
def test_sizes_are_what_they_are_called(size, params):
    assert count_params(size.shape).params == pytest.approx(params, rel=0.1)
    full, causal = gpu.shares(size, 1e6, 989e12)
    assert full * 989e6 == pytest.approx(6 * size.params + 12 * size.depth * size.width * size.context)
    assert full - causal == pytest.approx(6e6 * size.depth * size.width * size.context / 989e12)


def test_it_ends_at_its_limit_with_what_it_has(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--limit", "0.01", "--json", str(tmp_path / "gpu.json")]) == 1
    assert "tiny: not before the limit" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_points_on_a_leading_axis_train_as_each_alone():
    shape, points = gpu.TINY[0].shape, 3
    p, how = Parameterization.build("standard", shape.width, shape.depth), layout(shape)
    draw = torch.Generator().manual_seed(0)
    w = 0.2 * torch.randn(points, how.length, generator=draw)
    w = join(how, split(how, w))  # zeros in the gaps
    m, v, index = torch.zeros_like(w), torch.zeros_like(w), group_index(shape, p)
    n, group = max(index.values()) + 1, how.groups(index)
    rows = torch.tensor([[lr] * n + [1e-3] * n + [1.5, 1.5] for lr in (1e-3, 2e-3, 0.0)])
    fixed, scaling = torch.tensor([1e-8] * n + [0.9, 0.95, 0.5]), multipliers(scales(shape, p))
    tokens = torch.randint(shape.vocab, (points, 4, shape.context + 1), generator=draw)
    alone = [[t[k].clone() for t in (w, m, v)] for k in range(points)]
    model, step = skeleton(shape, "cpu"), stacked_step(shape, how, "cpu", "fp32")
    for _ in range(2):
        said = step(w, m, v, group, rows, fixed, scaling, tokens)
        for k in range(points):
            own = _whole_step(model, how, "cpu", "fp32", *alone[k], group, rows[k], fixed, scaling, tokens[k])
            torch.testing.assert_close(said[k], own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(w, torch.stack([state[0] for state in alone]), rtol=0, atol=1e-5)
