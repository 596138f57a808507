"""Which leaves of a param pytree are kernels, and which of their axes is the neuron.

A *kernel* is one linear weight matrix. In Flax it is a leaf (in, out), or one slice of a stacked leaf (*stack, in, out)
as `nn.scan` makes them. A *neuron* is one input channel, row k of the Flax kernel (column k of the paper's out x in);
output channels and single weights are the other granularities. Sets of kernels are flat dicts, path -> array, which are
pytrees: scores and masks have the leaf's stack axes and then the neuron axis (or axes: a weight is its own neuron).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from hcnr_jax.errors import InputError

Params = Any
Leaves = dict[str, Array]
Granularity = Literal["input", "output", "weight"]


@runtime_checkable
class Shaped(Protocol):
    """An array or a description of one: all that counting needs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""


@dataclass(frozen=True)
class Kernel:
    """One linear weight matrix: the path of its leaf, and its place along the leaf's stack axes (() when unstacked)."""

    path: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return self.path + "".join(f"[{i}]" for i in self.index)


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of scores, moments and solves on arrays of `dtype`: float64 for float64, else float32.

    Spelled out, since `jnp.promote_types` refuses bfloat16 beside float32 where dtype promotion is strict.
    """
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def find_kernels(params: Params, pattern: str = r".*") -> tuple[str, ...]:
    """Paths ('a/b/kernel') of the leaves named `kernel` with at least two axes whose path matches `pattern` in full.

    In the order of the tree. Raises InputError where nothing matches.

    >>> find_kernels({"q": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
    ('q/kernel',)
    """
    leaves = flatten_dict(params, sep="/")
    found = tuple(
        path
        for path, leaf in leaves.items()
        if path.rsplit("/", 1)[-1] == "kernel" and leaf.ndim >= 2 and re.fullmatch(pattern, path)
    )
    if not found:
        raise InputError(f"no kernel matches the pattern {pattern!r}; the leaves are: {', '.join(leaves)}")
    return found


def get_leaves(params: Params, paths: Iterable[str]) -> dict[str, Any]:
    """The named leaves (arrays, or descriptions of them) of a nested dict as a flat dict; InputError for a path that is
    not there."""
    leaves = flatten_dict(params, sep="/")
    missing = [path for path in paths if path not in leaves]
    if missing:
        raise InputError(f"no parameter at {missing[0]!r}; the leaves are: {', '.join(leaves)}")
    return {path: leaves[path] for path in paths}


def put_leaves(params: Params, leaves: Mapping[str, Array]) -> Params:
    """A new nested dict with the named leaves replaced or added; nothing is copied."""
    return unflatten_dict({**flatten_dict(params, sep="/"), **leaves}, sep="/")


def beside(path: str, name: str) -> str:
    """Return the path of a leaf called `name` next to the kernel at `path`.

    >>> beside("blocks/q/kernel", "bias")
    'blocks/q/bias'
    """
    return f"{path.rpartition('/')[0]}/{name}".lstrip("/")


def stack_shape(leaf: Shaped) -> tuple[int, ...]:
    """Return the leading axes of a leaf along which kernels are stacked.

    >>> stack_shape(jnp.zeros((7, 2, 3)))
    (7,)
    """
    return tuple(leaf.shape[:-2])


def neuron_shape(leaf: Shaped, granularity: Granularity) -> tuple[int, ...]:
    """Return the trailing shape of one kernel's scores: (in,), (out,) or (in, out).

    >>> neuron_shape(jnp.zeros((7, 2, 3)), "output")
    (3,)
    """
    fan_in, fan_out = leaf.shape[-2:]
    return {"input": (fan_in,), "output": (fan_out,), "weight": (fan_in, fan_out)}[granularity]


def neuron_count(leaf: Shaped, granularity: Granularity) -> int:
    """Count the neurons of one kernel of the leaf.

    >>> neuron_count(jnp.zeros((7, 2, 3)), "input")
    2
    """
    return math.prod(neuron_shape(leaf, granularity))


def spread(mask: Array, leaf: Array, granularity: Granularity) -> Array:
    """A neuron mask (*stack, n) laid over its weights: (*stack, in, out), no copy for `weight`."""
    if granularity == "weight":
        return mask
    axis = -1 if granularity == "input" else -2
    return jnp.broadcast_to(jnp.expand_dims(mask, axis), leaf.shape)


def order_kernels(leaves: Mapping[str, Shaped], paths: Sequence[str] | None = None) -> list[Kernel]:
    """All kernels, by block and then in the order of `paths` (default: the order of `leaves`).

    Ties between kernels are broken in this order (docs/method.md, 1.4): by block, then q, k, v, o, gate, up, down.
    """
    paths = tuple(leaves) if paths is None else tuple(paths)
    kernels = [Kernel(path, index) for path in paths for index in _indices(stack_shape(leaves[path]))]
    place = {path: position for position, path in enumerate(paths)}
    return sorted(kernels, key=lambda kernel: (kernel.index, place[kernel.path]))


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    indices: list[tuple[int, ...]] = [()]
    for size in shape:
        indices = [(*index, i) for index in indices for i in range(size)]
    return indices
