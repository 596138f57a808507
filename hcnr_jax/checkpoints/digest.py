"""sha256 of files and tensors, several at a time (hashlib lets go of the interpreter lock while it works)."""

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
    """Hexadecimal sha256 of a file's bytes, read in pieces."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256_files(paths: Iterable[Path]) -> dict[str, str]:
    """File name -> sha256, for files of different names (a checkpoint's shards, an output folder)."""
    listed = list(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip((path.name for path in listed), pool.map(sha256_file, listed), strict=True))


def tensor_digest(tensor: np.ndarray) -> str:
    """Hexadecimal sha256 of a tensor's bytes in row-major order; dtype and shape are not part of it."""
    return hashlib.sha256(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data).hexdigest()


def tensor_digests(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, str]:
    """Tensor name -> sha256 of its bytes, for every tensor or `names`, in the order given."""
    chosen = list(checkpoint.tensors if names is None else names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(chosen, pool.map(lambda name: tensor_digest(checkpoint.read(name)), chosen), strict=True))


def model_digest(tensors: Mapping[str, str]) -> str:
    """One sha256 over all of a model's tensor digests, whatever the order or the sharding."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
