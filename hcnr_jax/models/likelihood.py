"""Computes log p(token | tokens before), and the completion's negative log-likelihood from these values.

The project's losses, scores and metrics on completions all use these functions.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.models.layers import wide


def token_log_probs(logits: Float[Array, "*n t v"], tokens: Int[Array, "*n t"]) -> Float[Array, "*n t"]:
    """Compute log p(tokens[t] | tokens[:t]) for every t, in nats and at least float32; entry 0 is 0.

    The result is the logit minus logsumexp, which needs no second array of the logits' size.

    Args:
        logits: logits of the token after each position, (..., tokens, vocabulary).
        tokens: token ids, (..., tokens).
    """
    before = logits[..., :-1, :].astype(wide(logits.dtype))
    chosen = jnp.take_along_axis(before, tokens[..., 1:, None], axis=-1)[..., 0]
    log_probs = chosen - jax.nn.logsumexp(before, axis=-1)
    return jnp.pad(log_probs, [(0, 0)] * (log_probs.ndim - 1) + [(1, 0)])


def completion_window(
    hidden: Float[Array, "n t d"], tokens: Int[Array, "n t"], completion_mask: Bool[Array, "n t"], width: int
) -> tuple[Float[Array, "n w d"], Int[Array, "n w"], Bool[Array, "n w"]]:
    """Cut from each row the `width` positions that hold its completion and the token before the completion.

    `completion_nll` on the logits of these positions equals that of the whole row. The logits are the largest array of
    a loss, and the head need compute no others.

    Args:
        hidden: the residual stream before the head, (rows, tokens, hidden).
        tokens: token ids, (rows, tokens).
        completion_mask: True at completion tokens, (rows, tokens). Each completion is contiguous and shorter than
            `width`.
        width: positions to keep of each row; all are kept when the rows are no longer than that.

    Returns:
        The three arrays, cut at the same positions.
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
    """Compute the negative log-likelihood of each row's completion, in nats.

    `mean` is the loss of Hugging Face transformers at batch size 1. Position 0 never counts, since no token predicts
    the first one. A row without completion tokens gives 0.

    Args:
        logits: logits of the token after each position, (..., tokens, vocabulary).
        tokens: token ids, (..., tokens).
        completion_mask: True at completion tokens, (..., tokens).
        reduction: `mean` divides by the number of completion tokens; `sum` does not.

    Returns:
        One value per row, in at least float32.

    Raises:
        ValueError: an unknown reduction.

    Example:
        Equal logits over a vocabulary of 4 give log 4 nats per token.

        >>> import jax.numpy as jnp
        >>> from hcnr_jax.models import completion_nll
        >>> tokens = jnp.array([[1, 3, 2]])
        >>> completion = jnp.array([[False, True, True]])
        >>> nll = completion_nll(jnp.zeros((1, 3, 4)), tokens, completion)
        >>> print(f"{nll[0]:.3f}")
        1.386
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction = {reduction!r} is not known; expected 'mean' or 'sum'")
    predicted = completion_mask.at[..., 0].set(False)
    log_probs = token_log_probs(logits, tokens)
    # A product with the mask would let a -inf or NaN at a position that does not count reach the sum and its gradient.
    total = -jnp.sum(jnp.where(predicted, log_probs, 0.0), axis=-1)
    if reduction == "sum":
        return total
    return total / jnp.maximum(jnp.sum(predicted, axis=-1, dtype=jnp.int32), 1).astype(total.dtype)
