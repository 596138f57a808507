"""From two folders and two row files to a restored folder. The only place that logs.

`prepare` checks and opens, `plan` counts, `batches` makes microbatches, `scoring`, `selecting` and `correcting` do the
work, `write` saves, `run` puts them in order.
"""

from hcnr_jax.restoration.run import Restored, apply, restore

__all__ = ["Restored", "apply", "restore"]
