"""Defines the parts of a transformer block: RMSNorm, grouped-query attention, gated MLP.

The parts read the differences between families from the spec and from its `recipe`, and name no family.

Axis letters: r rotary tables, b batch, t query token, s key token (or cache slot), d hidden, k key/value head, g query
heads per key/value head, n heads of either kind, h head width, v vocabulary, l layers.
Norms, rotations and softmax run in at least float32 whatever the compute dtype.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.models.rotary import grown, rotary_frequencies, rotate, rotations, wide
from hcnr_jax.models.spec import ModelSpec

__all__ = [
    "FULL_WINDOW",
    "KERNEL_INIT",
    "MLP",
    "Attention",
    "Block",
    "Embed",
    "Geometry",
    "LayerCache",
    "LayerKind",
    "RMSNorm",
    "attend",
    "geometry_of",
    "positions_of",
    "rotary_frequencies",
    "rotate",
    "rotations",
    "scaled",
    "visible",
    "wide",
]

FULL_WINDOW = int(np.iinfo(np.int32).max)
"""Stands for "no limit" as a layer's window in tokens.

Windows are arrays, not constants of the program, so that layers with different windows share one compiled body.
"""

KERNEL_INIT = nn.initializers.normal(0.02)  # the initializer_range of every supported family


class Geometry(NamedTuple):
    """Holds the positions of the queries and keys of a batch; all layers share one.

    Positions count real tokens only, so padding on either side does no harm.

    Attributes:
        cos: cosines of the rotary angles at the queries' positions, (rotary tables, batch, queries, half), where half
            is half of the channels that rotate.
        sin: sines of the same angles.
        query_positions: position of each query, (batch, queries).
        key_positions: position of each key, (batch, keys).
        key_mask: True where a key belongs to a real token, (batch, keys).
        slot: the cache slot of the first query, a scalar; 0 without a cache.
    """

    cos: Float[Array, "r b t half"]
    sin: Float[Array, "r b t half"]
    query_positions: Int[Array, "b t"]
    key_positions: Int[Array, "b s"]
    key_mask: Bool[Array, "b s"]
    slot: Int[Array, ""]


class LayerKind(NamedTuple):
    """Holds the differences between layers that share one compiled body; over all layers, leaves have a layer axis.

    Attributes:
        window: number of tokens that a token sees, counting itself; FULL_WINDOW for all.
        rotary: index of the layer's rotary table in `Geometry.cos`.
    """

    window: Int[Array, "*l"]
    rotary: Int[Array, "*l"]


class LayerCache(NamedTuple):
    """Holds the rotated keys and the values of the tokens seen so far, (batch, slots, key/value heads, head width).

    The cache of a whole model has a leading layer axis.
    """

    key: Float[Array, "*l b s k h"]
    value: Float[Array, "*l b s k h"]


def scaled(x: Float[Array, "*n"], factor: float) -> Float[Array, "*n"]:
    """Compute x * factor in at least float32, rounded to the dtype of x."""
    return x if factor == 1 else (x.astype(wide(x.dtype)) * factor).astype(x.dtype)


def positions_of(attention_mask: Bool[Array, "b t"]) -> Int[Array, "b t"]:
    """Return the position of each token among the real tokens of its row; padding before the first has position 0."""
    return jnp.maximum(jnp.cumsum(attention_mask, axis=1, dtype=jnp.int32) - 1, 0)


def geometry_of(
    spec: ModelSpec, attention_mask: Bool[Array, "b t"], dtype: DTypeLike, slots: int | None = None
) -> Geometry:
    """Return the geometry of a batch whose tokens are both the queries and the keys.

    With `slots`, the keys are the slots of a cache that begins with the tokens. A slot after them stands for a token to
    come and has the position of that token. No query sees a later position, so such slots need no mask.

    Args:
        spec: the model.
        attention_mask: True at real tokens, (batch, tokens).
        dtype: compute dtype.
        slots: cache slots per row, at least the number of tokens; None without a cache.
    """
    positions = positions_of(attention_mask)
    key_positions, key_mask = positions, attention_mask
    if slots is not None:
        later = jnp.arange(1, slots - attention_mask.shape[1] + 1, dtype=jnp.int32)
        key_positions = jnp.concatenate([positions, positions[:, -1:] + later[None, :]], axis=1)
        key_mask = jnp.pad(attention_mask, ((0, 0), (0, later.size)), constant_values=True)
    cos, sin = rotations(spec, positions, dtype)
    return Geometry(cos, sin, positions, key_positions, key_mask, jnp.zeros((), jnp.int32))


def visible(geometry: Geometry, window: Int[Array, ""]) -> Bool[Array, "b t s"]:
    """Return True where a query sees a key: a real token, not after the query, fewer than `window` tokens back."""
    distance = geometry.query_positions[:, :, None] - geometry.key_positions[:, None, :]
    return (distance >= 0) & (distance < window) & geometry.key_mask[:, None, :]


def attend(
    query: Float[Array, "b t k g h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    seen: Bool[Array, "b t s"],
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "b t k g h"]:
    """Compute softmax(cap(scale q k^T)) v over the keys that each query sees, with cap(x) = c tanh(x / c).

    A query that sees no key gets the mean of all values, never NaN.

    Args:
        query: q, (batch, queries, key/value heads, query heads per key/value head, head width).
        key: k, (batch, keys, key/value heads, head width).
        value: v, shaped like `key`.
        seen: True where a query sees a key, (batch, queries, keys).
        scale: factor of the scores; None for 1 / sqrt(h).
        softcap: c, the bound of the scores; None for no bound.

    Returns:
        The weighted means of the values, shaped like `query`.
    """
    scores = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=wide(query.dtype))
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(seen[:, None, None, :, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value)


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x^2) + eps) * (offset + scale) over the last axis.

    The parameter is the scale as files store it. Flax's own RMSNorm fails in bfloat16 under strict dtype promotion.
    """

    epsilon: float
    dtype: DTypeLike = jnp.float32
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        init = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        x = x.astype(wide(self.dtype))
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(scale.astype(x.dtype), tuple(range(x.ndim - 1)))
        if self.offset:
            scale = scale + self.offset
        return (x * scale).astype(self.dtype)


class Embed(nn.Module):
    """Embeds tokens, and computes the logits of a tied head from the same table.

    The factor of the embeddings is rounded to the compute dtype, as transformers rounds it in a model of that dtype:
    in bfloat16 Gemma's sqrt(1152) is 34. Rows are taken before the cast to the compute dtype, because a cast of the
    whole table would take much memory.
    """

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        self.embedding = self.param("embedding", KERNEL_INIT, shape, jnp.float32)

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        factor = float(jnp.dtype(self.dtype).type(self.spec.embedding_multiplier))
        return scaled(jnp.take(self.embedding, tokens, axis=0).astype(self.dtype), factor)

    def attend(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        return jnp.einsum("btd,vd->btv", hidden.astype(self.dtype), self.embedding.astype(self.dtype))


class Attention(nn.Module):
    """Computes grouped-query self-attention with rotary positions; biases, q/k norms, window and cache are optional."""

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "b t d"], layer: LayerKind, geometry: Geometry, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        spec = self.spec
        query, key, value = self._heads(hidden)
        cos, sin = (table[0] if len(table) == 1 else table[layer.rotary] for table in (geometry.cos, geometry.sin))
        query, key = (rotate(x, cos, sin, spec.recipe.rotary_interleaved) for x in (query, key))
        query = grown(spec, query, geometry.query_positions)
        if cache is not None:
            key = jax.lax.dynamic_update_slice_in_dim(cache.key, key, geometry.slot, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(cache.value, value, geometry.slot, axis=1)
            cache = LayerCache(key, value)
        query = query.reshape(*query.shape[:2], spec.num_kv_heads, -1, spec.head_dim)
        seen = visible(geometry, layer.window)
        mixed = attend(query, key, value, seen, spec.query_scale, spec.attention_softcap)
        output = nn.Dense(spec.hidden_size, spec.o_bias, self.dtype, kernel_init=KERNEL_INIT, name="o")
        return output(mixed.reshape(*hidden.shape[:2], -1)), cache

    def _heads(
        self, hidden: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b t n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
        """Compute queries, keys and values before rotation."""
        spec, recipe = self.spec, self.spec.recipe
        heads = spec.num_heads, spec.num_kv_heads, spec.num_kv_heads
        widths = [count * spec.head_dim for count in heads]

        def dense(name: str, width: int) -> Float[Array, "b t _"]:
            return nn.Dense(width, spec.qkv_bias, self.dtype, kernel_init=KERNEL_INIT, name=name)(hidden)

        if recipe.fused_qkv:
            parts = jnp.split(dense("qkv", sum(widths)), [widths[0], widths[0] + widths[1]], axis=-1)
        else:
            parts = [dense(name, width) for name, width in zip("qkv", widths, strict=True)]
        if spec.qk_norm and recipe.qk_norm_joint:
            parts = [*map(self._norm, parts[:2], "qk"), parts[2]]
        parts = [part.reshape(*part.shape[:2], n, spec.head_dim) for part, n in zip(parts, heads, strict=True)]
        if spec.qk_norm and not recipe.qk_norm_joint:
            parts = [*map(self._norm, parts[:2], "qk"), parts[2]]
        return parts[0], parts[1], parts[2]

    def _norm(self, x: Float[Array, "*n c"], which: str) -> Float[Array, "*n c"]:
        return RMSNorm(self.spec.rms_norm_eps, self.dtype, self.spec.recipe.norm_offset, name=f"{which}_norm")(x)


class MLP(nn.Module):
    """Computes down(act(gate(x)) * up(x))."""

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, self.spec.mlp_bias, self.dtype, kernel_init=KERNEL_INIT, name=name)

        inner = self.spec.intermediate_size
        if self.spec.recipe.fused_mlp:
            gate, up = jnp.split(dense(2 * inner, "gate_up")(hidden), 2, axis=-1)
        else:
            gate, up = dense(inner, "gate")(hidden), dense(inner, "up")(hidden)
        return dense(self.spec.hidden_size, "down")(_ACTIVATIONS[self.spec.recipe.activation](gate) * up)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": nn.silu, "gelu_tanh": partial(nn.gelu, approximate=True)}


class Block(nn.Module):
    """Computes one transformer block, x + m post(branch(pre(x))) for the branches attention and MLP.

    m is the residual multiplier. The norms pre and post are those that the family names; an absent norm is the
    identity. The signature suits nn.scan over layers: `hidden` is the carry, and `layer` and `cache` have one entry
    per layer.
    """

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "b t d"], layer: LayerKind, geometry: Geometry, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        spec, norms = self.spec, self.spec.recipe.block_norms

        def norm(name: str, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
            if name not in norms:
                return x
            return RMSNorm(spec.rms_norm_eps, self.dtype, spec.recipe.norm_offset, name=name)(x)

        normed = norm("attention_norm", hidden)
        mixed, cache = Attention(spec, self.dtype, name="attention")(normed, layer, geometry, cache)
        hidden = hidden + scaled(norm("post_attention_norm", mixed), spec.residual_multiplier)
        added = MLP(spec, self.dtype, name="mlp")(norm("mlp_norm", hidden))
        return hidden + scaled(norm("post_mlp_norm", added), spec.residual_multiplier), cache
