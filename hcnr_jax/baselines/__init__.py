"""The simple alternatives, from one table: each is a small pure function, or the pipeline at an extreme of its options.

`interpolate` and `sparsify` mix weights, `safe_delta` mixes them with curvature, `data` and `fit` train, `prompting`
changes the question alone; `table` names them all with the settings each is tried at.
"""

from hcnr_jax.baselines.table import BASELINES, Baseline, Setting, label

__all__ = ["BASELINES", "Baseline", "Setting", "label"]
