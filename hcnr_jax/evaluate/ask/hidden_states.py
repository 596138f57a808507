"""Computes the hidden states of the last prompt token in every layer, which probes read."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.evaluate.ask.batches import Events, rows_at_once, run_batches
from hcnr_jax.models import ModelSpec, apply_block, block_kinds, embed_tokens
from hcnr_jax.models.decoder import Params


@partial(jax.jit, static_argnums=(0, 4))
def last_states(
    spec: ModelSpec, params: Params, tokens: Int[Array, "b t"], attention_mask: Bool[Array, "b t"], dtype: DTypeLike
) -> Float[Array, "layers b d"]:
    """Compute the residual stream at the last position, after the embedding and after each block; prompts
    left-padded.
    """

    def step(hidden: Array, layer: tuple[Any, Any]) -> tuple[Array, Array]:
        block, kind = layer
        after = apply_block(spec, block, hidden, attention_mask, kind, dtype)
        return after, after[:, -1]

    start = embed_tokens(spec, params, tokens, dtype)
    _, after = jax.lax.scan(step, start, (params["blocks"], block_kinds(spec)))
    return jnp.concatenate([start[None, :, -1], after]).astype(jnp.float32)


def left_padded(prompts: Sequence[tuple[int, ...]], length: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad prompts on the left to tokens and mask [rows, length]; missing rows repeat the last prompt."""
    tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    for index in range(rows):
        prompt = prompts[min(index, len(prompts) - 1)]
        tokens[index, length - len(prompt) :] = prompt
        mask[index, length - len(prompt) :] = True
    return tokens, mask


def last_token_states(
    spec: ModelSpec,
    params: Params,
    prompts: Sequence[tuple[int, ...]],
    *,
    microbatch: int | None = None,
    dtype: DTypeLike = jnp.float32,
    events: Events | None = None,
) -> Float[np.ndarray, "layers n d"]:
    """Compute float32 states of each prompt's last token: layer 0 is the embedding, then one layer a block.

    Args:
        spec: of the model.
        params: its weights.
        prompts: token ids, unpadded.
        microbatch: rows a step; None chooses from the sizes.
        dtype: of the computation.
        events: callbacks for progress.
    """
    events = events or Events()
    states = np.zeros((spec.num_layers + 1, len(prompts), spec.hidden_size), np.float32)
    lengths = [len(prompt) for prompt in prompts]
    rows = microbatch or rows_at_once(spec, max(lengths), len(prompts))

    def run(indices: list[int], length: int, count: int) -> Any:
        tokens, mask = left_padded([prompts[i] for i in indices], length, count)
        found = last_states(spec, params, tokens, mask, jnp.dtype(dtype))
        return np.asarray(found)[:, : len(indices)].swapaxes(0, 1)

    def take(indices: list[int], found: Any) -> None:
        states[:, indices] = found.swapaxes(0, 1)
        events.advance("states", len(indices))

    run_batches(lengths, rows, run, take=take, smaller=events.smaller)
    return states
