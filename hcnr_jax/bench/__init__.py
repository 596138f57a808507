"""How fast, in how much memory, and against what: `hcnr bench`.

`shapes` and `folders` make random models, `timing` and `child` measure, `floors` counts what the arithmetic and the
bytes alone would take; one file a section (`fisher`, `compensate`, `restore`, `files`), and `run` puts them in order.
"""

from hcnr_jax.bench.run import bench

__all__ = ["bench"]
