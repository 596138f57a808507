"""How sure a mask is: the gap at the cut of a ranking, and which neurons rounding could have put on its other side.

Scores are sums whose last digits hang on the order of summation, and with it on the mesh, the microbatch and the
device. Two neurons whose priorities are nearer than that to the cut may change places between machines; all others may
not.
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
from hcnr_jax.method.select import top_mask

# The rounding of a single neuron is drawn, its kernel's is a root mean square: so many of these cover the draw.
DRAWS = 4.0


class Cut(NamedTuple):
    """Of one kernel's ranking.

    gap: priority of the last neuron taken less that of the first one left; inf where none is left. rounding: how much
    of it rounding may take away. near: neurons of both sides that may change places; none where gap > rounding.
    """

    gap: Float[Array, ""]
    rounding: Float[Array, ""]
    near: Bool[Array, " n"]


@partial(jax.jit, static_argnums=(0, 3))
def cut_of(
    name: PriorityName,
    honesty: Float[Array, " n"],
    task: Float[Array, " n"],
    count: int,
    rounding: Float[Array, ""] | float,
) -> Cut:
    """The cut of `select.top_mask` after `count` neurons. rounding: of the scores, relative (see `relative_rounding`).

    Each neuron's priority is taken anew with its scores moved by DRAWS times `rounding`, up for half of the neurons and
    down for the others, so that what a priority is normalised by stays put, in all four ways for the two sets.
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
    """Root mean square over neurons of the relative difference of two computations of the same scores; float64.

    Not below half a unit of their dtype, which no computation is free of.
    """
    first, second = np.asarray(scores, np.float64), np.asarray(again, np.float64)
    relative = np.where(first > 0, (second - first) / np.where(first > 0, first, 1), 0)
    least = float(np.finfo(scores.dtype).eps) / 2
    return np.maximum(np.sqrt(np.mean(np.square(relative), axis=-1)), least)


class KernelCut(NamedTuple):
    """Of the ranking of kernels by d_j: the same, relative to the least d_j taken; `near` are places in the ranking."""

    gap: float
    rounding: float
    near: list[int]


def kernel_cut(perturbations: Sequence[float], weights: Sequence[int], count: int) -> KernelCut:
    """The cut of kernels ranked from the largest d_j on, after `count`. weights: how many each has.

    Rounding of a d_j is bounded, not measured: sums of n squares in pairs are within log2(n) half units.
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
