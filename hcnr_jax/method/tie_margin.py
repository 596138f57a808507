"""Measure how certain a mask is: the tie margin at the cut of a ranking (docs/method.md, 1.5).

The cut lies between the last neuron that a ranking selects and the first neuron that the ranking leaves out. Scores are
sums whose last digits depend on the order of summation. That order depends on the mesh, the microbatch and the device.
Only neurons whose priorities lie within this rounding of the cut may change sides between machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hcnr_jax.method.priority import PRIORITIES, PriorityName
from hcnr_jax.method.program import Program
from hcnr_jax.method.select import top_mask

# Each neuron's rounding is a random draw, and a kernel's rounding is the root mean square of these draws. This multiple
# of the root mean square covers a single draw.
DRAWS = 4.0


class Cut(NamedTuple):
    """Holds the tie margin of one kernel's ranking.

    Args:
        gap: priority of the last selected neuron minus that of the first neuron left out; inf where none is left out.
        rounding: the part of the gap that rounding can remove, in the priority's unit.
        near: True at a neuron of either side that may change sides. No neuron is near where gap > rounding.
    """

    gap: Float[Array, ""]
    rounding: Float[Array, ""]
    near: Bool[Array, " n"]


@partial(Program, static_argnums=(0, 3))
def cut_of(
    name: PriorityName,
    honesty: Float[Array, " n"],
    task: Float[Array, " n"],
    count: int,
    rounding: Float[Array, ""] | float,
) -> Cut:
    """Compute the tie margin of the mask that `select.top_mask` makes.

    Each priority r_jk is computed again from scores moved by DRAWS times `rounding`. Half of the neurons move up and
    the others move down, so that the normalisers of the priorities stay the same. The directions of the two score sets
    combine in four ways, and all four are tried.

    Args:
        name: an entry of `PRIORITIES`.
        honesty: scores s_hon of one kernel, (n,).
        task: scores s_task of the kernel, (n,).
        count: how many of the n neurons the mask selects.
        rounding: relative rounding of the scores, without a unit (see `relative_rounding`).

    >>> scores = jnp.asarray([8.0, 4.0, 3.9999, 1.0])
    >>> cut = cut_of("honesty", scores, scores, 2, 1e-5)
    >>> round(float(cut.gap), 4), round(float(cut.rounding), 4), cut.near.tolist()
    (0.0001, 0.0003, [False, True, True, False])
    """

    def rank(honesty: Array, task: Array) -> Array:
        return PRIORITIES[name].rank(honesty, task, jax.random.key(0), 1)

    priority = rank(honesty, task)
    sign = jnp.where(jnp.arange(priority.shape[0]) % 2 == 0, 1, -1).astype(priority.dtype)
    step = DRAWS * jnp.asarray(rounding, priority.dtype) * sign
    ways = [rank(honesty * (1 + a * step), task * (1 + b * step)) for a in (1, -1) for b in (1, -1)]
    reach = jnp.max(jnp.stack([jnp.abs(moved - priority) for moved in ways]), axis=0)
    taken = top_mask(priority, count)
    if count == priority.shape[0]:
        return Cut(jnp.asarray(jnp.inf, priority.dtype), jnp.zeros((), priority.dtype), ~taken)
    gap = jnp.min(jnp.where(taken, priority, jnp.inf)) - jnp.max(jnp.where(taken, -jnp.inf, priority))
    low, high = (
        jnp.min(jnp.where(taken, priority - reach, jnp.inf)),
        jnp.max(jnp.where(taken, -jnp.inf, priority + reach)),
    )
    near = jnp.where(taken, priority - reach <= high, priority + reach >= low)
    return Cut(gap, gap - (low - high), near)


def relative_rounding(scores: Float[np.ndarray, "*k n"], again: Float[np.ndarray, "*k n"]) -> Float[np.ndarray, "*k"]:
    """Compute the root mean square over neurons of the relative difference between two computations of the same scores.

    The result is float64 and has no unit. It is at least half a unit of the scores' dtype, because every computation
    has that much rounding.

    >>> relative_rounding(np.asarray([[1.0, 2.0]]), np.asarray([[1.1, 2.2]])).round(6).tolist()
    [0.1]
    """
    first, second = np.asarray(scores, np.float64), np.asarray(again, np.float64)
    relative = np.where(first > 0, (second - first) / np.where(first > 0, first, 1), 0)
    least = float(np.finfo(scores.dtype).eps) / 2
    return np.maximum(np.sqrt(np.mean(np.square(relative), axis=-1)), least)


class KernelCut(NamedTuple):
    """Holds the tie margin of the ranking of kernels by d_j.

    Args:
        gap: the last kept d_j minus the first d_j left out, relative to the last kept d_j; inf where none is left out.
        rounding: the part of the gap that rounding can remove, relative to the last kept d_j.
        near: places in the ranking of the kernels that may change sides.
    """

    gap: float
    rounding: float
    near: list[int]


def kernel_cut(perturbations: Sequence[float], weights: Sequence[int], count: int) -> KernelCut:
    """Compute the tie margin of the `count` kernels of largest d_j.

    The rounding of d_j is a bound and not a measurement. A pairwise sum of n squares is exact within log2(n) half
    units.

    Args:
        perturbations: d_j in decreasing order, without a unit.
        weights: the number of weights of each kernel, in the same order.
        count: how many kernels are kept.

    >>> cut = kernel_cut([0.5, 0.4, 0.1], [4096, 4096, 4096], 2)
    >>> print(round(cut.gap, 3), cut.near)
    0.75 []
    """
    if count == len(perturbations):
        return KernelCut(float("inf"), 0.0, [])
    unit = float(jnp.finfo(jnp.float32).eps) / 2
    values = np.asarray(perturbations, np.float64)
    reach = values * unit * (np.log2(np.maximum(weights, 2)) + 2)
    low, high = np.min((values - reach)[:count]), np.max((values + reach)[count:])
    gap, scale = values[count - 1] - values[count], values[count - 1] or 1.0
    taken = np.arange(len(values)) < count
    near = np.where(taken, values - reach <= high, values + reach >= low)
    return KernelCut(gap / scale, (gap - (low - high)) / scale, np.flatnonzero(near).tolist())
