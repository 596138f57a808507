"""Greedy generation: a prefill of left-padded prompts, then one token a step from a key/value cache, in one program."""

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
    """The most likely continuation of each prompt, token by token (ties: the lower id).

    Args:
        tokens: prompts, padded on the LEFT; the value at padding is free.
        attention_mask: True at real tokens.
        max_new_tokens: n, columns of the result.
        eos_ids: a row ends with the first of these it produces (kept); what follows is `pad_id`. Empty: never.
        dtype: compute dtype, also the cache's.

    Compiled once for each spec, shape of `tokens`, and n; stops early when every row has ended.

    Raises:
        ValueError: max_new_tokens under 1, or a prompt whose last position is padding.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
    if not isinstance(attention_mask, jax.core.Tracer):
        _check_left_padded(np.asarray(attention_mask))
    return _generate(spec, params, tokens, attention_mask, max_new_tokens, tuple(eos_ids), pad_id, jnp.dtype(dtype))


def init_cache(spec: ModelSpec, batch: int, slots: int, dtype: DTypeLike) -> LayerCache:
    """An empty cache for `slots` tokens a row, [l b s k h]; nothing reads a slot before it is written."""
    shape = (spec.num_layers, batch, slots, spec.num_kv_heads, spec.head_dim)
    return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class _State(NamedTuple):
    """Between two steps: `step` tokens are out, the last of them is `current` and not yet in the cache."""

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
    """Runs `tokens` at the geometry's slot; the greedy token after the last of them, and the cache with them in it."""

    def run(decoder: Decoder) -> tuple[Float[Array, "b v"], LayerCache | None]:
        hidden, after = decoder.run_blocks(decoder.embed_tokens(tokens), geometry, cache)
        return decoder.head(hidden[:, -1:])[:, 0], after

    logits, after = Decoder(spec, dtype, remat=False).apply({"params": params}, method=run)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), cast(LayerCache, after)


def _geometry_at(spec: ModelSpec, prompt: Geometry, slot: Int[Array, ""], dtype: DTypeLike) -> Geometry:
    """The geometry of one new token a row, to be written at `slot`."""
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
