"""Coordinate check: do activations change by the same amount per step at every width (depth)?

The test of a parameterization that needs no tuning (Yang et al., 2203.03466, App. D.1; for depth Dey et al.,
2505.01618): train models of growing width for a few steps at one base learning rate on one batch. Under a correct
table the RMS change of every activation since initialisation, and its RMS at initialisation, tend to constants; a
missing multiplier makes some layer's grow or vanish as a power of width, and the slope on log axes shows which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call

from harness.errors import UserError
from harness.files import write_atomic
from harness.optimizer import Hyper
from harness.point import DataSpec, OptimizerSpec, Point, ScheduleSpec, ValidationSpec
from harness.step import Step
from models.llama import Llama, init_weights
from models.parameterization import Parameterization, scales
from models.shape import LlamaShape

TOLERANCE = 0.3  # largest |slope| that passes; a wrong multiplier of width gives 0.5 or 1
# What is random at initialisation adds up as a square root and fades as (layer, axis) grow until learning outweighs it:
# logits of a random head are m * m^-1/2 / m, what a head learned from states unlike this one (noise, Markov text) adds
# to its logits likewise, and the stream of L random branches times 1/L is L^1/2 / L.
FADING = {("logits", "width"): 0.5, ("head", "width"): 0.5, ("residual", "depth"): 0.5}


def check(
    shapes: Sequence[LlamaShape], parameterization: Parameterization, lr: float, steps: int, seed: int,
    tokens: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """Train each shape `steps` AdamW steps at constant base `lr` on one batch, with the harness's own step in fp32.

    tokens: int64 (B, T+1), T <= context, below the vocabulary; text rather than noise, whose hidden states are so
    unlike each other that no width here is wide. Returns one row per (shape, layer, step): width, depth, layer, step,
    rms (of the activation), change (RMS of activation minus that at step 0), loss (of the step, nats).
    Layers: `embedding` (times its multiplier), `I.attention` and `I.ffn` of block I, `residual` (stream after the last
    block), `head` (what the head's own change adds to the logits), `logits`.
    Raises UserError unless the shapes are at least two that differ in width only, or in depth only.
    """
    _axis([(s.width, s.depth) for s in shapes])
    if steps < 1:
        raise UserError("a coordinate check needs at least one step")
    tokens = torch.as_tensor(np.array(tokens), dtype=torch.int64)
    for s in shapes:
        if tokens.shape[1] > s.context + 1 or int(tokens.max()) >= s.vocab:
            raise UserError(f"tokens of shape {tuple(tokens.shape)} do not fit context {s.context}, vocab {s.vocab}")
    return pd.DataFrame([row for s in shapes for row in _train(_point(s, parameterization, lr, steps, seed), tokens)])


def slopes(table: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Slope of log rms at step 0 (`initial`) and of log change after the last step (`change`) against log of what
    varies, for every layer that all shapes have. Columns: layer, quantity, axis, slope, ok: |slope| <= tolerance, or
    down to -1/2 - tolerance where `FADING` says."""
    axis = _axis(list(table[["width", "depth"]].drop_duplicates().itertuples(index=False, name=None)))
    sizes, rows = table[axis].nunique(), []
    for layer, part in table.groupby("layer", sort=False):
        if part[axis].nunique() < sizes:
            continue  # a block that the shallow models lack
        quantities = (("initial", 0, "rms"), ("change", part.step.max(), "change"))
        for quantity, step, column in quantities[layer == "head" :]:  # the head's change is nothing at first
            at = part[part.step == step]
            slope = _slope(at[axis].to_numpy(), at[column].to_numpy())
            ok = -tolerance - FADING.get((layer, axis), 0) <= slope <= tolerance
            rows.append({"layer": layer, "quantity": quantity, "axis": axis, "slope": slope, "ok": bool(ok)})
    return pd.DataFrame(rows)


def verdict(slopes: pd.DataFrame) -> str:
    """One line: which layers keep their scale, or which do not and by what power."""
    wrong = slopes[~slopes.ok]
    axis = slopes["axis"].iloc[0]
    if wrong.empty:
        fading = [layer for layer, over in FADING if over == axis]
        judged = slopes[(slopes.quantity == "change") & ~slopes.layer.isin(fading)]
        worst = judged.loc[judged.slope.abs().idxmax()]
        return f"passed: no activation's change depends on {axis} (steepest: {worst.layer} ~ {axis}^{worst.slope:+.2f})"
    parts = [f"{r.layer} {r.quantity} ~ {axis}^{r.slope:+.2f}" for r in wrong.itertuples()]
    return f"failed: {', '.join(parts)}"


def figure(table: pd.DataFrame, path: Path | str, title: str = "") -> None:
    """One panel per layer: RMS change against width (depth), a line per step, both axes logarithmic; the RMS at
    initialisation dashed; slopes that do not pass in red. Of the blocks the first and the last that all shapes share.
    Written whole to `path` (png, pdf or svg by its suffix)."""
    summary = slopes(table)
    axis, layers = summary["axis"].iloc[0], _shown(list(summary.layer.unique()))
    steps = [s for s in sorted(table.step.unique()) if s > 0]
    shades = colormaps["viridis"](np.linspace(0.9, 0.1, len(steps)))
    columns = -(-len(layers) // 2)
    fig = Figure(figsize=(2.7 * columns + 1.2, 5.6), layout="constrained")
    panels = fig.subplots(2, columns, sharex=True, sharey=True, squeeze=False).flat
    for ax, layer in zip(panels, layers, strict=False):
        part = table[table.layer == layer].sort_values(axis)
        initial = part[part.step == 0]
        ax.plot(initial[axis], initial.rms.where(initial.rms > 0), "--", color="0.6", label="RMS at step 0")
        for step, shade in zip(steps, shades, strict=True):
            at = part[part.step == step]
            ax.plot(at[axis], at.change, "o-", ms=3, color=shade, label=f"change, step {step}")
        row = summary[(summary.layer == layer) & (summary.quantity == "change")].iloc[0]
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(initial[axis], [str(n) for n in initial[axis]])
        ax.set_title(f"{layer}: slope {row.slope:+.2f}", fontsize=9, color="black" if row.ok else "tab:red")
        ax.grid(alpha=0.3)
    for ax in panels[len(layers) :]:
        ax.axis("off")
    fig.supxlabel(axis, fontsize=10)
    fig.supylabel("RMS of the activation's change", fontsize=10)
    fig.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    fig.suptitle(f"{title}: {verdict(summary).split(':')[0]}".removeprefix(": "), fontsize=10)
    buffer, path = BytesIO(), Path(path)
    fig.savefig(buffer, dpi=150, format=path.suffix[1:] or "png")
    write_atomic(path, buffer.getvalue())


def _axis(shapes: list[tuple[int, int]]) -> str:
    """"width" or "depth", whichever varies in (width, depth) pairs."""
    widths, depths = ({pair[i] for pair in shapes} for i in (0, 1))
    if (len(widths) > 1) == (len(depths) > 1) or len(widths) * len(depths) != len(shapes):
        raise UserError("a coordinate check needs two or more shapes that differ in width only, or in depth only")
    return "width" if len(widths) > 1 else "depth"


def _slope(size: np.ndarray, value: np.ndarray) -> float:
    """Exponent of value ~ size^slope; infinite where a value is zero, not finite, or absent."""
    if not (np.isfinite(value) & (value > 0)).all():
        return float("inf")
    return float(np.polyfit(np.log(size), np.log(value), 1)[0])


def _shown(layers: list[str]) -> list[str]:
    blocks = [int(name.split(".")[0]) for name in layers if "." in name]
    kept = {min(blocks), max(blocks)}
    return [name for name in layers if "." not in name or int(name.split(".")[0]) in kept]


def _point(shape: LlamaShape, p: Parameterization, lr: float, steps: int, seed: int) -> Point:
    """What `Hyper` and `Step` need of a training run: plain Adam at a constant learning rate, without clipping, which
    would hide a layer whose gradient explodes."""
    return Point(
        shape=shape,
        parameterization=p,
        optimizer=OptimizerSpec("adamw", lr, 0.0, "coupled", 0.9, 0.95, 1e-8, 0.0),
        schedule=ScheduleSpec("constant", 0, 0, "", 0.0),
        data=DataSpec("batch", "", "", seed, None),
        validation=ValidationSpec(1, ()),
        batch_size=1,
        steps=steps,
        seed=seed,
        precision="fp32",
    )


def _train(point: Point, tokens: Tensor) -> Iterator[dict]:
    shape, p = point.shape, point.parameterization
    model = Llama(shape, scales(shape, p))
    init_weights(model, shape, p, point.seed)
    step = Step(shape, p, point.precision, "cpu", compiled=False)
    weights = step.place({name: w.detach() for name, w in model.named_parameters()})
    m, v = step.zeros(), step.zeros()
    hyper = Hyper.of(point, torch.device("cpu"))
    head = "embedding.weight" if shape.tied else "head.weight"
    first_head, start, loss = weights[head].clone(), {}, float("nan")
    for t in range(point.steps + 1):
        now = _activations(model, weights, tokens[:, :-1])
        start = start or now
        for layer, x in now.items():
            if layer == "norm":  # what the head's own change adds to the logits
                layer, x, before = "head", model.multipliers[3] * x @ (weights[head] - first_head).T, 0
            else:
                before = start[layer]
            yield {"width": shape.width, "depth": shape.depth, "layer": layer, "step": t, "rms": _rms(x),
                   "change": _rms(x - before), "loss": loss}  # fmt: skip
        if t < point.steps:
            loss = float(step(weights, m, v, hyper.per_step[t], hyper.fixed, tokens, tokens.shape[0])[0])


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@torch.no_grad()
def _activations(model: Llama, weights: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """Outputs by layer, in the order of the forward pass; `norm` is the head's input."""
    seen: dict[str, Tensor] = {}
    modules = {f"{i}.{part}": getattr(block, part) for i, block in enumerate(model.blocks)
               for part in ("attention", "ffn")}  # fmt: skip
    modules |= {"residual": model.blocks[-1], "norm": model.norm}
    handles = [module.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
               for name, module in modules.items()]  # fmt: skip
    handles.append(model.blocks[0].register_forward_pre_hook(lambda _m, args: seen.update(embedding=args[0])))
    try:
        logits = functional_call(model, weights, (tokens,))
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen[name] for name in ("embedding", *modules)} | {"logits": logits}
