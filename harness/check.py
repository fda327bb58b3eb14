"""`hyperlaw check coordinates`: the coordinate check of the model and parameterization that a command line describes."""

from __future__ import annotations

from dataclasses import replace

from harness.compose import Request
from harness.errors import UserError
from harness.places import DataBook, cache_dir, out_dir
from harness.resolve import DataFacts, resolve, resolve_parameterization
from models.parameterization import Parameterization
from models.shape import LlamaShape

WIDTHS = (1, 2, 4, 8)  # multiples of the base width
STEPS, SEQUENCES = 5, 4


def check_coordinates(request: Request) -> tuple[str, bool]:
    """(text for the terminal with the figure's path, whether every slope is flat). Trains a few steps at base width times
    1, 2, 4, 8 (or the axis model.width=..., model.depth=...) on one batch of the data. Raises UserError."""
    from pathlib import Path

    from harness.coordinates import check, figure, slopes, verdict
    from harness.data import Stream, open_corpus

    config = request.config
    if config.device not in ("auto", "cpu"):
        raise UserError(f"device={config.device}: a coordinate check runs on the CPU; drop device.")
    path = out_dir(config, "check") / f"coordinates_{config.parameterization.name}.png"
    # Everything but the data is checked on provisional facts first, so that a wrong request prepares nothing.
    shapes, p = _shapes(request, DataBook(cache_dir(config), prepare=False)(config.data))
    book = DataBook(cache_dir(config), prepare=True)
    facts = book(config.data)
    stream = Stream(open_corpus(Path(book.corpora[facts.fingerprint])), config.model.context, config.seed)
    table = check(shapes, p, config.optimizer.lr, STEPS, config.seed, stream.batch(0, SEQUENCES))
    found = slopes(table)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure(table, path, title=p.name)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}; choose another out=DIR.") from None
    lines = [found.to_string(index=False, float_format=lambda x: f"{x:+.2f}"), f"{p.name}: {verdict(found)}"]
    return "\n".join([*lines, f"figure in {path}"]), bool(found["ok"].all())


def _shapes(request: Request, facts: DataFacts) -> tuple[list[LlamaShape], Parameterization]:
    """Two shapes or more, and their parameterization. Raises UserError for whatever no point could be made of."""
    config = request.config
    points = [resolve(request.with_values(values), replace(facts, train_tokens=None))
              for values in _sizes(request, resolve_parameterization(config))]  # fmt: skip
    if len({(p.shape.width, p.shape.depth) for p in points}) < 2:
        raise UserError("a coordinate check needs two widths or depths: model.width=64,128,256.")
    return [p.shape for p in points], points[0].parameterization


def _sizes(request: Request, p: Parameterization) -> list[dict[str, int]]:
    """Axis values of each shape: the lists of the command line, else base width times 1, 2, 4, 8."""
    if ranges := [f"{key}={raw}" for key, raw in request.axes.items() if isinstance(raw, str)]:
        raise UserError(f"{ranges[0]}: a coordinate check takes a list, model.width=64,128,256.")
    axes = {key: [request.typed(key, v) for v in values] for key, values in request.axes.items()}
    if not axes and "model.width" in request.command_given:
        raise UserError("model.width is one width; a coordinate check needs two or more: model.width=64,128,256.")
    if unknown := set(axes) - {"model.width", "model.depth"}:
        raise UserError(f"{min(unknown)}: a coordinate check moves model.width or model.depth only.")
    if len(axes) > 1:
        raise UserError("a coordinate check moves model.width or model.depth, one at a time.")
    key, values = next(iter(axes.items()), ("model.width", [p.base_width * k for k in WIDTHS]))
    return [{key: value} for value in values]
