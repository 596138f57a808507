"""Find the kernels of a param pytree, and describe the neurons of each kernel.

A *kernel* is one linear weight matrix. In Flax a kernel is a leaf of shape (in, out), or one slice of a stacked leaf.
`nn.scan` makes stacked leaves, of shape (*stack, in, out). A *neuron* is one input channel. That channel is row k of
the Flax kernel, and column k of the paper's (out, in) matrix. The other granularities take output channels or single
weights as neurons.

A set of kernels is a flat dict from path to array, which is a pytree. Scores and masks have the leaf's stack axes, then
the neuron axis n. At granularity `weight` the neuron axes are (in, out), since each weight is its own neuron.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from hcnr_jax.errors import InputError

Params = Any
Leaves = dict[str, Array]
HostLeaves = dict[str, np.ndarray]
Granularity = Literal["input", "output", "weight"]


@runtime_checkable
class Shaped(Protocol):
    """Describes anything with a shape, such as an array or a ShapeDtypeStruct."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sizes of the axes."""


@dataclass(frozen=True)
class Kernel:
    """Identifies one linear weight matrix of a param pytree.

    Attributes:
        path: the path of the kernel's leaf, such as 'blocks/q/kernel'.
        index: the kernel's position along the stack axes of the leaf, () for an unstacked leaf.

    >>> print(Kernel("blocks/q/kernel", (3,)))
    blocks/q/kernel[3]
    """

    path: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return self.path + "".join(f"[{i}]" for i in self.index)


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Return the dtype of scores, moments and solves on arrays of `dtype`: float64 for float64, else float32.

    `jnp.promote_types` is not used, since it refuses bfloat16 beside float32 where dtype promotion is strict.

    >>> wide(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def find_kernels(params: Params, pattern: str = r".*") -> tuple[str, ...]:
    """Return the paths ('a/b/kernel') of the kernels whose full path matches the regular expression `pattern`.

    A kernel is a leaf named `kernel` with at least two axes. The paths keep the order of the tree.

    Raises:
        InputError: no kernel matches the pattern.

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
    """Return the leaves at `paths` of a nested dict as a flat dict; the leaves are arrays or ShapeDtypeStructs.

    Raises:
        InputError: `params` has no leaf at one of the paths.

    >>> get_leaves({"q": {"kernel": 1.0, "bias": 2.0}}, ["q/bias"])
    {'q/bias': 2.0}
    """
    leaves = flatten_dict(params, sep="/")
    missing = [path for path in paths if path not in leaves]
    if missing:
        raise InputError(f"no parameter at {missing[0]!r}; the leaves are: {', '.join(leaves)}")
    return {path: leaves[path] for path in paths}


def put_leaves(params: Params, leaves: Mapping[str, Any]) -> Params:
    """Return a new nested dict in which `leaves` replace or join those of `params`; no array is copied.

    >>> put_leaves({"q": {"kernel": 1.0}}, {"q/kernel": jnp.asarray([2.0, 3.0])})["q"]["kernel"].tolist()
    [2.0, 3.0]
    """
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
    """Broadcast a neuron mask of shape (*stack, n) to the leaf's weights, of shape (*stack, in, out).

    At granularity `weight` the mask has the weights' shape already and is returned as it is.

    >>> spread(jnp.asarray([True, False]), jnp.zeros((2, 3)), "input").tolist()
    [[True, True, True], [False, False, False]]
    """
    if granularity == "weight":
        return mask
    axis = -1 if granularity == "input" else -2
    return jnp.broadcast_to(jnp.expand_dims(mask, axis), leaf.shape)


def order_kernels(leaves: Mapping[str, Shaped], paths: Sequence[str] | None = None) -> list[Kernel]:
    """List all kernels by block, and within a block in the order of `paths` (default: the order of `leaves`).

    Ties between kernels go to the earlier kernel of this list (docs/method.md, 1.4). For a transformer the order is by
    block, then q, k, v, o, gate, up, down.

    >>> stacked = jnp.zeros((2, 3, 3))
    >>> [str(kernel) for kernel in order_kernels({"q": stacked, "k": stacked})]
    ['q[0]', 'k[0]', 'q[1]', 'k[1]']
    """
    paths = tuple(leaves) if paths is None else tuple(paths)
    kernels = [Kernel(path, index) for path in paths for index in _indices(stack_shape(leaves[path]))]
    place = {path: position for position, path in enumerate(paths)}
    return sorted(kernels, key=lambda kernel: (kernel.index, place[kernel.path]))


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """List every index of an array of this shape, in row-major order."""
    indices: list[tuple[int, ...]] = [()]
    for size in shape:
        indices = [(*index, i) for index in indices for i in range(size)]
    return indices
