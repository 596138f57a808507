"""Arrays that wait on the disk beside the output, where memory is meant to hold a few blocks and no more."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from hcnr_jax.runtime.files import explained


class Spill(MutableMapping[Any, np.ndarray]):
    """A mapping whose values are files: set writes, get reads, nothing stays in memory but the keys.

    Keys are tuples or words without separators; values are arrays of any dtype, bfloat16 too, and come back as numpy.
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
    """A folder `.NAME.hcnr-spill` beside the output, cleared of what a killed run left, and gone at the end."""
    path = out.expanduser().resolve()
    folder = path.parent / f".{path.name}.hcnr-spill"
    shutil.rmtree(folder, ignore_errors=True)
    with explained(out):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
