"""Follow the hidden states of rows through models, and accumulate statistics of the kernels' inputs there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from hcnr_jax.method.curvature import Inputs, Moments, init_moments, mean_moments, update_moments
from hcnr_jax.method.neurons import Params, wide
from hcnr_jax.method.program import Described, Program
from hcnr_jax.method.sweep.model import Batch, BlockModel, Hidden, embed, steps_of


@dataclass
class Stream:
    """Holds the hidden states of one set of rows in one model, microbatch by microbatch.

    Args:
        batches: microbatches of rows.
        hidden: the hidden states before the current block, one entry for each microbatch.
        keep: whether to keep the inputs of the current block's groups in `read`, as {first kernel: inputs}. The rest of
            the block then starts from these inputs, which costs memory. Without them the block is run again from its
            start for every group, which costs time. Both give the same numbers.
    """

    batches: Sequence[Batch]
    hidden: list[Hidden]
    keep: bool = True
    read: list[dict[str, Described]] = field(init=False)

    def __post_init__(self) -> None:
        self.read = [{} for _ in self.batches]

    @classmethod
    def start(cls, model: BlockModel, params: Params, batches: Sequence[Batch], keep: bool = True) -> Stream:
        """Embed the rows, so that the stream stands before the first block.

        Args:
            model: the model as blocks.
            params: the params that `model` reads.
            batches: microbatches of rows.
            keep: as in `Stream`.
        """
        return cls(batches, [embed(model, params, batch) for batch in batches], keep)

    def capture(self, model: BlockModel, first: str, block: Params, index: int, place: int) -> Described:
        """Return the inputs of one group on one microbatch.

        Call this in data-flow order, when the kernels of all earlier groups have their final weights.

        Args:
            model: the model as blocks.
            first: the first kernel of the group, as a path relative to the block.
            block: the params of the current block.
            index: the index of the current block.
            place: the position of the microbatch in `batches`.
        """
        read, batch = self.read[place], self.batches[place]
        found = steps_of(model).capture(first, block, self.hidden[place], batch, index, read)
        if self.keep:
            read[first] = found
        return found

    def advance(self, model: BlockModel, block: Params, index: int) -> None:
        """Pass all microbatches through one block. The new hidden states replace the old ones."""
        finish = steps_of(model).finish
        for place, batch in enumerate(self.batches):
            self.hidden[place] = finish(block, self.hidden[place], batch, index, self.read[place])
            self.read[place] = {}


def token_masks(model: BlockModel, batches: Sequence[Batch]) -> list[np.ndarray]:
    """Return on the host which tokens of each microbatch count."""
    return [np.asarray(model.token_mask(batch)) for batch in batches]


def count_tokens(masks: Sequence[np.ndarray]) -> int:
    """Count the tokens that are True in the masks.

    >>> count_tokens([np.asarray([[True, False]]), np.asarray([[True, True]])])
    3
    """
    return int(sum(mask.sum() for mask in masks))


class Accumulator:
    """Accumulates the inputs of one group on one side (honesty or task): as moments, as tokens, or as both.

    Args:
        as_moments: whether to sum second moments.
        as_tokens: whether to keep the tokens.
        distances: whether `output_distance` will read the moments, which happens on honesty rows alone.

    >>> accumulator = Accumulator(as_moments=True, as_tokens=True, distances=False)
    >>> accumulator.add(jnp.asarray([[1.0, 3.0], [9.0, 9.0]]), None, np.asarray([True, False]))
    >>> accumulator.result()[True].inputs.tolist(), accumulator.result()[False].inputs.tolist()
    ([[1.0, 3.0], [3.0, 9.0]], [[1.0, 3.0]])
    """

    def __init__(self, as_moments: bool, as_tokens: bool, distances: bool) -> None:
        self._as_moments, self._as_tokens, self._distances = as_moments, as_tokens, distances
        self._moments: Moments | None = None
        self._tokens: list[Array] = []
        self._shifts: list[Array] = []

    def add(self, now: Described, reference: Described | None, mask: np.ndarray) -> None:
        """Add the inputs of one microbatch.

        Args:
            now: the inputs x' (honesty) or z' (task) that the group receives now, (*b, in).
            reference: the inputs x of BASE or z of TUNED, of the same shape; None for local inputs.
            mask: True where a token counts, (*b,).
        """
        if self._as_moments:
            moments = _moments_on(_mesh_of(now), now.shape[-1], reference is not None, wide(now.dtype), self._distances)
            self._moments = moments.add(self._moments or moments.zeros(), now, reference, mask)
        if self._as_tokens:
            self._tokens.append(_rows(now, mask))
            if reference is not None:
                self._shifts.append(self._tokens[-1] - _rows(reference, mask))

    def result(self) -> dict[bool, Moments | Inputs]:
        """Return {True: moments as means, False: the tokens}, as far as they were asked for."""
        found: dict[bool, Moments | Inputs] = {}
        if self._moments is not None:
            found[True] = _mean(self._moments)
        if self._tokens:
            shift = jnp.concatenate(self._shifts) if self._shifts else None
            found[False] = Inputs(jnp.concatenate(self._tokens), shift)
        return found


def _mesh_of(array: Described) -> Mesh | None:
    """Return the mesh of an array, or None for an array without a mesh."""
    sharding = array.sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


class _Moments(NamedTuple):
    """Holds the two programs of one kind of sums.

    Each is compiled whole, because JAX would otherwise compile one program for every operation.
    """

    zeros: Callable[[], Moments]
    add: Callable[..., Moments]


@functools.cache
def _moments_on(mesh: Mesh | None, fan_in: int, propagated: bool, dtype: Any, distances: bool) -> _Moments:
    """Make the programs for one kind of sums.

    On a mesh, the columns of the matrices are split over all devices if the number of devices divides `fan_in`.
    """

    def zeros() -> Moments:
        return init_moments(fan_in, propagated, dtype, distances=distances)

    where: Any = None
    if mesh is not None:
        columns = PartitionSpec(None, mesh.axis_names) if fan_in % mesh.size == 0 else PartitionSpec()

        def place(leaf: Any) -> NamedSharding:
            return NamedSharding(mesh, columns if leaf.ndim else PartitionSpec())

        where = jax.tree.map(place, jax.eval_shape(zeros))
    add = Program(update_moments, out_shardings=where, donate_argnums=0)
    return _Moments(Program(zeros, out_shardings=where), add)


_mean = Program(mean_moments)


def _rows(inputs: Any, mask: np.ndarray) -> Array:
    """Return the real tokens of a microbatch, (n, in). Padding is located on the host, where the mask is."""
    flat = inputs.reshape(-1, inputs.shape[-1])[np.flatnonzero(mask.reshape(-1))]
    return flat.astype(wide(inputs.dtype))
