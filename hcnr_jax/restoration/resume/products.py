"""Saves and reads every stage's result in the work folder: scores, the selection, corrected kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.load import read_leaf
from hcnr_jax.method.compensate import Info
from hcnr_jax.method.neurons import Kernel, get_leaves, order_kernels
from hcnr_jax.method.solve import SolveInfo
from hcnr_jax.models import ModelSpec, abstract_params
from hcnr_jax.restoration.resume.folder import Work, key_of
from hcnr_jax.restoration.score import Scores
from hcnr_jax.restoration.select import Selection

# The tree structure of `Info`, with which the saved leaves of a solve's info are put together again.
_INFO = jax.tree.structure(Info(SolveInfo(*[0] * 4), *[0] * 4))  # type: ignore[arg-type]


def has_scores(work: Work, name: str) -> bool:
    """Return whether the scores of one set of rows are kept."""
    return work.has(f"scores-{name}")


def keep_scores(work: Work, name: str, scores: Scores) -> None:
    """Save one set's scores and losses."""
    rounding = {} if scores.rounding is None else {"rounding": unflatten_dict(scores.rounding, sep="/")}
    tree = {"scores": unflatten_dict(scores.scores, sep="/"), "losses": scores.losses}
    work.keep_tree(f"scores-{name}", tree | rounding)


def recall_scores(work: Work, name: str, spec: ModelSpec) -> Scores | None:
    """Read the scores that an interrupted run kept for one set of rows, None if it kept none."""
    tree = work.tree(f"scores-{name}")
    if tree is None:
        return None
    found = flatten_dict(tree["scores"], sep="/")
    rounding = flatten_dict(tree["rounding"], sep="/") if "rounding" in tree else None
    return Scores({path: jnp.asarray(found[path]) for path in spec.kernels}, tree["losses"], rounding)


def keep_selection(work: Work, selection: Selection) -> None:
    """Save masks and perturbations. The kept kernels follow from the masks: they have a restored neuron."""
    rows = {path: np.zeros(mask.shape[:1]) for path, mask in selection.masks.items()}
    for kernel, value in selection.perturbations.items():
        rows[kernel.path][kernel.index] = value
    trees = {"masks": selection.masks, "perturbations": rows}
    work.keep_tree("selection", {name: unflatten_dict(leaves, sep="/") for name, leaves in trees.items()})


def recall_selection(work: Work, spec: ModelSpec) -> Selection | None:
    """Read the selection that an interrupted run kept, None if it kept none."""
    tree = work.tree("selection")
    if tree is None:
        return None
    masks, rows = (flatten_dict(tree[name], sep="/") for name in ("masks", "perturbations"))
    order = order_kernels(get_leaves(abstract_params(spec), spec.kernels))

    def value(kernel: Kernel) -> float:
        return float(rows[kernel.path][kernel.index])

    kept = [kernel for kernel in order if masks[kernel.path][kernel.index].any()]
    return Selection({path: masks[path] for path in spec.kernels}, {k: value(k) for k in order}, kept)


@dataclass(frozen=True)
class CorrectedKernel:
    """Holds one kept kernel's new weights.

    Args:
        weights: (in, out) in the leaf's dtype, on the device or in the work folder.
        form: form of the solve, "none" without a solve.
        info: report of the solve, None without a solve.
        thin: the restored rows of W' - W_base in the adapter's coordinates, (restored, k); None for whole kernels.
    """

    weights: jax.Array | StoredKernel
    form: str
    info: Info | None
    thin: Any = None


@dataclass(frozen=True)
class KernelStore:
    """Keeps corrected kernels in the work folder.

    A file holds only the restored rows where rows are the neurons; reading a kernel takes all other rows from TUNED.

    Args:
        work: the work folder.
        tuned: TUNED, opened.
        spec: description of the model.
        selection: the restored neurons.
        granularity: unit of restoring.
        release: whether saved kernels leave memory, as in a streamed run.
    """

    work: Work
    tuned: Checkpoint
    spec: ModelSpec
    selection: Selection
    granularity: str
    release: bool

    def keep(self, kernel: Kernel, item: CorrectedKernel) -> CorrectedKernel:
        """Save a kernel. Return the same kernel, or with `release` a handle on the saved kernel."""
        rows = self._rows(kernel)
        changed = item.weights if rows is None else _rows_of(item.weights, rows)
        self.work.keep_kernel(kernel, item.form, changed, info=item.info, thin=item.thin)
        return dataclasses.replace(item, weights=StoredKernel(self, kernel)) if self.release else item

    def known(self) -> dict[Kernel, CorrectedKernel]:
        """Return the kernels that an interrupted run solved, in data-flow order."""
        found, items = self.work.kernels(), {}
        for kernel in [kernel for kernel in self.selection.kept if key_of(kernel) in found]:
            form, _, leaves, thin = self.work.kernel(kernel)
            info = jax.tree.unflatten(_INFO, leaves) if leaves else None
            items[kernel] = CorrectedKernel(StoredKernel(self, kernel), form, info, thin)
        return items

    def weights(self, kernel: Kernel) -> np.ndarray:
        """Read all weights of a saved kernel, (in, out)."""
        self.work.settle()
        rows, changed = self._rows(kernel), self.work.kernel(kernel)[1]
        if rows is None:
            return changed
        whole = read_leaf(self.tuned, self.spec, kernel.path, *kernel.index)
        whole[rows] = changed
        return whole

    def _rows(self, kernel: Kernel) -> np.ndarray | None:
        """Return the indices of a kernel's restored rows; None unless the unit of restoring is a row."""
        mask = np.asarray(self.selection.masks[kernel.path][kernel.index])
        return np.flatnonzero(mask).astype(np.int32) if self.granularity == "input" else None


@jax.jit
def _rows_of(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Take rows of a kernel in one program."""
    return weights.at[rows].get(mode="promise_in_bounds")


@dataclass(frozen=True)
class StoredKernel:
    """Stands for a kernel in the work folder. Conversion to a numpy array reads the file."""

    store: KernelStore
    kernel: Kernel

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.store.weights(self.kernel)
        return array if dtype is None else array.astype(dtype)


class KnownWeights(Mapping[Kernel, jax.Array]):
    """Maps solved kernels to their weights, which are read when a sweep uses them."""

    def __init__(self, items: Mapping[Kernel, CorrectedKernel]) -> None:
        self._items = items

    def __getitem__(self, kernel: Kernel) -> jax.Array:
        return jnp.asarray(np.asarray(self._items[kernel].weights))

    def __contains__(self, kernel: object) -> bool:
        return kernel in self._items

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
