"""What training minimises: each objective is `(params, batch, key) -> (total, weight)`, the loss their quotient."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from hcnr_jax.models.likelihood import completion_nll
from hcnr_jax.training.trainer import Objective

Logits = Callable[[PyTree, Int[Array, "b t"], Bool[Array, "b t"]], Float[Array, "b t v"]]
"""`(params, tokens, attention_mask) -> logits`, such as a Decoder's `apply`."""


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
