"""From scores to a mask: the honesty-critical neurons of the most perturbed kernels (paper, stage 1).

    r_jk = s_hon * log(s_hon / s_task)                              priority of neuron k in kernel j
    M_j  = the round(R_IW * n) neurons of highest r                 in-weight selection, per kernel
    d_j  = ||(W_tuned - W_base) M_j||_F / ||W_base M_j||_F          kernel perturbation
    A_hc = M_j of the round(R_CW * L) kernels of highest d          cross-weight selection, over all L kernels

Counts are exact and ties go to the lower index (kernels: see `neurons.order_kernels`); `round` is half-to-even.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import (
    Granularity,
    Kernel,
    Leaves,
    Shaped,
    neuron_count,
    neuron_shape,
    order_kernels,
    stack_shape,
    wide,
)


def exact_count(ratio: float, total: int) -> int:
    """round(ratio * total), half to even; InputError where nothing would be selected or the ratio is outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise InputError(f"ratio {ratio}: expected a fraction in (0, 1]")
    count = round(ratio * total)
    if count == 0:
        raise InputError(f"ratio {ratio} of {total} rounds to 0: nothing would be selected; expected at least one")
    return count


def top_mask(priority: Float[Array, " n"], count: int) -> Bool[Array, " n"]:
    """True at the `count` largest entries; ties go to the lower index, NaN ranks last (top_k would rank it first)."""
    lowest = jnp.finfo(priority.dtype).min
    keys = jnp.where(jnp.isnan(priority), -jnp.inf, jnp.maximum(priority, lowest))
    order = jnp.argsort(keys, descending=True, stable=True)
    return jnp.zeros(priority.shape, bool).at[order[:count]].set(True)


def in_weight_mask(
    priority: Leaves, kernels: Mapping[str, Shaped], ratio: float, *, granularity: Granularity
) -> Leaves:
    """Candidates: in each kernel the round(ratio * n) neurons of highest priority. Masks shaped like the priorities."""

    def one(path: str) -> Array:
        leaf = kernels[path]
        total = neuron_count(leaf, granularity)
        masks = jax.vmap(lambda r: top_mask(r, exact_count(ratio, total)))(priority[path].reshape(-1, total))
        return masks.reshape(stack_shape(leaf) + neuron_shape(leaf, granularity))

    return {path: one(path) for path in kernels}


class Squares(NamedTuple):
    """Sums of squares over each neuron's weights, (*stack, n): of W_tuned - W_base and of W_base.

    All that d_j needs of the weights, whatever the mask: one pass over them serves any number of selections.
    """

    moved: Array
    base: Array


def neuron_squares(base: Array, tuned: Array, granularity: Granularity) -> Squares:
    """The squares of every kernel of a leaf (*stack, in, out); in float32 at least."""
    dtype = wide(base.dtype)
    axes: tuple[int, ...] = {"input": (-1,), "output": (-2,), "weight": ()}[granularity]
    moved = jnp.square(tuned.astype(dtype) - base.astype(dtype))
    return Squares(jnp.sum(moved, axis=axes), jnp.sum(jnp.square(base.astype(dtype)), axis=axes))


def perturbation(base: Array, tuned: Array, mask: Array, *, granularity: Granularity) -> Array:
    """d_j (*stack,) of every kernel of a leaf (*stack, in, out): 0 for 0/0, inf for x/0."""
    return perturbation_of(neuron_squares(base, tuned, granularity), mask, len(stack_shape(base)))


def perturbation_of(squares: Squares, mask: Array, stack: int) -> Array:
    """The same from the squares of a leaf with `stack` stack axes."""
    axes = tuple(range(stack, mask.ndim))

    def norm(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.where(mask, x, 0), axis=axes))

    moved = norm(squares.moved)
    return jnp.where(moved == 0, 0, moved / norm(squares.base))


def rank_kernels(
    perturbations: Mapping[str, Array | np.ndarray],
    kernels: Mapping[str, Shaped],
    names: Mapping[Kernel, str] | None = None,
) -> list[tuple[Kernel, float]]:
    """All kernels with their d_j, the most perturbed first, ties by block and then by the order of `kernels`.

    InputError names a kernel (as in `names`, where given) whose candidates are zero in base but not in tuned (x/0), or
    whose d_j is NaN.
    """
    values = {path: np.asarray(leaf, np.float64) for path, leaf in perturbations.items()}
    order = order_kernels(kernels)
    ranked = [(kernel, float(values[kernel.path][kernel.index])) for kernel in order]
    for kernel, value in ranked:
        name = (names or {}).get(kernel, str(kernel))
        if np.isinf(value):
            raise InputError(
                f"kernel {name}: the selected neurons are all zero in BASE but not in TUNED, so that their relative "
                "perturbation is x/0; expected a base kernel with weights. Is BASE the model TUNED was trained from?"
            )
        if np.isnan(value):
            raise InputError(f"kernel {name}: the perturbation is NaN; the weights of BASE or TUNED are not finite")
    return sorted(ranked, key=lambda item: -item[1])


def cross_weight_mask(
    masks: Leaves,
    perturbations: Mapping[str, Array | np.ndarray],
    kernels: Mapping[str, Shaped],
    *,
    ratio: float,
    names: Mapping[Kernel, str] | None = None,
) -> tuple[Leaves, list[Kernel]]:
    """A_hc: the candidate masks cleared outside the round(ratio * L) most perturbed kernels, and those kernels.

    The kept kernels come in data-flow order (block, then the order of `kernels`).
    """
    ranked = rank_kernels(perturbations, kernels, names)
    kept = {kernel for kernel, _ in ranked[: exact_count(ratio, len(ranked))]}

    def one(path: str, mask: Array) -> Array:
        stack = stack_shape(kernels[path])
        keep = np.zeros(stack, bool)
        for kernel in kept:
            if kernel.path == path:
                keep[kernel.index] = True
        return mask & jnp.asarray(keep).reshape(stack + (1,) * (mask.ndim - len(stack)))

    return {path: one(path, mask) for path, mask in masks.items()}, [k for k in order_kernels(kernels) if k in kept]
