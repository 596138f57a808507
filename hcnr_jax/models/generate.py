"""Generates text greedily: a prefill of left-padded prompts, then one token per step from a key/value cache.

Prefill and steps are one compiled program.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.models.decoder import Decoder, Params
from hcnr_jax.models.layers import Geometry, LayerCache, geometry_of, rotations
from hcnr_jax.models.spec import ModelSpec


def generate(
    spec: ModelSpec,
    params: Params,
    tokens: Int[Array, "b p"],
    attention_mask: Bool[Array, "b p"],
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    dtype: DTypeLike = jnp.float32,
) -> Int[Array, "b n"]:
    """Continue each prompt with the most likely token at every step; the lower id wins a tie.

    The program is compiled once for each spec, shape of `tokens` and `max_new_tokens`. Generation stops early when
    every row has ended.

    Args:
        spec: the model.
        params: the parameter tree of `spec`.
        tokens: token ids of the prompts (batch, prompt tokens), padded on the left. Any id may stand at padding.
        attention_mask: True at real tokens, (batch, prompt tokens).
        max_new_tokens: tokens to generate per row, the number of columns of the result.
        eos_ids: ids that end a row. The row keeps its first such id and has `pad_id` after it. With an empty tuple no
            row ends early.
        pad_id: the id after the end of a row.
        dtype: compute dtype, and the dtype of the cache.

    Returns:
        Token ids of the continuations, (batch, max_new_tokens).

    Raises:
        ValueError: `max_new_tokens` is under 1, or a prompt is not padded on the left.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from hcnr_jax.models import init_params, spec_from_config
        >>> from hcnr_jax.models.generate import generate
        >>> sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
        >>> config = {"model_type": "llama", "num_attention_heads": 2, **sizes}
        >>> spec = spec_from_config(config, source="config.json")
        >>> params = init_params(spec, jax.random.key(0))
        >>> prompts = jnp.array([[0, 1, 5], [1, 5, 7]])
        >>> mask = jnp.array([[False, True, True], [True, True, True]])
        >>> generate(spec, params, prompts, mask, max_new_tokens=4, eos_ids=(2,), pad_id=0).shape
        (2, 4)
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
    if not isinstance(attention_mask, jax.core.Tracer):
        _check_left_padded(np.asarray(attention_mask))
    return _generate(spec, params, tokens, attention_mask, max_new_tokens, tuple(eos_ids), pad_id, jnp.dtype(dtype))


def init_cache(spec: ModelSpec, batch: int, slots: int, dtype: DTypeLike) -> LayerCache:
    """Return a cache of zeros; no query reads a slot before a key is written to the slot.

    Args:
        spec: the model.
        batch: rows.
        slots: tokens per row.
        dtype: dtype of the cached keys and values.

    Returns:
        Keys and values, each (layers, batch, slots, key/value heads, head width).
    """
    shape = (spec.num_layers, batch, slots, spec.num_kv_heads, spec.head_dim)
    return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class _State(NamedTuple):
    """Holds the state between two steps: `out` has `step` tokens, and the last, `current`, is not yet in the cache."""

    step: Int[Array, ""]
    out: Int[Array, "b n"]
    current: Int[Array, " b"]
    ended: Bool[Array, " b"]
    cache: LayerCache


@partial(jax.jit, static_argnames=("spec", "max_new_tokens", "eos_ids", "pad_id", "dtype"))
def _generate(
    spec: ModelSpec,
    params: Params,
    tokens: Int[Array, "b p"],
    attention_mask: Bool[Array, "b p"],
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    dtype: DTypeLike,
) -> Int[Array, "b n"]:
    batch, prompt = tokens.shape
    slots = prompt + max_new_tokens - 1  # the last token produced is never fed back
    geometry = geometry_of(spec, attention_mask, dtype, slots)
    first, cache = _next_token(spec, params, tokens, geometry, init_cache(spec, batch, slots, dtype), dtype)

    def step(state: _State) -> _State:
        here = _geometry_at(spec, geometry, prompt + state.step - 1, dtype)
        token, cache = _next_token(spec, params, state.current[:, None], here, state.cache, dtype)
        token = jnp.where(state.ended, pad_id, token)
        out = jax.lax.dynamic_update_slice_in_dim(state.out, token[:, None], state.step, axis=1)
        return _State(state.step + 1, out, token, state.ended | _is_end(token, eos_ids), cache)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & ~jnp.all(state.ended)

    out = jnp.full((batch, max_new_tokens), pad_id, jnp.int32).at[:, 0].set(first)
    start = _State(jnp.ones((), jnp.int32), out, first, _is_end(first, eos_ids), cache)
    return jax.lax.while_loop(unfinished, step, start).out


def _next_token(
    spec: ModelSpec, params: Params, tokens: Int[Array, "b t"], geometry: Geometry, cache: LayerCache, dtype: DTypeLike
) -> tuple[Int[Array, " b"], LayerCache]:
    """Run `tokens` from the geometry's slot on; return the greedy next token, and the cache with `tokens` in it."""

    def run(decoder: Decoder) -> tuple[Float[Array, "b v"], LayerCache | None]:
        hidden, after = decoder.run_blocks(decoder.embed_tokens(tokens), geometry, cache)
        return decoder.head(hidden[:, -1:])[:, 0], after

    logits, after = Decoder(spec, dtype, remat=False).apply({"params": params}, method=run)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), cast(LayerCache, after)


def _geometry_at(spec: ModelSpec, prompt: Geometry, slot: Int[Array, ""], dtype: DTypeLike) -> Geometry:
    """Return the geometry of one new token per row, whose key and value go to `slot`."""
    positions = jax.lax.dynamic_slice_in_dim(prompt.key_positions, slot, 1, axis=1)
    cos, sin = rotations(spec, positions, dtype)
    return prompt._replace(cos=cos, sin=sin, query_positions=positions, slot=slot)


def _is_end(tokens: Int[Array, " b"], eos_ids: tuple[int, ...]) -> Bool[Array, " b"]:
    return jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32))


def _check_left_padded(mask: np.ndarray) -> None:
    wrong = np.flatnonzero(~mask[:, -1] | (mask[:, :-1] & ~mask[:, 1:]).any(axis=1))
    if wrong.size:
        raise ValueError(
            f"attention_mask row {wrong[0]} is not left-padded: expected False ... False True ... True with at least "
            "one True; pad prompts on the left"
        )
