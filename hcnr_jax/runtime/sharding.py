"""A device mesh as the user names it, and how parameters and rows lie on it.

Parameters carry logical axes (`models.logical_axes`); one table sends each to a mesh axis. `data` splits rows, `model`
splits heads, channels and the vocabulary (tensor parallel), `fsdp` splits what is left of every weight and the rows too
(fully sharded data parallel). Everything is expressed as NamedSharding for `jax.jit`; the method knows nothing of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hcnr_jax.errors import InputError

AXES = ("data", "fsdp", "model")

RULES: dict[str, str | None] = {
    "layers": None,
    "vocab": "model",
    "embed": "fsdp",
    "heads": "model",
    "head_dim": None,
    "mlp": "model",
}
"""Logical axis -> mesh axis. `layers` stays whole: the blocks are walked one after the other."""

# Rows of a batch lie over both axes whose devices do not share rows.
ROWS = ("data", "fsdp")


def parse_mesh(text: str) -> dict[str, int]:
    """`data=2,model=4` as {axis: size}; an empty text is no mesh. InputError names the part that is not understood."""
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, size = part.partition("=")
        if name in AXES and size.lstrip("-").isdigit() and int(size) < 1:
            raise InputError(f"--mesh {text}: sizes are 1 or more, got {part!r}; leave an axis of one device out")
        if name not in AXES or not size.isdigit():
            raise InputError(f"--mesh {text}: expected axes out of {', '.join(AXES)}, as in data=2, got {part!r}")
        if name in sizes:
            raise InputError(f"--mesh {text}: the axis {name} is given twice")
        sizes[name] = int(size)
    return sizes


def check_mesh(text: str) -> None:
    """Refuse a mesh this machine has too few devices for, and one that leaves a process without a device of its own."""
    wanted, found = math.prod(parse_mesh(text).values()), jax.device_count()
    if wanted > found:
        raise InputError(f"--mesh {text}: {wanted} devices are asked for, {found} are here; use a smaller mesh")
    if jax.process_count() > 1 and wanted != found:
        raise InputError(
            f"--mesh {text}: {wanted} devices are asked for; {jax.process_count()} processes need a mesh of all their "
            f"{found} devices"
        )


def make_mesh(text: str) -> Mesh | None:
    """The mesh of the first devices, all three axes named; None for one device."""
    sizes = parse_mesh(text)
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) == 1 and jax.process_count() == 1:
        return None
    return Mesh(np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape), AXES)


def partition(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> tuple[PartitionSpec, list[str]]:
    """Where a leaf with these logical axes lies, and the logical axes that stay whole because they do not divide."""
    names, uneven = [], []
    for axis, size in zip(axes, shape, strict=True):
        name = RULES[axis]
        if name is not None and size % mesh.shape[name]:
            uneven.append(axis)
            name = None
        names.append(name)
    return PartitionSpec(*names), uneven


@dataclass(frozen=True)
class Layout:
    """A mesh and the logical axes of a model's parameters by path, as a value that compiled programs can be kept under.

    axes: (path, logical axes, shape) of every leaf.
    """

    mesh: Mesh
    axes: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...]

    @property
    def row_count(self) -> int:
        """Rows of a microbatch must be a multiple of this."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS)

    @property
    def weight_count(self) -> int:
        """Devices that share one copy of the weights."""
        return math.prod(self.mesh.shape[axis] for axis in AXES if axis != "data")

    @property
    def replicated(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """The first axis over the axes that split rows."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    def params(self) -> dict[str, NamedSharding]:
        """Path -> sharding of the leaf."""
        return {path: NamedSharding(self.mesh, partition(axes, shape, self.mesh)[0]) for path, axes, shape in self.axes}

    def kernel(self, path: str) -> NamedSharding:
        """The sharding of one block's slice of a stacked leaf."""
        return NamedSharding(self.mesh, PartitionSpec(*self.params()[path].spec[1:]))

    def warnings(self) -> list[str]:
        """What does not divide and is replicated, once for each axis and size."""
        found: dict[str, str] = {}
        for path, axes, shape in self.axes:
            for axis in partition(axes, shape, self.mesh)[1]:
                name = RULES[axis]
                size, parts = shape[axes.index(axis)], self.mesh.shape[name or "data"]
                found.setdefault(
                    f"{axis} {size}",
                    f"--mesh: {name}={parts} does not divide the {size} of {axis} ({path}): those weights are "
                    f"replicated along {name}",
                )
        return list(found.values())

    def put_rows(self, array: Any) -> jax.Array:
        """A host array (b, ...) laid out by rows; every process holds the whole of it and gives its part."""
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, self.rows, lambda index: values[index])

    def put(self, array: Any, sharding: NamedSharding) -> jax.Array:
        """An array that every process holds, laid out as `sharding` says."""
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    def replicate(self, tree: Any) -> Any:
        """Host arrays, whole on every device."""
        return jax.tree.map(lambda leaf: self.put(leaf, self.replicated), tree)

    def local(self, tree: Any, number: int = 0) -> Any:
        """Every array of the tree whole, on this process's device `number` (counted round), as a local array."""
        return jax.tree.map(lambda leaf: _local(leaf, self.replicated, number), tree)


def make_layout(mesh: Mesh, axes: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a model from its leaves' logical axes and shapes by path."""
    return Layout(mesh, tuple((path, tuple(names), tuple(shapes[path])) for path, names in axes.items()))


def _local(leaf: Any, replicated: NamedSharding, number: int) -> Any:
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.sharding, NamedSharding):
        return leaf
    if leaf.is_fully_addressable:  # straight to the one device that needs it
        devices = replicated.mesh.devices.flat
        return jax.device_put(leaf, devices[number % replicated.mesh.size])
    shards = _gather(replicated)(leaf).addressable_shards
    return shards[number % len(shards)].data


@functools.cache
def _gather(replicated: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=replicated)
