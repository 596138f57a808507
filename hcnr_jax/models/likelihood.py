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


def completion_window(
    hidden: Float[Array, "n t d"], tokens: Int[Array, "n t"], completion_mask: Bool[Array, "n t"], width: int
) -> tuple[Float[Array, "n w d"], Int[Array, "n w"], Bool[Array, "n w"]]:
    """Of each row the `width` positions (or all) that hold its completion and the token before it.

    `completion_nll` of their logits is that of the whole row, and the head, whose logits are the largest array of a
    loss, meets no other. A completion must be contiguous and shorter than `width`.
    """
    length = tokens.shape[1]
    if width >= length:
        return hidden, tokens, completion_mask
    first = jnp.argmax(completion_mask, axis=1)
    start = jnp.clip(first - 1, 0, length - width)

    def cut(leaf: Array) -> Array:
        return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, width))(leaf, start)

    return cut(hidden), cut(tokens), cut(completion_mask)


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
