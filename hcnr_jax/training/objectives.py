"""What training minimises: each objective is `(params, batch, key) -> (total, weight)`, the loss their quotient.

    sft    -sum log p(token | before) / number of completion tokens
    dpo    -log sigmoid(beta ((log p(y+) - log q(y+)) - (log p(y-) - log q(y-))))           arXiv 2305.18290, eq. 7
    orpo   -mean log p(y+) - beta log sigmoid(log odds(y+) - log odds(y-))                  arXiv 2403.07691, eq. 6

with y+ the chosen and y- the rejected completion of one prompt, p the model in training and q the one it started from.
Per-pair values are functions of log-likelihoods alone, so that they can be held against other implementations.
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
"""`(params, tokens, attention_mask) -> logits`, such as a Decoder's `apply`."""


class Pairs(NamedTuple):
    """A pytree of preference pairs, one a row: two completions of one prompt.

    reference_chosen, reference_rejected: log-likelihoods in nats under the model training starts from, (b,); zeros
    where the objective has no reference.
    """

    chosen: Batch
    rejected: Batch
    reference_chosen: np.ndarray | jax.Array
    reference_rejected: np.ndarray | jax.Array


def logits_of(model: nn.Module) -> Logits:
    """The forward pass of a causal language model in Linen, such as a Decoder."""

    def logits(params: PyTree, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t v"]:
        return jnp.asarray(model.apply({"params": params}, tokens, mask))

    return logits


def sft(logits: Logits) -> Objective:
    """Supervised fine-tuning: `-sum log p(token | before) / number of tokens` over a batch's completion tokens.

    The mean is over the batch's completion tokens, as in transformers and TRL, so a long completion weighs more than a
    short one; the mean over rows of each row's mean would weigh rows equally.
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
    """`-log sigmoid(beta ((chosen - reference_chosen) - (rejected - reference_rejected)))`, summed log-likelihoods.

    TRL's `loss_type="sigmoid"` without label smoothing.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -jax.nn.log_sigmoid(beta * margin)


def orpo_values(chosen: Float[Array, " b"], rejected: Float[Array, " b"], beta: float) -> Float[Array, " b"]:
    """`-chosen - beta log sigmoid(log odds(chosen) - log odds(rejected))`, log odds(l) = l - log(1 - exp l).

    chosen, rejected: mean log-likelihoods per completion token. The odds-ratio term is TRL's. TRL's likelihood term
    counts the prompt's tokens too; here, as in the paper, only the completion's do.
    """
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * jax.nn.log_sigmoid(log_odds)


def _log1mexp(x: Float[Array, " b"]) -> Float[Array, " b"]:
    """log(1 - exp x) for x < 0. A likelihood that rounds to 1 is read as the nearest number below it."""
    x = jnp.minimum(x, -float(jnp.finfo(x.dtype).eps))
    return jnp.log(-jnp.expm1(x))


def dpo(logits: Logits, beta: float = 0.1) -> Objective:
    """Direct preference optimisation of a batch of `Pairs`, each pair weighing 1."""

    def objective(params: PyTree, batch: Pairs, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        chosen, rejected = (-_nll(logits, params, side, "sum") for side in (batch.chosen, batch.rejected))
        reference_chosen, reference_rejected = map(jnp.asarray, (batch.reference_chosen, batch.reference_rejected))
        values = dpo_values(chosen, rejected, reference_chosen, reference_rejected, beta)
        return jnp.sum(values), jnp.asarray(values.shape[0], values.dtype)

    return objective


def orpo(logits: Logits, beta: float = 0.1) -> Objective:
    """Odds-ratio preference optimisation of a batch of `Pairs`, each pair weighing 1; the reference is not read."""

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


def log_likelihoods(logits: Logits, params: PyTree, batch: Batch, rows: int = 64) -> Float[np.ndarray, " b"]:
    """Summed completion log-likelihood of every row, `rows` at a time: the reference of `Pairs`."""
    step = jax.jit(lambda params, part: -_nll(logits, params, part, "sum"))
    found = []
    for start in range(0, len(batch.tokens), rows):
        part = Batch(*(np.asarray(leaf)[start : start + rows] for leaf in batch))
        found.append(np.asarray(step(params, _filled(part, min(rows, len(batch.tokens)))))[: len(part.tokens)])
    return np.concatenate(found)


def _filled(batch: Batch, rows: int) -> Batch:
    """Padding rows up to `rows`, so that the last part shares the compilation of the others."""
    missing = rows - len(batch.tokens)
    return Batch(*(np.pad(np.asarray(leaf), ((0, missing), (0, 0))) for leaf in batch))
