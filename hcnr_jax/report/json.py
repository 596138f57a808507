"""Converts records to strict JSON, and names the versions that a result depends on."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

PACKAGES = (
    "hcnr_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "transformers",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Name the versions of Python and of the packages a result depends on, and the device it ran on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {"python": platform.python_version(), **found, "device": f"{device.platform}: {device.device_kind}"}


def dependency_versions() -> dict[str, str]:
    """Name what `versions` does, without this package: caches and records carry a format number of their own."""
    return {name: version for name, version in versions().items() if name != "hcnr_jax"}


def plain(value: Any) -> Any:
    """Convert a value to strict JSON: arrays to numbers or lists, NaN and Inf to null, unknown values to text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def to_json(record: Mapping[str, Any]) -> bytes:
    """Encode a record as indented, strict JSON in UTF-8."""
    return (json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
