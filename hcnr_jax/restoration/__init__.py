"""`hcnr restore` and `hcnr apply`, from two folders and two row files to a restored folder.

Each stage is a module: `inputs` opens and checks, `plan` counts, `load` reads the models, `score_pair` scores,
`select` chooses neurons, `correct` solves, `refine` takes the last step, `write` saves. `run` calls them in order.
"""

from hcnr_jax.restoration.run import RestoreResult, apply, restore

__all__ = ["RestoreResult", "apply", "restore"]
