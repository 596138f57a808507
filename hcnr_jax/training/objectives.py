"""Defines the training objectives. Each is `(params, batch, key) -> (total, weight)`, and the loss is total / weight.

    sft    -sum log p(token | before) / number of completion tokens
    dpo    -log sigmoid(beta ((log p(y+) - log q(y+)) - (log p(y-) - log q(y-))))           arXiv 2305.18290, eq. 7
    orpo   -mean log p(y+) - beta log sigmoid(log odds(y+) - log odds(y-))                  arXiv 2403.07691, eq. 6

Here y+ is the chosen and y- the rejected completion of one prompt, p the model in training and q the model before it.
`dpo_values` and `orpo_values` take only log-likelihoods, so that tests can compare them with other implementations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from hcnr_jax.data.encode import Batch
from hcnr_jax.models.likelihood import completion_nll
from hcnr_jax.training.trainer import Objective

Logits = Callable[[PyTree, Int[Array, "b t"], Bool[Array, "b t"]], Float[Array, "b t v"]]
"""Maps `(params, tokens, attention_mask)` to logits, as `logits_of(model)` does."""


class Pairs(NamedTuple):
    """Holds a batch of preference pairs as a pytree; each row is a pair of two completions of one prompt.

    Attributes:
        chosen: prompts with the chosen completions.
        rejected: the same prompts with the rejected completions.
        reference_chosen: log-likelihoods in nats of the chosen completions under the model before training, (rows,).
            They are zero where the objective has no reference.
        reference_rejected: the same for the rejected completions.
    """

    chosen: Batch
    rejected: Batch
    reference_chosen: np.ndarray | jax.Array
    reference_rejected: np.ndarray | jax.Array


def logits_of(model: nn.Module) -> Logits:
    """Return the forward pass of a causal language model in Linen, such as a Decoder."""

    def logits(params: PyTree, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t v"]:
        return jnp.asarray(model.apply({"params": params}, tokens, mask))

    return logits


def sft(logits: Logits) -> Objective:
    """Make the objective of supervised fine-tuning: `-sum log p(token | before) / number of completion tokens`.

    The mean is over the completion tokens of the batch, as in transformers and TRL. A long completion therefore has
    more weight than a short one. A mean over rows of each row's mean would give rows equal weight.
    """

    def objective(params: PyTree, batch: Any, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        scores = logits(params, batch.tokens, batch.attention_mask)
        totals = completion_nll(scores, batch.tokens, batch.completion_mask, reduction="sum")
        return jnp.sum(totals), jnp.sum(batch.completion_mask[:, 1:], dtype=jnp.int32).astype(totals.dtype)

    return objective


def dpo_values(
    chosen: Float[Array, " b"],
    rejected: Float[Array, " b"],
    reference_chosen: Float[Array, " b"],
    reference_rejected: Float[Array, " b"],
    beta: float,
) -> Float[Array, " b"]:
    """Compute `-log sigmoid(beta ((chosen - reference_chosen) - (rejected - reference_rejected)))` of every pair.

    This is TRL's `loss_type="sigmoid"` without label smoothing.

    Args:
        chosen: log p(y+) in nats, summed over the completion's tokens, (pairs,).
        rejected: log p(y-), likewise.
        reference_chosen: log q(y+), likewise.
        reference_rejected: log q(y-), likewise.
        beta: the beta of the equation.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -jax.nn.log_sigmoid(beta * margin)


def orpo_values(chosen: Float[Array, " b"], rejected: Float[Array, " b"], beta: float) -> Float[Array, " b"]:
    """Compute `-chosen - beta log sigmoid(log odds(chosen) - log odds(rejected))`, log odds(l) = l - log(1 - exp l).

    The odds-ratio term is TRL's. TRL's likelihood term counts the prompt's tokens too; here, as in the paper, only the
    completion's tokens count.

    Args:
        chosen: mean log-likelihood per completion token of y+ in nats, (pairs,).
        rejected: the same of y-.
        beta: the beta of the equation.
    """
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * jax.nn.log_sigmoid(log_odds)


def _log1mexp(x: Float[Array, " b"]) -> Float[Array, " b"]:
    """Compute log(1 - exp x) for x < 0. A likelihood that rounds to 1 counts as the nearest number below 1."""
    x = jnp.minimum(x, -float(jnp.finfo(x.dtype).eps))
    return jnp.log(-jnp.expm1(x))


def dpo(logits: Logits, beta: float = 0.1) -> Objective:
    """Make the objective of direct preference optimisation on a batch of `Pairs`; each pair has weight 1."""

    def objective(params: PyTree, batch: Pairs, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        chosen, rejected = (-_nll(logits, params, side, "sum") for side in (batch.chosen, batch.rejected))
        reference_chosen, reference_rejected = map(jnp.asarray, (batch.reference_chosen, batch.reference_rejected))
        values = dpo_values(chosen, rejected, reference_chosen, reference_rejected, beta)
        return jnp.sum(values), jnp.asarray(values.shape[0], values.dtype)

    return objective


def orpo(logits: Logits, beta: float = 0.1) -> Objective:
    """Make the objective of odds-ratio preference optimisation on a batch of `Pairs`; each pair has weight 1."""

    def objective(params: PyTree, batch: Pairs, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        chosen, rejected = (-_nll(logits, params, side, "mean") for side in (batch.chosen, batch.rejected))
        values = orpo_values(chosen, rejected, beta)
        return jnp.sum(values), jnp.asarray(values.shape[0], values.dtype)

    return objective


def _nll(logits: Logits, params: PyTree, batch: Batch, reduction: Any) -> Float[Array, " b"]:
    tokens = jnp.asarray(batch.tokens)
    scores = logits(params, tokens, jnp.asarray(batch.attention_mask))
    return completion_nll(scores, tokens, jnp.asarray(batch.completion_mask), reduction)


def log_likelihoods(logits: Logits, params: PyTree, batch: Batch, *, rows: int = 64) -> Float[np.ndarray, " b"]:
    """Compute the log-likelihood of every row's completion in nats, summed over its tokens.

    `Pairs` takes these values, under the model before training, as its reference.

    Args:
        logits: the forward pass.
        params: the parameters of the model before training, q in the equations.
        batch: prompts with completions.
        rows: rows per forward pass.
    """
    step = jax.jit(lambda params, part: -_nll(logits, params, part, "sum"))
    found = []
    for start in range(0, len(batch.tokens), rows):
        part = Batch(*(np.asarray(leaf)[start : start + rows] for leaf in batch))
        found.append(np.asarray(step(params, _filled(part, min(rows, len(batch.tokens)))))[: len(part.tokens)])
    return np.concatenate(found)


def _filled(batch: Batch, rows: int) -> Batch:
    """Pad the batch to `rows` rows, so that the last part shares the compilation of the other parts."""
    missing = rows - len(batch.tokens)
    return Batch(*(np.pad(np.asarray(leaf), ((0, missing), (0, 0))) for leaf in batch))
