"""Plain restoration: base where the mask is True, tuned elsewhere (compensation `none`)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from hcnr_jax.method.neurons import Granularity, Leaves, Params, get_leaves, put_leaves, spread


def restore_kernel(base: Array, tuned: Array, mask: Array, granularity: Granularity = "input") -> Array:
    """Return W' = W_base where the neuron is restored, W_tuned elsewhere; (*stack, in, out), the dtype of `tuned`.

    Args:
      base: W_base (*stack, in, out).
      tuned: W_tuned, of the same shape.
      mask: True for a restored neuron, (*stack, neurons).
      granularity: which axis of the kernel is the neuron.

    >>> print(restore_kernel(jnp.zeros((2, 2)), jnp.ones((2, 2)), jnp.asarray([True, False])))
    [[0. 0.]
     [1. 1.]]
    """
    return jnp.where(spread(mask, tuned, granularity), base.astype(tuned.dtype), tuned)


def restore(base: Params, tuned: Params, masks: Mapping[str, Array], granularity: Granularity = "input") -> Params:
    """Return the tuned params with every masked neuron back at its base value; all other leaves are tuned's own arrays.

    This pure pytree transform works under jit and keeps shardings.

    Args:
      base: the params of W_base.
      tuned: the params of W_tuned.
      masks: {path: bool (*stack, neurons)}, True for a restored neuron.
      granularity: which axis of a kernel is the neuron.

    >>> tuned = {"a": {"kernel": jnp.ones((2, 1))}}
    >>> restored = restore({"a": {"kernel": jnp.zeros((2, 1))}}, tuned, {"a/kernel": jnp.asarray([False, True])})
    >>> print(restored["a"]["kernel"].ravel())
    [1. 0.]
    """
    old, new = get_leaves(base, masks), get_leaves(tuned, masks)
    restored: Leaves = {path: restore_kernel(old[path], new[path], mask, granularity) for path, mask in masks.items()}
    return put_leaves(tuned, restored)
