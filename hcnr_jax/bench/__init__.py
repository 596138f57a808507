"""Measures speed and memory against other programs, for `hcnr bench`.

`model_shapes` and `random_models` make random models, `timing` and `timed_restoration` measure, and `roofline` counts
the floor. `sections` has one file a section, `measurement` its input and output, and `run` runs the sections in order.
"""

from hcnr_jax.bench.run import bench

__all__ = ["bench"]
