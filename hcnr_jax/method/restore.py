"""Plain restoration: base where the mask is True, tuned elsewhere (compensation `none`)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from hcnr_jax.method.neurons import Granularity, Leaves, Params, get_leaves, put_leaves, spread


def restore_kernel(base: Array, tuned: Array, mask: Array, granularity: Granularity = "input") -> Array:
    """W' = W_base where the neuron is restored, W_tuned elsewhere; (*stack, in, out), the dtype of `tuned`."""
    return jnp.where(spread(mask, tuned, granularity), base.astype(tuned.dtype), tuned)


def restore(base: Params, tuned: Params, masks: Mapping[str, Array], granularity: Granularity = "input") -> Params:
    """The tuned params with every masked neuron back at its base value; all other leaves are tuned's own arrays.

    masks: {path: bool (*stack, neurons)}. A pure pytree transform: works under jit and keeps shardings.
    """
    old, new = get_leaves(base, masks), get_leaves(tuned, masks)
    restored: Leaves = {path: restore_kernel(old[path], new[path], mask, granularity) for path, mask in masks.items()}
    return put_leaves(tuned, restored)
