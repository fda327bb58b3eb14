"""`hyperlaw check coordinates`: the coordinate check of the model and parameterization that a command line describes."""

from __future__ import annotations

from harness.compose import Request
from harness.errors import UserError
from harness.places import DataBook, cache_dir, out_dir
from harness.resolve import resolve_parameterization, resolve_shape

WIDTHS = (1, 2, 4, 8)  # multiples of the base width
STEPS, SEQUENCES = 5, 4


def check_coordinates(request: Request) -> tuple[str, bool]:
    """(text for the terminal with the figure's path, whether every slope is flat). Trains a few steps at base width times
    1, 2, 4, 8 (or the axis model.width=..., model.depth=...) on one batch of the data. Raises UserError."""
    from pathlib import Path

    from harness.coordinates import check, figure, slopes, verdict
    from harness.data import Stream, open_corpus

    config = request.config
    book = DataBook(cache_dir(config), prepare=True)
    facts = book(config.data)
    stream = Stream(open_corpus(Path(book.corpora[facts.fingerprint])), config.model.context, config.seed)
    p = resolve_parameterization(config)
    shapes = [resolve_shape(request.with_values(values), facts.vocab) for values in _sizes(request, p)]
    if len({(s.width, s.depth) for s in shapes}) < 2:
        raise UserError("a coordinate check needs two widths or depths: model.width=64,128,256.")
    table = check(shapes, p, config.optimizer.lr, STEPS, config.seed, stream.batch(0, SEQUENCES))
    found = slopes(table)
    path = out_dir(config, "check") / f"coordinates_{p.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure(table, path, title=p.name)
    lines = [found.to_string(index=False, float_format=lambda x: f"{x:+.2f}"), f"{p.name}: {verdict(found)}"]
    return "\n".join([*lines, f"figure in {path}"]), bool(found["ok"].all())


def _sizes(request: Request, p) -> list[dict[str, int]]:
    """Axis values of each shape: the lists of the command line, else base width times 1, 2, 4, 8."""
    axes = {key: [request.typed(key, v) for v in values] for key, values in request.axes.items()}
    if unknown := set(axes) - {"model.width", "model.depth"}:
        raise UserError(f"{min(unknown)}: a coordinate check moves model.width or model.depth only.")
    if len(axes) > 1:
        raise UserError("a coordinate check moves model.width or model.depth, one at a time.")
    key, values = next(iter(axes.items()), ("model.width", [p.base_width * k for k in WIDTHS]))
    return [{key: value} for value in values]
