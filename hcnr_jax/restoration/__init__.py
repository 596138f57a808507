"""Implements `hcnr restore` and `hcnr apply`: two models and two row files in, a restored model out.

Each stage is a module; `run` calls them in this order.

| module | what it does |
|---|---|
| `inputs` | opens and checks models and rows |
| `plan` | counts kernels, neurons, memory and arithmetic |
| `load` | reads the models |
| `score_pair` | scores the neurons on both sets of rows |
| `select` | chooses the neurons to restore |
| `correct` | solves for the restored weights |
| `refine` | takes the steps of `--refine` |
| `write` | saves the folder |
"""

from hcnr_jax.restoration.run import RestoreResult, apply, restore

__all__ = ["RestoreResult", "apply", "restore"]
