"""log p(token | the tokens before it), and the loss made of it: the one log-probability of the project."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.models.layers import wide


def token_log_probs(logits: Float[Array, "*n t v"], tokens: Int[Array, "*n t"]) -> Float[Array, "*n t"]:
    """Entry t is log p(tokens[t] | tokens[:t]) in nats, in at least float32; entry 0, which nothing precedes, is 0.

    Computed as logit minus logsumexp, so that no second array of the logits' size is made.
    """
    before = logits[..., :-1, :].astype(wide(logits.dtype))
    chosen = jnp.take_along_axis(before, tokens[..., 1:, None], axis=-1)[..., 0]
    log_probs = chosen - jax.nn.logsumexp(before, axis=-1)
    return jnp.pad(log_probs, [(0, 0)] * (log_probs.ndim - 1) + [(1, 0)])


def completion_nll(
    logits: Float[Array, "*n t v"],
    tokens: Int[Array, "*n t"],
    completion_mask: Bool[Array, "*n t"],
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Array, "*n"]:
    """Negative log-likelihood of each row's completion, in nats, per token (`mean`) or in all (`sum`).

    `mean` is HF's loss at batch size 1. Position 0 never counts, since nothing predicts it. A row without
    completion tokens gives 0.

    Raises:
        ValueError: an unknown reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction = {reduction!r} is not known; expected 'mean' or 'sum'")
    predicted = completion_mask.at[..., 0].set(False)
    log_probs = token_log_probs(logits, tokens)
    # where, not a product: a -inf or NaN at a position that does not count must not reach the sum or its gradient.
    total = -jnp.sum(jnp.where(predicted, log_probs, 0.0), axis=-1)
    if reduction == "sum":
        return total
    return total / jnp.maximum(jnp.sum(predicted, axis=-1, dtype=jnp.int32), 1).astype(total.dtype)
