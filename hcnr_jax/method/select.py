"""Select the honesty-critical neurons of the most perturbed kernels, as a mask (paper, stage 1).

    r_jk = s_hon * log(s_hon / s_task)                              priority of neuron k in kernel j
    M_j  = the round(R_IW * n) neurons of highest r                 in-weight selection, per kernel
    d_j  = ||(W_tuned - W_base) M_j||_F / ||W_base M_j||_F          kernel perturbation
    A_hc = M_j of the round(R_CW * L) kernels of highest d          cross-weight selection, over all L kernels

Counts are exact, and `round` rounds half to even. Ties between neurons go to the lower index. Ties between kernels go
to the kernel that comes first in `neurons.order_kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

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

Mask = TypeVar("Mask", Array, np.ndarray)


def exact_count(ratio: float, total: int) -> int:
    """Compute round(ratio * total), half to even.

    Raises:
        InputError: the ratio is outside (0, 1], or the count is 0, so that nothing would be selected.

    >>> exact_count(0.5, 5), exact_count(0.5, 7)
    (2, 4)
    """
    if not 0 < ratio <= 1:
        raise InputError(f"ratio {ratio}: expected a fraction in (0, 1]")
    count = round(ratio * total)
    if count == 0:
        raise InputError(f"ratio {ratio} of {total} rounds to 0: nothing would be selected; expected at least one")
    return count


def top_mask(priority: Float[Array, " n"], count: int) -> Bool[Array, " n"]:
    """Mark the `count` largest entries with True. Ties go to the lower index.

    NaN ranks last, whereas `jax.lax.top_k` would rank NaN first and select the neuron.

    >>> top_mask(jnp.asarray([1.0, 3.0, jnp.nan, 3.0]), 1).tolist()
    [False, True, False, False]
    """
    lowest = jnp.finfo(priority.dtype).min
    keys = jnp.where(jnp.isnan(priority), -jnp.inf, jnp.maximum(priority, lowest))
    order = jnp.argsort(keys, descending=True, stable=True)
    return jnp.zeros(priority.shape, bool).at[order[:count]].set(True)


def in_weight_mask(
    priority: Leaves, kernels: Mapping[str, Shaped], ratio: float, *, granularity: Granularity
) -> Leaves:
    """Select each kernel's candidates M_j, the round(R_IW * n) neurons of highest priority r_jk.

    Args:
        priority: r_jk, {path: (*stack, *neuron axes)}, without a unit.
        kernels: {path: kernel leaf (*stack, in, out), or a description of its shape}.
        ratio: R_IW, the share of a kernel's n neurons to select, in (0, 1].
        granularity: which axes of a kernel are the neuron.

    Returns:
        M_j, {path: bool}, shaped like the priorities and True at a candidate.

    Raises:
        InputError: as in `exact_count`.

    >>> kernels = {"q/kernel": jnp.zeros((4, 2))}
    >>> masks = in_weight_mask({"q/kernel": jnp.asarray([1.0, 4, 2, 3])}, kernels, 0.5, granularity="input")
    >>> masks["q/kernel"].tolist()
    [False, True, False, True]
    """

    def one(path: str) -> Array:
        leaf = kernels[path]
        total = neuron_count(leaf, granularity)
        masks = jax.vmap(lambda r: top_mask(r, exact_count(ratio, total)))(priority[path].reshape(-1, total))
        return masks.reshape(stack_shape(leaf) + neuron_shape(leaf, granularity))

    return {path: one(path) for path in kernels}


class Squares(NamedTuple):
    """Holds sums of squares over each neuron's weights.

    d_j needs nothing else of the weights, whatever the mask. One pass over the weights therefore serves any number of
    selections.

    Args:
        moved: sums of squares of W_tuned - W_base, (*stack, n).
        base: sums of squares of W_base, (*stack, n).
    """

    moved: Array
    base: Array


def neuron_squares(base: Array, tuned: Array, granularity: Granularity) -> Squares:
    """Sum the squares of W_tuned - W_base and of W_base for every neuron of a leaf (*stack, in, out).

    The sums are computed in float64 for a float64 base, else in float32.

    >>> squares = neuron_squares(jnp.ones((2, 2)), jnp.asarray([[1.0, 1.0], [3.0, 1.0]]), "input")
    >>> squares.moved.tolist(), squares.base.tolist()
    ([0.0, 4.0], [2.0, 2.0])
    """
    dtype = wide(base.dtype)
    axes: tuple[int, ...] = {"input": (-1,), "output": (-2,), "weight": ()}[granularity]
    moved = jnp.square(tuned.astype(dtype) - base.astype(dtype))
    return Squares(jnp.sum(moved, axis=axes), jnp.sum(jnp.square(base.astype(dtype)), axis=axes))


def perturbation(base: Array, tuned: Array, mask: Array, *, granularity: Granularity) -> Array:
    """Compute d_j of every kernel of a leaf, which is 0 for 0/0 and inf for x/0.

    Args:
        base: W_base, (*stack, in, out).
        tuned: W_tuned, of the same shape.
        mask: M_j, (*stack, *neuron axes), True at a candidate.
        granularity: which axes of a kernel are the neuron.

    Returns:
        d_j, (*stack,), without a unit.

    >>> base, tuned = jnp.ones((2, 2)), jnp.asarray([[1.0, 1.0], [3.0, 3.0]])
    >>> float(perturbation(base, tuned, jnp.asarray([False, True]), granularity="input"))
    2.0
    """
    return perturbation_of(neuron_squares(base, tuned, granularity), mask, len(stack_shape(base)))


def perturbation_of(squares: Squares, mask: Array, stack: int) -> Array:
    """Compute d_j like `perturbation`, from the squares of a leaf with `stack` stack axes.

    >>> squares = Squares(jnp.asarray([0.0, 8.0]), jnp.asarray([2.0, 2.0]))
    >>> float(perturbation_of(squares, jnp.asarray([False, True]), 0))
    2.0
    """
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
    """Rank all kernels by d_j, the most perturbed first. Ties go by block, then by the order of `kernels`.

    Raises:
        InputError: a kernel's candidates are zero in base but not in tuned (x/0), or its d_j is NaN. The message takes
            the kernel's name from `names`, where given.

    >>> kernels = {"q/kernel": jnp.zeros((2, 2, 3)), "o/kernel": jnp.zeros((2, 3, 2))}
    >>> ranked = rank_kernels({"q/kernel": jnp.asarray([1.0, 2.0]), "o/kernel": jnp.asarray([2.0, 0.0])}, kernels)
    >>> [(str(kernel), value) for kernel, value in ranked]
    [('o/kernel[0]', 2.0), ('q/kernel[1]', 2.0), ('q/kernel[0]', 1.0), ('o/kernel[1]', 0.0)]
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
    masks: Mapping[str, Mask],
    perturbations: Mapping[str, Array | np.ndarray],
    kernels: Mapping[str, Shaped],
    *,
    ratio: float,
    names: Mapping[Kernel, str] | None = None,
) -> tuple[dict[str, Mask], list[Kernel]]:
    """Keep the candidates of the round(R_CW * L) most perturbed kernels, and clear the masks of the others.

    Args:
        masks: the candidates M_j, {path: bool (*stack, *neuron axes)}.
        perturbations: d_j, {path: (*stack,)}, without a unit.
        kernels: {path: kernel leaf (*stack, in, out), or a description of its shape}; L kernels in all.
        ratio: R_CW, the share of the L kernels to keep, in (0, 1].
        names: {kernel: its name in an error message}; by default the kernel's path and index.

    Returns:
        The set A_hc as masks, on the host where the candidates are, and the kept kernels in data-flow order (block,
        then the order of `kernels`).

    Raises:
        InputError: as in `exact_count` and `rank_kernels`.

    >>> kernels = {"q/kernel": jnp.zeros((2, 1)), "o/kernel": jnp.zeros((1, 2))}
    >>> masks = {"q/kernel": jnp.asarray([True, False]), "o/kernel": jnp.asarray([True])}
    >>> d = {"q/kernel": jnp.asarray(0.1), "o/kernel": jnp.asarray(0.3)}
    >>> a_hc, kept = cross_weight_mask(masks, d, kernels, ratio=0.5)
    >>> {path: mask.tolist() for path, mask in a_hc.items()}, [str(kernel) for kernel in kept]
    ({'q/kernel': [False, False], 'o/kernel': [True]}, ['o/kernel'])
    """
    ranked = rank_kernels(perturbations, kernels, names)
    kept = {kernel for kernel, _ in ranked[: exact_count(ratio, len(ranked))]}

    def one(path: str, mask: Mask) -> Mask:
        stack = stack_shape(kernels[path])
        keep = np.zeros(stack, bool)
        for kernel in kept:
            if kernel.path == path:
                keep[kernel.index] = True
        return mask & keep.reshape(stack + (1,) * (mask.ndim - len(stack)))

    return {path: one(path, mask) for path, mask in masks.items()}, [k for k in order_kernels(kernels) if k in kept]
