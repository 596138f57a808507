"""The hidden states of rows in the models a sweep follows, and the statistics of what kernels read there."""

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
from hcnr_jax.method.sweep.model import Batch, BlockModel, Hidden, embed, steps_of


@dataclass
class Stream:
    """The hidden states of one set of rows in one model, microbatch by microbatch.

    keep: whether what the groups of the current block were seen to read is kept in `read`, {first kernel: inputs}, and
    the rest of the block computed from there; else a block is gone through from its start for every group. The same
    numbers either way: memory against time.
    """

    batches: Sequence[Batch]
    hidden: list[Hidden]
    keep: bool = True
    read: list[dict[str, Array]] = field(init=False)

    def __post_init__(self) -> None:
        self.read = [{} for _ in self.batches]

    @classmethod
    def start(cls, model: BlockModel, params: Params, batches: Sequence[Batch], keep: bool = True) -> Stream:
        """The rows before the first block."""
        return cls(batches, [embed(model, params, batch) for batch in batches], keep)

    def capture(self, model: BlockModel, first: str, block: Params, index: int, place: int) -> Array:
        """What the group that starts with `first` reads of the microbatch at `place`. Groups are asked for in data-flow
        order, the kernels of those before being what they will stay."""
        read, batch = self.read[place], self.batches[place]
        found = steps_of(model).capture(first, block, self.hidden[place], batch, index, read)
        if self.keep:
            read[first] = found
        return found

    def advance(self, model: BlockModel, block: Params, index: int) -> None:
        """Through one block; each microbatch's states replace the ones before."""
        finish = steps_of(model).finish
        for place, batch in enumerate(self.batches):
            self.hidden[place] = finish(block, self.hidden[place], batch, index, self.read[place])
            self.read[place] = {}


def token_masks(model: BlockModel, batches: Sequence[Batch]) -> list[np.ndarray]:
    """Which tokens of each microbatch count, on the host."""
    return [np.asarray(model.token_mask(batch)) for batch in batches]


def count_tokens(masks: Sequence[np.ndarray]) -> int:
    """How many tokens count."""
    return int(sum(mask.sum() for mask in masks))


class Accumulator:
    """Statistics of the inputs of one group on one side, microbatch by microbatch: moments, the tokens, or both.

    distances: whether `output_distance` will be asked of the moments (it is on honesty rows alone).
    """

    def __init__(self, as_moments: bool, as_tokens: bool, distances: bool) -> None:
        self._as_moments, self._as_tokens, self._distances = as_moments, as_tokens, distances
        self._moments: Moments | None = None
        self._tokens: list[Array] = []
        self._shifts: list[Array] = []

    def add(self, now: Array, reference: Array | None, mask: np.ndarray) -> None:
        """Inputs (*b, in) of one microbatch: those met now and, for propagated inputs, those of the aim."""
        if self._as_moments:
            moments = _moments_on(_mesh_of(now), now.shape[-1], reference is not None, wide(now.dtype), self._distances)
            self._moments = moments.add(self._moments or moments.zeros(), now, reference, mask)
        if self._as_tokens:
            self._tokens.append(_rows(now, mask))
            if reference is not None:
                self._shifts.append(self._tokens[-1] - _rows(reference, mask))

    def result(self) -> dict[bool, Moments | Inputs]:
        """{True: moments as means, False: the tokens themselves}, as far as they were asked for."""
        found: dict[bool, Moments | Inputs] = {}
        if self._moments is not None:
            found[True] = _mean(self._moments)
        if self._tokens:
            shift = jnp.concatenate(self._shifts) if self._shifts else None
            found[False] = Inputs(jnp.concatenate(self._tokens), shift)
        return found


def _mesh_of(array: Array) -> Mesh | None:
    """The mesh an array lies on; None where it is no mesh's."""
    sharding = array.sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


class _Moments(NamedTuple):
    """The two programs of one kind of sums. Compiled whole: op by op, each would be a program of its own."""

    zeros: Callable[[], Moments]
    add: Callable[..., Moments]


@functools.cache
def _moments_on(mesh: Mesh | None, fan_in: int, propagated: bool, dtype: Any, distances: bool) -> _Moments:
    """On a mesh the matrices are split by columns over all its devices, where their number divides them."""

    def zeros() -> Moments:
        return init_moments(fan_in, propagated, dtype, distances=distances)

    where: Any = None
    if mesh is not None:
        columns = PartitionSpec(None, mesh.axis_names) if fan_in % mesh.size == 0 else PartitionSpec()

        def place(leaf: Any) -> NamedSharding:
            return NamedSharding(mesh, columns if leaf.ndim else PartitionSpec())

        where = jax.tree.map(place, jax.eval_shape(zeros))
    return _Moments(jax.jit(zeros, out_shardings=where), jax.jit(update_moments, out_shardings=where, donate_argnums=0))


_mean = jax.jit(mean_moments)


def _rows(inputs: Array, mask: np.ndarray) -> Array:
    """The real tokens of a microbatch (n, in); padding dropped on the host, where the mask is."""
    flat = inputs.reshape(-1, inputs.shape[-1])[np.flatnonzero(mask.reshape(-1))]
    return flat.astype(wide(inputs.dtype))
