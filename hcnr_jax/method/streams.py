"""The hidden states of rows in the models a sweep follows, and the statistics of what kernels read there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hcnr_jax.method.block_model import Batch, BlockModel, Hidden, add_moments, embed, steps_of
from hcnr_jax.method.curvature import Inputs, Moments, init_moments, mean_moments
from hcnr_jax.method.neurons import Params, wide


@dataclass
class Stream:
    """The hidden states of one set of rows in one model, microbatch by microbatch."""

    batches: Sequence[Batch]
    hidden: list[Hidden]

    @classmethod
    def start(cls, model: BlockModel, params: Params, batches: Sequence[Batch]) -> Stream:
        """The rows before the first block."""
        return cls(batches, [embed(model, params, batch) for batch in batches])

    def advance(self, model: BlockModel, block: Params, index: int) -> None:
        """Through one block; each microbatch's states replace the ones before."""
        apply = steps_of(model).apply
        for place, batch in enumerate(self.batches):
            self.hidden[place] = apply(block, self.hidden[place], batch, index)


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
            if self._moments is None:
                propagated = reference is not None
                self._moments = _zeros(now.shape[-1], propagated, wide(now.dtype), self._distances)
            self._moments = add_moments(self._moments, now, reference, jnp.asarray(mask))
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


# Compiled whole: op by op, each would be a program of its own to compile.
_zeros = jax.jit(init_moments, static_argnums=(0, 1, 2, 3))
_mean = jax.jit(mean_moments)


def _rows(inputs: Array, mask: np.ndarray) -> Array:
    """The real tokens of a microbatch (n, in); padding dropped on the host, where the mask is."""
    flat = inputs.reshape(-1, inputs.shape[-1])[np.flatnonzero(mask.reshape(-1))]
    return flat.astype(wide(inputs.dtype))


Statistics = dict[bool, Any]
"""What `Accumulator.result` gives."""
