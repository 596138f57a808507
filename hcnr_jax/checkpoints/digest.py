"""Computes sha256 of files and tensors in threads; hashlib releases the interpreter lock while hashing."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.errors import InputError

_THREADS = min(os.cpu_count() or 1, 8)


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes, which are read in pieces.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256_files(paths: Iterable[Path]) -> dict[str, str]:
    """Return a map from file name to sha256, for files with different names, such as a checkpoint's shards."""
    listed = list(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip((path.name for path in listed), pool.map(sha256_file, listed), strict=True))


def tensor_digest(tensor: np.ndarray) -> str:
    """Return the hexadecimal sha256 of a tensor's bytes in row-major order; dtype and shape do not enter the hash."""
    return hashlib.sha256(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data).hexdigest()


def tensor_digests(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return a map from tensor name to sha256 of the tensor's bytes, for `names` in their order, or all tensors."""
    chosen = list(checkpoint.tensors if names is None else names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(chosen, pool.map(lambda name: tensor_digest(checkpoint.read(name)), chosen), strict=True))


def model_digest(tensors: Mapping[str, str]) -> str:
    """Return one sha256 over a model's tensor digests, which does not depend on their order or on the sharding.

    `tensors` maps tensor name to sha256, as `tensor_digests` returns.
    """
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
