"""The scores' rounding, measured: one microbatch scored again after a push of one unit of rounding in every layer.

Another order of summation cannot be asked of a compiled program, but its effect can be imitated: the norms' scales,
each moved by a unit of the compute dtype up or down at random, give every linear of every layer an input that is off by
as much as rounding would leave it. No second program, and no copy of the weights: scales are vectors.
"""

from __future__ import annotations

from collections.abc import Container

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from hcnr_jax.method.certainty import relative_rounding
from hcnr_jax.method.neurons import Leaves, Params, put_leaves

SEED = 20251
"""Of the signs; fixed, so that the same run records the same rounding."""


def jolted(params: Params, norms: Container[str], dtype: DTypeLike) -> Params:
    """Move every norm's scale by a unit of rounding of `dtype`, or of its own dtype where that is larger.

    norms: the paths of the norms' scales, `Family.norms`.
    """
    rng = np.random.default_rng(SEED)
    moved: Leaves = {}
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        if path in norms:
            unit = max(float(jnp.finfo(kind).eps) for kind in (dtype, leaf.dtype))
            factor = (1 + unit * rng.choice(np.asarray([-1.0, 1.0]), leaf.shape)).astype(np.float32)
            moved[path] = jax.jit(_times, out_shardings=leaf.sharding)(leaf, factor)
    return put_leaves(params, moved)


def _times(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    return (leaf.astype(jnp.float32) * factor).astype(leaf.dtype)


def rounding_of(scores: Leaves, again: Leaves, neuron_axes: int = 1) -> dict[str, np.ndarray]:
    """The relative rounding of every kernel's scores (*stack,), from two computations of them."""

    def flat(leaf: jax.Array) -> np.ndarray:
        host = np.asarray(leaf)
        return host.reshape(*host.shape[: host.ndim - neuron_axes], -1)

    return {path: relative_rounding(flat(scores[path]), flat(again[path])) for path in scores}
