"""Rank the neurons of a kernel from their scores on honesty rows and on task rows.

    r_jk = s_hon * log(s_hon / s_task)            the paper's priority of neuron k in kernel j

To add a priority, write one function and add one entry to `PRIORITIES`.
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

# Scores are raised by this share of their kernel's mean before the logarithm. The share only has to keep the logarithm
# finite. The result hardly depends on the share from 0 to 1e-1.
FLOOR = 1e-12


def raw_priority(honesty: Float[Array, " n"], task: Float[Array, " n"]) -> Float[Array, " n"]:
    """Compute the paper's formula r = s_hon log(s_hon / s_task), without normalisation.

    >>> r = raw_priority(jnp.asarray([1.0, 4.0]), jnp.asarray([2.0, 2.0]))
    >>> [round(float(x), 3) for x in r]
    [-0.693, 2.773]
    """
    relative_honesty, honesty_mean = _relative(honesty)
    relative_task, task_mean = _relative(task)
    log_ratio = _safe_log(relative_honesty) - _safe_log(relative_task) + _safe_log(honesty_mean) - _safe_log(task_mean)
    largest = jnp.finfo(honesty.dtype).max
    return jnp.clip(honesty_mean * relative_honesty * log_ratio, -largest, largest)


def kl_priority(honesty: Float[Array, " n"], task: Float[Array, " n"]) -> Float[Array, " n"]:
    """Compute r = p log(p / q), where p and q are the honesty and task scores divided by their sums.

    r is the neuron's term of KL(p || q). The normalisation makes the ranking independent of the scales of the two
    losses. Without it, these scales make the logarithm nearly constant within a kernel.

    >>> r = kl_priority(jnp.asarray([1.0, 3.0]), jnp.asarray([2.0, 2.0]))
    >>> [round(float(x), 3) for x in r]
    [-0.173, 0.304]
    """
    relative_honesty, _ = _relative(honesty)
    relative_task, _ = _relative(task)
    p = relative_honesty / jnp.maximum(jnp.nansum(relative_honesty), _tiny(honesty))
    q = relative_task / jnp.maximum(jnp.nansum(relative_task), _tiny(task))
    return p * (_safe_log(p) - _safe_log(q))


def honesty_priority(honesty: Float[Array, " n"], task: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return r = s_hon, the ablation without the task term.

    >>> honesty_priority(jnp.asarray([1.0, 4.0]), jnp.asarray([2.0, 2.0])).tolist()
    [1.0, 4.0]
    """
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
    """Turn a ranking of one kernel, ([n], [n]) -> [n], into a ranking of a leaf with any stack of kernels.

    >>> rank = per_kernel(lambda honesty, task: honesty / jnp.sum(honesty))
    >>> rank(jnp.asarray([[1.0, 3.0], [2.0, 2.0]]), jnp.ones((2, 2)), jax.random.key(0), 1).tolist()
    [[0.25, 0.75], [0.5, 0.5]]
    """

    def rank(honesty: Array, task: Array, key: Array, neuron_axes: int) -> Array:
        shape = honesty.shape
        flat = (-1, int(np.prod(shape[len(shape) - neuron_axes :])))
        return jax.vmap(function)(honesty.reshape(flat), task.reshape(flat)).reshape(shape)

    return rank


def random_priority(honesty: Array, task: Array, key: Array, neuron_axes: int) -> Array:
    """Draw priorities r uniformly from [0, 1), the ablation without scores.

    Args:
        honesty: scores s_hon, which give only the shape and the dtype.
        task: scores s_task, not read.
        key: PRNG key.
        neuron_axes: not read.

    >>> random_priority(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jax.random.key(0), 1).shape
    (2, 3)
    """
    return jax.random.uniform(key, honesty.shape, honesty.dtype)


PRIORITIES: dict[str, Priority] = {
    "kl": Priority(per_kernel(kl_priority)),
    "raw": Priority(per_kernel(raw_priority)),
    "honesty": Priority(per_kernel(honesty_priority)),
    "random": Priority(random_priority, reads="key"),
}
"""Maps a name to its priority."""


def priorities(name: str, honesty: Leaves, task: Leaves, *, key: Array, neuron_axes: int = 1) -> Leaves:
    """Compute the priorities r_jk of all kernels. They are finite for finite scores.

    Args:
        name: an entry of `PRIORITIES`.
        honesty: scores s_hon, {path: (*stack, *neuron axes)}.
        task: scores s_task, of the same shapes.
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
    """Compute the logarithm of x after raising x to at least the smallest normal number.

    A kernel whose task scores are all 0 is therefore ranked by s_hon alone.
    """
    return jnp.log(jnp.maximum(x, _tiny(x)))


def _relative(scores: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Divide scores by their kernel's mean, then add FLOOR. Return the result and the mean.

    The division comes first, so that tiny scores do not underflow. A NaN score stays NaN but is left out of the mean,
    because a NaN mean would make the whole kernel one tie.
    """
    mean = jnp.nanmean(scores)
    relative = scores / jnp.maximum(mean, _tiny(scores))
    return jnp.where(mean > 0, relative + FLOOR, 0), mean
