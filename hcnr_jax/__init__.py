"""hcnr_jax: give a fine-tuned language model its "I don't know" back.

The names below are the ones most programs need; they are imported when first used, so that `import hcnr_jax` is
quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_NAMES = {
    "restore": "hcnr_jax.restoration",
    "apply": "hcnr_jax.restoration",
    "RestoreConfig": "hcnr_jax.config",
    "ApplyConfig": "hcnr_jax.config",
    "Decoder": "hcnr_jax.models",
    "ModelSpec": "hcnr_jax.models",
    "spec_from_config": "hcnr_jax.models",
    "open_checkpoint": "hcnr_jax.checkpoints",
    "load_params": "hcnr_jax.checkpoints",
    "save_new": "hcnr_jax.checkpoints",
    "save_orbax": "hcnr_jax.checkpoints",
    "load_orbax": "hcnr_jax.checkpoints",
    "restore_params": "hcnr_jax.method.one_call.run",
    "example_scores": "hcnr_jax.method.fisher",
    "BlockModel": "hcnr_jax.method.sweep.run",
    "Problem": "hcnr_jax.method.sweep.run",
    "Settings": "hcnr_jax.method.sweep.run",
    "Sweep": "hcnr_jax.method.sweep.run",
    "InputError": "hcnr_jax.errors",
    "RunError": "hcnr_jax.errors",
}

__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'hcnr_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
