"""What `hyperlaw fit` and `hyperlaw recommend` do with the words of their command line; the same in two lines of Python.

    fitted = fit({"analysis": "lr", "runs": "out/demo/runs"})
    save(fitted, Path("out/demo/laws"))
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import laws_io, report
from analysis.curves.read import read_curves
from analysis.errors import UserError, nearest
from analysis.fit import fit as fit_laws
from analysis.foreign import read_export, read_wandb, read_wandb_curves
from analysis.recommend import recommend as recommend_from
from analysis.request import options
from analysis.result import FitResult
from analysis.table import read_runs, read_table

SOURCES = ("table", "runs", "csv", "wandb")
COLUMN_OF = {"model.width": "width", "model.depth": "depth", "model.context": "context", "optimizer.lr": "lr",
             "optimizer.weight_decay": "weight_decay"}  # fmt: skip
SHAPE = ("vocab", "context", "tied", "head_dim", "qk_norm")  # of `given`: what a count of parameters needs


def read(given: Mapping[str, Any]) -> pd.DataFrame:
    """The table that one of SOURCES names. Raises UserError where none or several are given."""
    sources = [name for name in SOURCES if given.get(name) is not None]
    if len(sources) != 1:
        raise UserError("give one of table=FILE (csv, parquet), runs=DIR (a folder of runs), csv=FILE (a tracker's export) "
                        "and wandb=DIR (offline runs).")  # fmt: skip
    (name,) = sources
    if name == "runs":
        return read_runs(given[name])
    reader = {"table": read_table, "csv": read_export, "wandb": read_wandb}[name]
    return reader(given[name], given.get("columns"))


def table(given: Mapping[str, Any]) -> pd.DataFrame:
    """The canonical table by the words of `hyperlaw table`: one of SOURCES, and columns. Names of a foreign table are
    mapped; what became of them stands in `attrs["listed"]`."""
    known = (*SOURCES, "columns")
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"{unknown[0]}= is nothing that table takes{nearest(unknown[0], known)}")
    if given.get("runs") is not None and given.get("columns"):
        raise UserError("columns.CANONICAL=THEIRS maps a foreign table (csv=, table=, wandb=); our runs need none.")
    given = {("csv" if key == "table" else key): value for key, value in given.items()} if "csv" not in given else given
    return read(given)


def fit(given: Mapping[str, Any]) -> FitResult:
    """Laws by the words of `hyperlaw fit`: analysis, table or runs, and the analysis' own keys."""
    given = dict(given)
    source = {key: given.pop(key, None) for key in SOURCES}
    given.pop("out", None)
    name = given.pop("analysis", None)
    chosen = options(name, given)
    table = _curves(source) if str(name) == "curves" else None
    return fit_laws(read({**source, "columns": chosen.get("columns")}) if table is None else table, str(name), chosen)


def _curves(source: Mapping[str, Any]) -> pd.DataFrame | None:
    """The long table of what was logged along training, of sources that hold it (runs, wandb); None of others."""
    given = {name: path for name, path in source.items() if path is not None}
    if set(given) == {"runs"}:
        return read_curves(given["runs"])
    return read_wandb_curves(given["wandb"]) if set(given) == {"wandb"} else None


def save(fitted: FitResult, out: str | os.PathLike, figures: str | os.PathLike | None = None) -> list[Path]:
    """laws.json (entries of other analyses kept) in `out`, figures there or in `figures`; returns the files. Raises
    UserError where they cannot be written."""
    from analysis import plots

    out = Path(out)
    figures = Path(figures or out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures.mkdir(parents=True, exist_ok=True)
        files = [laws_io.write(out, fitted.analysis, fitted.laws, fitted.optima)]
        for name in dict.fromkeys(optimum["target"] for optimum in fitted.optima):
            slices = [s for s in fitted.slices if s["optimum"]["target"] == name]
            prefix = f"{fitted.analysis}_{name}" if fitted.analysis != name else name
            if slices:
                files.append(figures / f"{prefix}_slices.png")
                plots.losses(files[-1], slices, name)
            if any(law["name"] == name for law in fitted.laws):
                files.append(figures / f"{prefix}_law.png")
                plots.laws_against_scale(files[-1], fitted.laws, fitted.optima, name)
        for name, draw in fitted.figures.items():
            files.append(figures / f"{name}.png")
            draw(files[-1])
    except OSError as e:
        raise UserError(f"cannot write {e.filename or out}: {e.strerror or e}; choose another out=DIR.") from None
    return files


def as_json(fitted: FitResult) -> dict:
    return report.as_json(fitted.laws, fitted.optima, fitted.notes, fitted.tables)


def as_text(fitted: FitResult) -> str:
    return report.as_text(fitted.laws, fitted.optima, fitted.notes, fitted.tables)


def recommend(given: Mapping[str, Any], count: Callable[[int, int, dict], int] | None = None) -> dict:
    """A Recipe by the words of `hyperlaw recommend`: laws=DIR (or published=NAMES) and the target; out=DIR takes it as
    recipe.json, with the figure of time against compute. count(width, depth, shape) counts the parameters of a model of
    the laws' kind."""
    given = dict(given)
    laws, published, out = (given.pop(key, None) for key in ("laws", "published", "out"))
    if laws is None and published is None:
        raise UserError(
            "recommend needs laws=DIR, where `hyperlaw fit ... out=DIR` has written laws.json (or published=NAME)."
        )
    content = {"laws": [], "optima": []} if laws is None else laws_io.read(laws)
    target = {COLUMN_OF.get(key, key): value for key, value in given.items()}
    shape = next(({k: law["given"][k] for k in SHAPE if k in law["given"]} for law in content["laws"]
                  if {"vocab", "context"} <= set(law.get("given") or {})), None)  # fmt: skip
    counted = None
    if count and shape:
        shape = {k: bool(v) if k in ("tied", "qk_norm") else int(v) for k, v in shape.items()}

        def counted(width: int, depth: int) -> int:
            return count(width, depth, shape)

    recipe = recommend_from(content, target, count=counted, published=published)
    return recipe if out is None else {**recipe, "files": [str(file) for file in save_recipe(recipe, out)]}


def save_recipe(recipe: Mapping[str, Any], out: str | os.PathLike) -> list[Path]:
    """recipe.json and, where there is one, the figure of time against compute, in `out`; returns the files. Raises
    UserError where they cannot be written."""
    from analysis.recommend import plot_pareto

    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "recipe.json"]
        laws_io.write_atomic(files[0], (json.dumps(recipe, indent=1, allow_nan=False) + "\n").encode())
        if recipe.get("pareto"):
            files.append(out / "pareto.png")
            plot_pareto.pareto(files[-1], recipe["pareto"])
    except OSError as e:
        raise UserError(f"cannot write {e.filename or out}: {e.strerror or e}; choose another out=DIR.") from None
    return files
