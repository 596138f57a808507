"""Device meshes from the text of `--mesh`, and the sharding of parameters and rows over a mesh.

Parameters carry logical axes (`models.logical_axes`), and one table maps each logical axis to a mesh axis. `data`
splits rows. `model` splits heads, channels and the vocabulary (tensor parallelism). `fsdp` splits the remaining axis of
every weight, and the rows (fully sharded data parallelism). Shardings are NamedSharding values for `jax.jit`.
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
"""Logical axis -> mesh axis. `layers` is not split, since the blocks are visited one after the other."""

# The rows of a batch are split over these two axes.
ROWS = ("data", "fsdp")


def parse_mesh(text: str) -> dict[str, int]:
    """Parse `data=2,model=4` into {axis: size}; an empty text is no mesh. InputError names the part that is wrong."""
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
    """Raise InputError for a mesh of more devices than exist, or one that leaves a process without a device."""
    wanted, found = math.prod(parse_mesh(text).values()), jax.device_count()
    if wanted > found:
        raise InputError(f"--mesh {text}: {wanted} devices are asked for, {found} are here; use a smaller mesh")
    if jax.process_count() > 1 and wanted != found:
        raise InputError(
            f"--mesh {text}: {wanted} devices are asked for; {jax.process_count()} processes need a mesh of all their "
            f"{found} devices"
        )


def make_mesh(text: str) -> Mesh | None:
    """Make the mesh of the first devices, with all three axes named; None for one device."""
    sizes = parse_mesh(text)
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) == 1 and jax.process_count() == 1:
        return None
    return Mesh(np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape), AXES)


def partition(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> tuple[PartitionSpec, list[str]]:
    """Return a leaf's partition, and the logical axes that are replicated because their size does not divide."""
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
    """A mesh and the logical axes of a model's parameters. The value is hashable, so that it can key compiled programs.

    axes: (path, logical axes, shape) of every leaf.
    """

    mesh: Mesh
    axes: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...]

    @property
    def row_count(self) -> int:
        """The number that must divide the rows of a microbatch."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS)

    @property
    def weight_count(self) -> int:
        """The number of devices that share one copy of the weights."""
        return math.prod(self.mesh.shape[axis] for axis in AXES if axis != "data")

    @property
    def replicated(self) -> NamedSharding:
        """The sharding that puts the whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """The sharding that splits the first axis by rows."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    def params(self) -> dict[str, NamedSharding]:
        """Return the sharding of every leaf by path."""
        return {path: NamedSharding(self.mesh, partition(axes, shape, self.mesh)[0]) for path, axes, shape in self.axes}

    def kernel(self, path: str) -> NamedSharding:
        """Return the sharding of one block's slice of a stacked leaf."""
        return NamedSharding(self.mesh, PartitionSpec(*self.params()[path].spec[1:]))

    def warnings(self) -> list[str]:
        """Warn of axes that are replicated because their size does not divide, once for each axis and size."""
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
        """Split a host array (b, ...) by rows; every process holds the whole array and supplies its part."""
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, self.rows, lambda index: values[index])

    def put(self, array: Any, sharding: NamedSharding) -> jax.Array:
        """Put an array that every process holds on the devices with this sharding."""
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    def replicate(self, tree: Any) -> Any:
        """Put host arrays whole on every device."""
        return jax.tree.map(lambda leaf: self.put(leaf, self.replicated), tree)

    def local(self, tree: Any, number: int = 0) -> Any:
        """Gather every array of the tree on this process's device `number`, modulo the number of devices."""
        return jax.tree.map(lambda leaf: _local(leaf, self.replicated, number), tree)


def make_layout(mesh: Mesh, axes: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Make the layout of a model from its leaves' logical axes and shapes by path."""
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
