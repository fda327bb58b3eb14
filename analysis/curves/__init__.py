"""Loss along training: curve laws across LR schedules, the schedule of lowest predicted loss, collapse.

    fit(table, "curves", {"fit_runs": [...]})       analysis/curves/fit.py
    read_curves(runs_dir)                           long table of all runs
    curves(table)                                   [Curve], notes
    loss_along(law, steps, lr)                      what a LAW predicts for a schedule
    collapse(curves, groups), predict_final(curve, references, fraction)
"""

from analysis.curves.law import loss_along
from analysis.curves.normalised import collapse, predict_final
from analysis.curves.read import Curve, curves, read_curves

__all__ = ["Curve", "collapse", "curves", "loss_along", "predict_final", "read_curves"]
