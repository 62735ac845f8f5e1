"""The simulated world: seeded logs of impressions, clicks and conversions with known truth.

Written as a feature job finds real logs, day by day in Parquet, with user and item tables; the
true probabilities lie beside the logs, so the best possible AUC is known.
"""

from recsys.world.simulate_logs import simulate
from recsys.world.truth import best_auc, best_auc_of, read_truth

__all__ = ["best_auc", "best_auc_of", "read_truth", "simulate"]
