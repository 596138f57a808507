"""Sums that stream: init / update / merge / finalize, carrying totals and weights and dividing once.

Averages of averages are wrong as soon as two batches differ in size, and rounding depends on how often one divides;
so every mean of this project is a `Sums` value until the moment it is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any


class Sums(NamedTuple):
    """What a weighted mean and its spread need.

    weight: sum of the weights, a scalar. total: sum of weight * value. squares: sum of weight * value**2.
    """

    weight: Float[Array, ""]
    total: Tree
    squares: Tree


def init(value: Tree) -> Sums:
    """Zero sums for values shaped like `value` (one example, no batch axis); arrays or ShapeDtypeStructs."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), value)
    dtype = jnp.result_type(*jax.tree.leaves(zeros))
    return Sums(jnp.zeros((), dtype), zeros, jax.tree.map(jnp.copy, zeros))


def update(sums: Sums, values: Tree, weights: Float[Array, " b"]) -> Sums:
    """Add a batch: leaves of `values` are (b, ...), row i counts `weights[i]` times.

    A row of weight 0 (padding) is left out even if its value is NaN.
    """

    def total(leaf: Array) -> Array:
        weight = jnp.broadcast_to(weights.astype(leaf.dtype).reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf.shape)
        return jnp.sum(jnp.where(weight > 0, weight * leaf, 0), axis=0)

    return Sums(
        sums.weight + jnp.sum(weights.astype(sums.weight.dtype)),
        jax.tree.map(lambda old, leaf: old + total(leaf), sums.total, values),
        jax.tree.map(lambda old, leaf: old + total(jnp.square(leaf)), sums.squares, values),
    )


def merge(left: Sums, right: Sums) -> Sums:
    """The sums of both: associative and commutative up to rounding, so shards and hosts may add in any order."""
    return jax.tree.map(jnp.add, left, right)


def mean(sums: Sums) -> Tree:
    """The weighted mean, total / weight; NaN where nothing was added."""
    return jax.tree.map(lambda total: total / sums.weight.astype(total.dtype), sums.total)


def standard_error(sums: Sums) -> Tree:
    """Standard error of the mean for 0/1 weights, sqrt(var / n) with Bessel's correction; 0 for a single row."""
    count = sums.weight

    def one(total: Array, squares: Array) -> Array:
        n = count.astype(total.dtype)
        variance = jnp.maximum(squares - total**2 / n, 0) / jnp.maximum(n - 1, 1)
        return jnp.sqrt(variance / n)

    return jax.tree.map(one, sums.total, sums.squares)
