"""Objective of the last step: a model learns from two teachers, BASE on honesty rows and TUNED on task rows.

    J = mean over honesty rows KL(base || model) + w * mean over task rows KL(tuned || model)

KL is the mean over a row's completion tokens. The teachers' distributions are computed once and kept as their `TOP`
most likely tokens and one more event, any other token. The KL over these events is at most the full KL, and equal to it
if the vocabulary has no more than `TOP` tokens.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from hcnr_jax.data.encode import Batch
from hcnr_jax.training.trainer import Objective

# Tokens of a teacher's distribution that are kept for a position.
TOP = 128
# Rows of a step, and float32 copies of what learns: weights, the best weights so far, gradient, and AdamW's two means.
BATCH, LEARNING_COPIES = 64, 5
# Probability below which all other tokens together count as impossible.
LEAST = 1e-7

Outputs = Callable[[PyTree, Any], tuple[Float[Array, "n t v"], Float[Array, "n t"]]]
"""Maps `(params, batch)` to logits and the weight of each position, which sum to 1 over a row's completion."""


class Lessons(NamedTuple):
    """Holds rows with their teacher's distributions, as a pytree of arrays with the rows first.

    Attributes:
        rows: tokens and masks (rows, t).
        top: the teacher's most likely tokens (rows, positions, k).
        log_probs: their log-probabilities in nats (rows, positions, k).
        weight: each row's weight in J, times the number of all rows (rows,).
    """

    rows: Batch
    top: np.ndarray
    log_probs: np.ndarray
    weight: np.ndarray


def two_teachers(outputs: Outputs) -> Objective:
    """Make the objective J as the mean over a batch of `Lessons`.

    Args:
        outputs: the model that learns.
    """

    def objective(params: PyTree, batch: Lessons, key: jax.Array) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        divergences = _divergences(outputs, params, batch)
        return jnp.sum(batch.weight * divergences), jnp.asarray(float(divergences.shape[0]), jnp.float32)

    return objective


def row_divergences(outputs: Outputs, params: PyTree, batch: Lessons) -> Float[Array, " n"]:
    """Compute every row's KL(teacher || model) in nats, as `two_teachers` does but without weights."""
    return _jitted(outputs, params, batch)


def write_lessons(
    outputs: Outputs, teacher: PyTree, batches: Iterable[Batch], weight: float, top: int = TOP
) -> list[Lessons]:
    """Ask a teacher once for its distributions at the completions of some rows.

    Args:
        outputs: the teacher's forward pass.
        teacher: its params.
        batches: the rows, in microbatches.
        weight: weight of each row in J, times the number of all rows.
        top: number of tokens to keep for a position.
    """
    found = []
    for batch in batches:
        log_probs, tokens = jax.device_get(_most_likely(outputs, top, teacher, batch))
        rows = Batch(*(np.asarray(leaf) for leaf in batch))
        found.append(Lessons(rows, tokens, log_probs, np.full(len(tokens), weight, np.float32)))
    return found


def _divergences(outputs: Outputs, params: PyTree, batch: Lessons) -> Float[Array, " n"]:
    logits, weights = outputs(params, batch.rows)
    now = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), batch.top, axis=-1)
    before = jnp.asarray(batch.log_probs)
    chance = jnp.exp(before)
    kept = jnp.sum(chance * (before - now), axis=-1)
    rest, rest_now = (jnp.maximum(1 - jnp.sum(jnp.exp(x), axis=-1), 0) for x in (before, now))
    other = rest * (jnp.log(jnp.maximum(rest, LEAST)) - jnp.log(jnp.maximum(rest_now, LEAST)))
    return jnp.sum(weights.astype(jnp.float32) * (kept + other), axis=-1)


_jitted = partial(jax.jit, static_argnums=0)(_divergences)


@partial(jax.jit, static_argnums=(0, 1))
def _most_likely(outputs: Outputs, top: int, params: PyTree, batch: Batch) -> tuple[Array, Array]:
    logits = outputs(params, batch)[0].astype(jnp.float32)
    log_probs, tokens = jax.lax.top_k(jax.nn.log_softmax(logits), min(top, logits.shape[-1]))
    return log_probs, tokens
