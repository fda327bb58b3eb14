"""The demo's judgement: excess loss beside seed noise, and what recipe.json says. (`make demo` itself is minutes long.)"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.compose import compose
from harness.resolve import DataFacts
from sweeps.expand import expand_members

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERLAW_DEMO_OUT", str(tmp_path))
    spec = importlib.util.spec_from_file_location("demo", ROOT / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "figures").mkdir()
    return module


def table(noise=0.01, seeds=40):
    draws = noise * np.random.default_rng(0).standard_normal((2, seeds))
    same = {"tokens": 1000, "parameterization": "mup", "lr": 0.01, "tau": 0.5, "status": "done", "flops": 1e9}
    rows = [{**same, "width": w, "seed": s, "loss": 2 + x}
            for w, row in zip((16, 24), draws, strict=True) for s, x in enumerate(row)]  # fmt: skip
    return pd.DataFrame(rows)


TARGET = {"params": 1e5, "width": 64, "depth": 2, "tokens": 1e6, "tpp": 10, "flops": 5e9, "batch_size": 8,
          "parameterization": "mup"}  # fmt: skip
RECIPE = {"target": {}, "recipe": {"lr": {"value": 1e-2, "low": 1e-3, "high": 1e-1}}, "overrides": [], "notes": []}


def runs(*losses):
    roles = ["recipe", *["neighbour"] * 4]
    return [{"role": r, "lr": 0.01 * (i + 1), "tau": 0.5, "loss": x, "run_id": str(i)}
            for i, (r, x) in enumerate(zip(roles, losses, strict=True))]  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "verdict", "excess"),
    [
        ((1.5, 1.6, 1.6, 1.6, 1.6), "won", 0.0),
        ((1.505, 1.6, 1.5, 1.6, None), "within noise", 0.005),
        ((1.55, 1.6, 1.5, 1.6, 1.6), "lost", 0.05),
        ((None, 1.6, 1.5, 1.6, 1.6), "lost", None),
    ],
)
def test_verdicts(demo, losses, verdict, excess):
    judged = demo.judge(table(), RECIPE, runs(*losses), TARGET)
    assert judged["verdict"] == verdict and judged["excess_loss"] == (excess if excess is None else pytest.approx(excess))
    assert judged["seed_noise"] == pytest.approx(0.01, rel=0.3)
    written = json.loads((demo.OUT / "recipe.json").read_text())
    assert {"target", "recipe", "overrides", "runs", "seed_noise", "excess_loss", "verdict"} <= set(written)
    assert (demo.OUT / "figures" / "recipe.png").stat().st_size > 5000


def test_a_target_too_near_the_sweep_is_refused(demo):
    with pytest.raises(SystemExit, match="4x"):
        demo.judge(table(), RECIPE, runs(1, 1, 1, 1, 1), {**TARGET, "flops": 3e9})


def test_the_sweep_of_the_demo_asks_what_it_claims(demo):
    """Equal tokens, batch and tau at four widths under both parameterizations; two widths that share TPPs, LR held;
    and a target beyond it all."""
    facts = DataFacts("x", 256, 10**8)
    frame = pd.DataFrame([m.point.columns() for m in expand_members(compose(["sweep=demo"], "sweep"), facts)])
    equal = frame[(frame.tokens == 409600)]
    assert equal.groupby("parameterization").width.nunique().eq(4).all()
    assert equal.tau.round(9).nunique() == 1 and equal.batch_size.nunique() == 1
    tau = frame[~frame.tokens.isin([102400, 409600, 819200])]
    assert tau.lr.nunique() == 1 and tau.seed.nunique() == 2
    shared = tau.groupby("width").tpp.agg(lambda x: sorted(x.round(0).unique()))
    assert len(shared) == 2 and shared.iloc[0] == shared.iloc[1] and len(shared.iloc[0]) == 3
    words = ["sweep=demo_target", f"model.width={demo.TARGET['model.width']}", f"tpp={demo.TARGET['tpp']}"]
    target = expand_members(compose(words, "sweep"), facts)[0].point
    assert target.flops >= 4 * frame.flops.max() and target.shape.width > frame.width.max()
