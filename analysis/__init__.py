"""Laws from tables of runs, for a notebook: DataFrames and plain dicts in and out.

    from analysis import fit, read_runs, recommend, save
    fitted = fit(read_runs("out/demo/runs"), "lr")
    save(fitted, "out/laws")
    recipe = recommend("out/laws", {"width": 256, "depth": 4, "tokens": 1e8})
"""

from analysis.errors import UserError
from analysis.fit import fit
from analysis.foreign import read_export, read_wandb
from analysis.options import Options
from analysis.recommend import as_table, recommend
from analysis.report import as_text
from analysis.result import FitResult
from analysis.table import read_runs, read_table, write_table

# After the functions that share a submodule's name, so that `analysis.fit` is the function.
from analysis.command import save  # isort: skip

__all__ = ["FitResult", "Options", "UserError", "as_table", "as_text", "fit", "read_export", "read_runs", "read_table",
           "read_wandb", "recommend", "save", "write_table"]  # fmt: skip
