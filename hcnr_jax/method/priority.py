"""Priorities: how the neurons of a kernel are ranked from their scores on honesty rows and on task rows.

    r_jk = s_hon * log(s_hon / s_task)            the paper's priority of neuron k in kernel j

A further priority is one function and one entry of `PRIORITIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hcnr_jax.method.neurons import Leaves

PriorityName = Literal["kl", "raw", "honesty", "random"]

# Scores are raised by this share of their kernel's mean before the logarithm: it only has to keep log finite, and the
# result is flat in it from 0 to 1e-1.
FLOOR = 1e-12


def raw_priority(honesty: Float[Array, " n"], task: Float[Array, " n"]) -> Float[Array, " n"]:
    """The paper's formula r = s_hon log(s_hon / s_task), without normalisation."""
    relative_honesty, honesty_mean = _relative(honesty)
    relative_task, task_mean = _relative(task)
    log_ratio = _safe_log(relative_honesty) - _safe_log(relative_task) + _safe_log(honesty_mean) - _safe_log(task_mean)
    largest = jnp.finfo(honesty.dtype).max
    return jnp.clip(honesty_mean * relative_honesty * log_ratio, -largest, largest)


def kl_priority(honesty: Float[Array, " n"], task: Float[Array, " n"]) -> Float[Array, " n"]:
    """p log(p / q) with p, q the scores normalised to sum 1: the neuron's summand of KL(honesty || task).

    Frees the ranking of the two losses' scales, which otherwise make the logarithm nearly constant within a kernel.
    """
    relative_honesty, _ = _relative(honesty)
    relative_task, _ = _relative(task)
    p = relative_honesty / jnp.maximum(jnp.nansum(relative_honesty), _tiny(honesty))
    q = relative_task / jnp.maximum(jnp.nansum(relative_task), _tiny(task))
    return p * (_safe_log(p) - _safe_log(q))


def honesty_priority(honesty: Float[Array, " n"], task: Float[Array, " n"]) -> Float[Array, " n"]:
    """The ablation without the task term: r = s_hon."""
    return honesty


class Priority(NamedTuple):
    """Describes one way to rank neurons.

    Args:
        rank: (honesty scores, task scores, PRNG key, trailing neuron axes) -> priorities shaped like the scores.
        reads: `scores` where the ranking depends on the scores, `key` where it depends on the PRNG key alone.
    """

    rank: Callable[[Array, Array, Array, int], Array]
    reads: Literal["scores", "key"] = "scores"


def per_kernel(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Array, int], Array]:
    """Turn a ranking of one kernel, ([n], [n]) -> [n], into a ranking of a leaf with any stack of kernels."""

    def rank(honesty: Array, task: Array, key: Array, neuron_axes: int) -> Array:
        shape = honesty.shape
        flat = (-1, int(np.prod(shape[len(shape) - neuron_axes :])))
        return jax.vmap(function)(honesty.reshape(flat), task.reshape(flat)).reshape(shape)

    return rank


def random_priority(honesty: Array, task: Array, key: Array, neuron_axes: int) -> Array:
    """Draw priorities uniformly: the ablation without scores."""
    return jax.random.uniform(key, honesty.shape, honesty.dtype)


PRIORITIES: dict[str, Priority] = {
    "kl": Priority(per_kernel(kl_priority)),
    "raw": Priority(per_kernel(raw_priority)),
    "honesty": Priority(per_kernel(honesty_priority)),
    "random": Priority(random_priority, reads="key"),
}
"""Name -> priority."""


def priorities(name: str, honesty: Leaves, task: Leaves, *, key: Array, neuron_axes: int = 1) -> Leaves:
    """Rank the neurons of all kernels; the result is never NaN or Inf for finite scores.

    Args:
        name: an entry of `PRIORITIES`.
        honesty: scores s_hon, {path: (*stack, n)}.
        task: scores s_task, shaped alike.
        key: PRNG key, split over the paths in alphabetical order.
        neuron_axes: trailing axes that count neurons (2 for weight granularity).

    >>> scores = {"q/kernel": jnp.asarray([1.0, 4.0])}, {"q/kernel": jnp.asarray([2.0, 2.0])}
    >>> print(priorities("honesty", *scores, key=jax.random.key(0))["q/kernel"])
    [1. 4.]
    """
    keys = dict(zip(sorted(honesty), jax.random.split(key, len(honesty)), strict=True))
    rank = PRIORITIES[name].rank
    return {path: rank(honesty[path], task[path], keys[path], neuron_axes) for path in honesty}


def _tiny(x: Array) -> Array:
    return jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype)


def _safe_log(x: Array) -> Array:
    """log of x raised to the smallest normal number: a kernel whose task scores are all 0 is ranked by s_hon alone."""
    return jnp.log(jnp.maximum(x, _tiny(x)))


def _relative(scores: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Scores over their kernel's mean, raised by FLOOR; the division first, so that tiny scores do not underflow.

    A NaN score stays NaN and leaves the others alone: taken into the mean it would make the whole kernel one tie.
    """
    mean = jnp.nanmean(scores)
    relative = scores / jnp.maximum(mean, _tiny(scores))
    return jnp.where(mean > 0, relative + FLOOR, 0), mean
