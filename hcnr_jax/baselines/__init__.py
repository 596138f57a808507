"""Holds the methods that a restoration is compared with, named by one table.

`interpolate` and `sparsify` mix weights, `safe_delta` mixes them with curvature, `training_rows` and `fine_tuning`
train, and `prompting` changes the question alone. `table` names every method with the settings at which it is tried.
"""

from hcnr_jax.baselines.table import BASELINES, Baseline, Setting, label

__all__ = ["BASELINES", "Baseline", "Setting", "label"]
