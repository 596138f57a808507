"""Compute the inputs of a view's kernels, and sum their second moments over batches of examples.

    H = mean over tokens x x^T,   x the input of a group of kernels                       (docs/method.md, stage 2)

The inputs leave the model as the cotangents of taps, so that scans, remat and jit in the model are no obstacle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from hcnr_jax.errors import InputError
from hcnr_jax.method import taps
from hcnr_jax.method.curvature import Moments, init_moments, update_moments
from hcnr_jax.method.neurons import beside, wide
from hcnr_jax.method.one_call.linear_view import Example, LinearView

TokenMask = Callable[[Example], Any]

# Names of the taps.
INPUTS, LIVE = "inputs_tap", "live_tap"


def layer_inputs(
    view: LinearView,
    nested: Mapping[str, Any],
    batch: Any,
    *,
    firsts: Sequence[str],
    token_mask: TokenMask | None,
) -> tuple[dict[str, tuple[Array, Array]], Float[Array, " b"]]:
    """Compute {first: (inputs x (b, *stack, t, in), which tokens count (b, *stack, t))}, and the losses (b,).

    The cotangent of one tap is defined as the inputs, and that of another as whether a token's cotangent is not 0.

    Args:
        view: the model.
        nested: its params, as `view.split` returns them.
        batch: a pytree of examples, stacked along a leading axis b.
        firsts: the first kernels of the groups.
        token_mask: example -> bool, True where a token counts; None counts a token where the loss depends on what a
            kernel of the group makes of the token.

    Raises:
        InputError: the mask has another number of tokens than a kernel's inputs.
    """
    layers, flat = dict(view.layers), flatten_dict(nested, sep="/")
    groups = {first: view.groups[first] for first in firsts}
    tokens = view.tokens(
        view.join(nested), jax.eval_shape(lambda rows: jax.tree.map(lambda leaf: leaf[0], rows), batch)
    )
    zeros: dict[str, Array] = {}
    for path in (path for paths in groups.values() for path in paths):
        shape, dtype = (*layers[path].stack, tokens[path]), wide(flat[path].dtype)
        zeros[beside(path, LIVE)] = jnp.zeros(shape, dtype)
        if path in groups:
            zeros[beside(path, INPUTS)] = jnp.zeros((*shape, layers[path].fan_in), dtype)

    def one(example: Example) -> Any:
        def of_taps(leaves: dict[str, Array]) -> Array:
            with taps.observe({INPUTS: lambda x, g: x, LIVE: lambda x, g: jnp.any(g != 0, axis=-1)}):
                return view.loss(unflatten_dict({**flat, **leaves}, sep="/"), example)

        return jax.value_and_grad(of_taps)(zeros)

    losses, seen = jax.vmap(one)(batch)
    given = None if token_mask is None else jax.vmap(token_mask)(batch)
    found: dict[str, tuple[Array, Array]] = {}
    for first, paths in groups.items():
        live = functools.reduce(jnp.logical_or, [seen[beside(path, LIVE)] > 0 for path in paths])
        keep = live if given is None else _as_tokens(given, live, first)
        found[first] = seen[beside(first, INPUTS)], keep
    return found, losses


def _as_tokens(given: Array, live: Array, path: str) -> Array:
    """Shape a token mask like the tokens of a kernel's inputs, (b, *stack, t)."""
    rows = given.reshape(given.shape[0], -1)
    if rows.shape[1] != live.shape[-1]:
        raise InputError(
            f"token_mask: it has {rows.shape[1]} tokens an example, but the inputs of kernel {path} have "
            f"{live.shape[-1]}; expected one bool for each. Leave the kernel out with `kernels`, or leave out the mask"
        )
    between = (1,) * (live.ndim - 2)
    return jnp.broadcast_to(rows.reshape(rows.shape[0], *between, -1), live.shape).astype(bool)


def zero_moments(view: LinearView, first: str, dtype: Any, propagated: bool = False) -> Moments:
    """Make zero moments of a group, with one leading axis over the stacked kernels."""
    layer = dict(view.layers)[first]
    one = init_moments(layer.fan_in, propagated, dtype)
    return jax.tree.map(lambda leaf: jnp.zeros((math.prod(layer.stack), *leaf.shape), leaf.dtype), one)


def add_moments(moments: Moments, now: Array, keep: Array, reference: Array | None = None) -> Moments:
    """Add a batch's inputs to the moments of a group.

    Args:
        moments: the sums so far, with one leading axis over the stacked kernels.
        now: the inputs x' that the kernels read now, (b, *stack, t, in).
        keep: True for each token that counts, (b, *stack, t).
        reference: the inputs x of the model whose outputs are the aim; None where x' = x.
    """
    count = moments.tokens.shape[0]

    def rows(array: Array, last: int) -> Array:
        middle = array.ndim - last - 2
        moved = jnp.transpose(array, (*range(1, 1 + middle), 0, *range(1 + middle, array.ndim)))
        return moved.reshape(count, -1, *array.shape[array.ndim - last :])

    given = None if reference is None else rows(reference, 1)
    return jax.vmap(update_moments)(moments, rows(now, 1), given, rows(keep, 0))
