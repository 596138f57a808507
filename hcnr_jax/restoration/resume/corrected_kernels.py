"""Corrected kernels as the work folder keeps them, and as the rest of a run sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.load import read_leaf
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.method.objectives.ridge import Info
from hcnr_jax.method.solve import SolveInfo
from hcnr_jax.models import ModelSpec
from hcnr_jax.restoration.resume.folder import Work, key_of
from hcnr_jax.restoration.select import Selection

# How the leaves of what a solve said are put together again.
_INFO = jax.tree.structure(Info(SolveInfo(*[0] * 4), *[0] * 4))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Corrected:
    """One kept kernel's new weights (in, out) in the leaf's dtype, on the device or in the work folder, and what the
    solve said (None for `none`)."""

    weights: jax.Array | Stored
    form: str
    info: Info | None


@dataclass(frozen=True)
class Store:
    """Corrected kernels in the work folder, as whole matrices: the kept rows laid over TUNED's. `release`: a run that
    streams holds none of them in memory."""

    work: Work
    tuned: Checkpoint
    spec: ModelSpec
    selection: Selection
    granularity: str
    release: bool

    def keep(self, kernel: Kernel, item: Corrected) -> Corrected:
        """Save a kernel; what is to be held of it from now on."""
        rows = self._rows(kernel)
        changed = item.weights if rows is None else jnp.asarray(item.weights)[rows]
        self.work.keep_kernel(kernel, item.form, changed, item.info)
        return Corrected(Stored(self, kernel), item.form, item.info) if self.release else item

    def known(self) -> dict[Kernel, Corrected]:
        """The kernels an interrupted run left, in data-flow order."""
        found, items = self.work.kernels(), {}
        for kernel in [kernel for kernel in self.selection.kept if key_of(kernel) in found]:
            form, _, leaves = self.work.kernel(kernel)
            info = jax.tree.unflatten(_INFO, leaves) if leaves else None
            items[kernel] = Corrected(Stored(self, kernel), form, info)
        return items

    def weights(self, kernel: Kernel) -> np.ndarray:
        """A kept kernel, whole."""
        self.work.settle()
        rows, changed = self._rows(kernel), self.work.kernel(kernel)[1]
        if rows is None:
            return changed
        whole = read_leaf(self.tuned, self.spec, kernel.path, *kernel.index)
        whole[rows] = changed
        return whole

    def _rows(self, kernel: Kernel) -> np.ndarray | None:
        """The restored rows of a kernel; None where other entries than whole rows are restored."""
        mask = np.asarray(self.selection.masks[kernel.path][kernel.index])
        return np.flatnonzero(mask) if self.granularity == "input" else None


@dataclass(frozen=True)
class Stored:
    """A handle on a kernel in the work folder: numpy reads it when it asks for the values."""

    store: Store
    kernel: Kernel

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.store.weights(self.kernel)
        return array if dtype is None else array.astype(dtype)


class Known(Mapping[Kernel, jax.Array]):
    """Weights of the kernels that are done, read when a sweep puts them in."""

    def __init__(self, items: Mapping[Kernel, Corrected]) -> None:
        self._items = items

    def __getitem__(self, kernel: Kernel) -> jax.Array:
        return jnp.asarray(np.asarray(self._items[kernel].weights))

    def __contains__(self, kernel: object) -> bool:
        return kernel in self._items

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
