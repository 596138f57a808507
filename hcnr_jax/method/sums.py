"""Stream weighted means: `init_sums`, `update_sums`, and `mean_sums`, which divides once.

Averages of averages are wrong as soon as two batches differ in size, and rounding depends on how often one divides.
Every mean of scores therefore stays a `Sums` value until the mean is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any


class Sums(NamedTuple):
    """Hold the sums of a weighted mean. weight: sum of the weights, a scalar. total: sum of weight * value."""

    weight: Float[Array, ""]
    total: Tree


def init_sums(value: Tree) -> Sums:
    """Make zero sums for values shaped like `value` (one example, no batch axis); arrays or ShapeDtypeStructs.

    >>> print(init_sums(jnp.ones(2)).total)
    [0. 0.]
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), value)
    dtype = jnp.result_type(*jax.tree.leaves(zeros))
    return Sums(jnp.zeros((), dtype), zeros)


def update_sums(sums: Sums, values: Tree, weights: Float[Array, " b"]) -> Sums:
    """Add a batch: leaves of `values` are (b, ...), row i counts `weights[i]` times.

    A row of weight 0 (padding) is left out even if its value is NaN.

    >>> sums = update_sums(init_sums(jnp.zeros(())), jnp.asarray([1.0, 4.0, jnp.nan]), jnp.asarray([2.0, 1.0, 0.0]))
    >>> print(sums.total, sums.weight)
    6.0 3.0
    """

    def total(leaf: Array) -> Array:
        weight = jnp.broadcast_to(weights.astype(leaf.dtype).reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf.shape)
        return jnp.sum(jnp.where(weight > 0, weight * leaf, 0), axis=0)

    return Sums(
        sums.weight + jnp.sum(weights.astype(sums.weight.dtype)),
        jax.tree.map(lambda old, leaf: old + total(leaf), sums.total, values),
    )


def mean_sums(sums: Sums) -> Tree:
    """Divide: the weighted mean is total / weight, and NaN where nothing was added.

    >>> print(mean_sums(Sums(jnp.asarray(4.0), jnp.asarray([8.0, 2.0]))))
    [2.  0.5]
    """
    return jax.tree.map(lambda total: total / sums.weight.astype(total.dtype), sums.total)
