"""Measures the rounding error of the scores: one microbatch is scored again with slightly perturbed weights.

A compiled program cannot be run with another order of summation, but the effect can be imitated. Every entry of the
norms' scales moves up or down at random by one unit of rounding of the compute dtype. The input of every linear layer
then changes by as much as rounding would change it. This needs neither a second program nor a copy of the weights,
because scales are vectors.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from hcnr_jax.method.neurons import Leaves, Params, put_leaves
from hcnr_jax.method.tie_margin import relative_rounding

SEED = 20251
"""Seed of the random signs, fixed so that the same run records the same rounding."""


def jolted(params: Params, norms: Container[str], dtype: DTypeLike, offset: float = 0.0) -> Params:
    """Move every norm's factor by one unit of rounding of `dtype`, or of the scale's own dtype if that unit is larger.

    Args:
        params: the parameter tree.
        norms: paths of the norms' scales, as in `Family.norms`.
        dtype: compute dtype.
        offset: number that the norms add to a scale, which gives their factor, as in `Family.norm_offset`.
    """
    rng = np.random.default_rng(SEED)
    leaves: Leaves = {}
    factors: dict[str, np.ndarray] = {}
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        if path in norms:
            unit = max(float(jnp.finfo(kind).eps) for kind in (dtype, leaf.dtype))
            leaves[path] = leaf
            factors[path] = (1 + unit * rng.choice(np.asarray([-1.0, 1.0]), leaf.shape)).astype(np.float32)
    # On a mesh the moved scales lie where the scales lie. On one device a stated place would need another program.
    places: Any = {path: leaf.sharding for path, leaf in leaves.items()}
    if all(len(place.device_set) == 1 for place in places.values()):
        places = None
    return put_leaves(params, jax.jit(_times, out_shardings=places)(leaves, factors, offset))


def _times(leaves: Leaves, factors: dict[str, jax.Array], offset: jax.Array) -> Leaves:
    def moved(leaf: jax.Array, factor: jax.Array) -> jax.Array:
        return ((leaf.astype(jnp.float32) + offset) * factor - offset).astype(leaf.dtype)

    return {path: moved(leaf, factors[path]) for path, leaf in leaves.items()}


def rounding_of(scores: Leaves, again: Leaves, neuron_axes: int = 1) -> dict[str, np.ndarray]:
    """Compute the relative rounding error of every kernel's scores, {path: (*stack,)}, from two computations."""

    def flat(leaf: jax.Array) -> np.ndarray:
        host = np.asarray(leaf)
        return host.reshape(*host.shape[: host.ndim - neuron_axes], -1)

    return {path: relative_rounding(flat(scores[path]), flat(again[path])) for path in scores}
