"""Keeps a part of the task vector `tau = W_tuned - W_base` and sets the rest back to base."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import Params, wide


def ties(base: Params, tuned: Sequence[Params], density: float, *, scale: float = 1.0) -> Params:
    """Merge by TIES (arXiv 2306.01708, algorithm 1): trim, elect signs, merge the entries that agree.

        tau_t <- its `density` share of largest magnitude over the whole model, 0 elsewhere
        gamma = sign(sum_t tau_t),   W = W_base + scale * mean over {t: sign(tau_t) = gamma} of tau_t

    With one tuned model, as here, signs always agree, and the method reduces to trimming by magnitude.

    Args:
        base: params of BASE.
        tuned: params of every tuned model.
        density: share of tau that is kept, in (0, 1].
        scale: of the merged task vector.
    """
    _check_share("density", density)
    vectors = [task_vector(base, params) for params in tuned]
    trimmed = [_masked(vector, largest(vector, density)) for vector in vectors]
    merged = jax.tree.map(_elect, *trimmed) if len(trimmed) > 1 else trimmed[0]
    return _added(base, tuned[0], merged, scale)


def dare(base: Params, tuned: Params, drop: float, *, seed: int = 0) -> Params:
    """Merge by DARE (arXiv 2311.03099, section 3.2): drop entries of tau at random and rescale the others.

        W = W_base + (m * tau) / (1 - drop),   m ~ Bernoulli(1 - drop) for every entry

    Args:
        base: params of BASE.
        tuned: params of TUNED.
        drop: probability that an entry is dropped.
        seed: of the draw.
    """
    _check_share("1 - drop", 1 - drop)
    vector = task_vector(base, tuned)
    leaves, tree = jax.tree.flatten(vector)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    kept = [
        jnp.where(jax.random.bernoulli(key, 1 - drop, leaf.shape), leaf, 0)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return _added(base, tuned, jax.tree.unflatten(tree, kept), 1 / (1 - drop))


def task_vector(base: Params, tuned: Params) -> Params:
    """Compute W_tuned - W_base, in float32 at least."""
    return jax.tree.map(lambda old, new: new.astype(wide(new.dtype)) - old.astype(wide(new.dtype)), base, tuned)


def largest(vector: Params, density: float) -> Params:
    """Mark the round(density * n) entries of largest magnitude of the whole tree, and all that equal the last of
    them.
    """
    leaves = jax.tree.leaves(vector)
    sizes = np.concatenate([np.abs(np.asarray(leaf)).reshape(-1) for leaf in leaves])
    count = round(density * sizes.size)
    least = np.partition(sizes, sizes.size - count)[sizes.size - count] if count else np.inf
    return jax.tree.map(lambda leaf: jnp.abs(leaf) >= jnp.asarray(least, leaf.dtype), vector)


def _masked(vector: Params, mask: Params) -> Params:
    def one(leaf: Array, keep: Bool[Array, ...]) -> Array:
        return jnp.where(keep, leaf, 0)

    return jax.tree.map(one, vector, mask)


def _elect(*leaves: Array) -> Array:
    """Average the entries that have the sign of their sum; 0 where no entry has."""
    stacked = jnp.stack(leaves)
    sign = jnp.sign(jnp.sum(stacked, axis=0, keepdims=True))
    agree = (jnp.sign(stacked) == sign) & (stacked != 0)
    count = jnp.sum(agree, axis=0, dtype=jnp.int32).astype(stacked.dtype)
    return jnp.sum(jnp.where(agree, stacked, 0), axis=0) / jnp.maximum(count, 1)


def _added(base: Params, like: Params, vector: Params, scale: float) -> Params:
    def one(old: Array, new: Array, leaf: Array) -> Array:
        return (old.astype(leaf.dtype) + jnp.asarray(scale, leaf.dtype) * leaf).astype(new.dtype)

    return jax.tree.map(one, base, like, vector)


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InputError(f"{name} {value:g}: expected a share in (0, 1]")
