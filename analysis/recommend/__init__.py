"""From laws to the hyper-parameters of a run that nobody has tuned: `recommend(laws, target) -> Recipe`."""

from analysis.recommend.recommend import as_table, recommend

__all__ = ["as_table", "recommend"]
