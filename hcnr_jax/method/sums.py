"""Stream weighted means with `init_sums` and `update_sums`; `mean_sums` divides once at the end.

An average of batch averages is wrong as soon as two batches differ in size. Rounding also depends on the number of
divisions. Every mean of scores therefore stays a `Sums` value until the mean is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any


class Sums(NamedTuple):
    """Holds the two sums of a weighted mean.

    Attributes:
        weight: the sum of the weights, a scalar.
        total: the sum of weight * value, a pytree of arrays shaped like one value.
    """

    weight: Float[Array, ""]
    total: Tree


def init_sums(value: Tree) -> Sums:
    """Make zero sums for values shaped like `value`, a pytree of arrays or ShapeDtypeStructs without a batch axis.

    >>> print(init_sums(jnp.ones(2)).total)
    [0. 0.]
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), value)
    dtype = jnp.result_type(*jax.tree.leaves(zeros))
    return Sums(jnp.zeros((), dtype), zeros)


def update_sums(sums: Sums, values: Tree, weights: Float[Array, " b"]) -> Sums:
    """Add a batch of values to the sums.

    The leaves of `values` have shape (b, ...), and row i counts `weights[i]` times. A row of weight 0 (padding) is left
    out, even where the row holds NaN.

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
    """Return the weighted mean total / weight, which is NaN if nothing was added.

    >>> print(mean_sums(Sums(jnp.asarray(4.0), jnp.asarray([8.0, 2.0]))))
    [2.  0.5]
    """
    return jax.tree.map(lambda total: total / sums.weight.astype(total.dtype), sums.total)
