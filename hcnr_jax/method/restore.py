"""Restore neurons plainly: base weights where the mask is True, tuned weights elsewhere (compensation `none`)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from hcnr_jax.method.neurons import Granularity, Leaves, Params, get_leaves, put_leaves, spread


def restore_kernel(base: Array, tuned: Array, mask: Array, granularity: Granularity = "input") -> Array:
    """Return W', which equals W_base where the neuron is restored and W_tuned elsewhere.

    Args:
        base: W_base, (*stack, in, out).
        tuned: W_tuned, of the same shape. W' has its dtype.
        mask: True for a restored neuron, (*stack, *neuron axes).
        granularity: which axes of a kernel are the neuron.

    >>> print(restore_kernel(jnp.zeros((2, 2)), jnp.ones((2, 2)), jnp.asarray([True, False])))
    [[0. 0.]
     [1. 1.]]
    """
    return jnp.where(spread(mask, tuned, granularity), base.astype(tuned.dtype), tuned)


def restore(base: Params, tuned: Params, masks: Mapping[str, Array], granularity: Granularity = "input") -> Params:
    """Return the tuned params with the base values of every restored neuron.

    All leaves without a mask are tuned's own arrays. This pure pytree transform works under jit and keeps shardings.

    Args:
        base: the params of BASE, with the kernels W_base.
        tuned: the params of TUNED, with the kernels W_tuned.
        masks: {path: bool (*stack, *neuron axes)}, True for a restored neuron.
        granularity: which axes of a kernel are the neuron.

    Raises:
        InputError: `base` or `tuned` has no leaf at the path of a mask.

    >>> tuned = {"a": {"kernel": jnp.ones((2, 1))}}
    >>> restored = restore({"a": {"kernel": jnp.zeros((2, 1))}}, tuned, {"a/kernel": jnp.asarray([False, True])})
    >>> print(restored["a"]["kernel"].ravel())
    [1. 0.]
    """
    old, new = get_leaves(base, masks), get_leaves(tuned, masks)
    restored: Leaves = {path: restore_kernel(old[path], new[path], mask, granularity) for path, mask in masks.items()}
    return put_leaves(tuned, restored)
