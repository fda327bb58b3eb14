"""Runs that other trackers recorded, as canonical tables: nothing is lost silently, what is guessed is said.

    from analysis.foreign import read_export, read_wandb
    table = read_wandb("wandb")                                       # offline run files
    table = read_export("export.csv", {"loss": "eval/c4/loss"})       # a CSV export of anyone's
    print(*table.attrs["listed"], sep="\\n")                           # what became of each column
"""

from analysis.foreign.export import read_export
from analysis.foreign.wandb_runs import read_wandb, read_wandb_curves

__all__ = ["read_export", "read_wandb", "read_wandb_curves"]
