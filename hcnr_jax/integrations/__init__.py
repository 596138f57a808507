"""Puts hcnr's honesty measurements into other tools: trainers of transformers and TRL, lm-eval, and Inspect.

The names are imported when first used. Importing this package imports none of these tools, and not PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {"HonestyCallback": "hcnr_jax.integrations.honesty_callback"}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'hcnr_jax.integrations' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
