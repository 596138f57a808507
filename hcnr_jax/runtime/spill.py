"""Offloads arrays to the disk beside the output, for runs whose memory holds only a few blocks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from hcnr_jax.runtime.files import explained


class Spill(MutableMapping[Any, np.ndarray]):
    """Maps keys to arrays in files: setting an item writes a file, and getting an item reads the file.

    Only the keys stay in memory. Keys are words or tuples of words and numbers. Values are arrays of any dtype,
    including bfloat16, and are read as numpy arrays.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._kinds: dict[Any, tuple[np.dtype, tuple[int, ...]]] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        array = np.ascontiguousarray(value)
        with explained(self._folder):
            array.reshape(-1).view(np.uint8).tofile(self._path(key))
        self._kinds[key] = array.dtype, array.shape

    def __getitem__(self, key: Any) -> np.ndarray:
        dtype, shape = self._kinds[key]
        return np.fromfile(self._path(key), np.uint8).view(dtype).reshape(shape)

    def __delitem__(self, key: Any) -> None:
        del self._kinds[key]
        self._path(key).unlink()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def _path(self, key: Any) -> Path:
        parts = key if isinstance(key, tuple) else (key,)
        return self._folder / "-".join(str(part).replace("/", ".") for part in parts)


@contextlib.contextmanager
def spill_folder(out: Path) -> Iterator[Path]:
    """Make an empty folder `.NAME.hcnr-spill` beside the output, and remove it at the end."""
    path = out.expanduser().resolve()
    folder = path.parent / f".{path.name}.hcnr-spill"
    shutil.rmtree(folder, ignore_errors=True)
    with explained(out):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
