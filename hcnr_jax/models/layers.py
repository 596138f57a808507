"""Defines the parts of a Llama-shaped block: RMSNorm, rotary positions, grouped-query attention, gated MLP.

Axis letters: b batch, t query token, s key token (or cache slot), d hidden, k key/value head, g query heads per
key/value head, n heads of either kind, h head width, v vocabulary, l layers.
Norms, rotations and softmax run in at least float32 whatever the compute dtype.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.models.spec import ModelSpec

FULL_WINDOW = int(np.iinfo(np.int32).max)
"""Stands for "no limit" as a layer's window in tokens.

Windows are arrays, not constants of the program, so that layers with different windows share one compiled body.
"""

KERNEL_INIT = nn.initializers.normal(0.02)  # the initializer_range of every supported family


class Geometry(NamedTuple):
    """Holds the positions of the queries and keys of a batch; all layers share one.

    Positions count real tokens only, so padding on either side does no harm.

    Attributes:
        cos: cosines of the rotary angles at the queries' positions, (batch, queries, head width / 2).
        sin: sines of the same angles.
        query_positions: position of each query, (batch, queries).
        key_positions: position of each key, (batch, keys).
        key_mask: True where a key belongs to a real token, (batch, keys).
        slot: the cache slot of the first query, a scalar; 0 without a cache.
    """

    cos: Float[Array, "b t half"]
    sin: Float[Array, "b t half"]
    query_positions: Int[Array, "b t"]
    key_positions: Int[Array, "b s"]
    key_mask: Bool[Array, "b s"]
    slot: Int[Array, ""]


class LayerCache(NamedTuple):
    """Holds the rotated keys and the values of the tokens seen so far, (batch, slots, key/value heads, head width).

    The cache of a whole model has a leading layer axis.
    """

    key: Float[Array, "*l b s k h"]
    value: Float[Array, "*l b s k h"]


def wide(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype of norms, angles, softmax and logits: float64 if the compute dtype is, else float32."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def positions_of(attention_mask: Bool[Array, "b t"]) -> Int[Array, "b t"]:
    """Return the position of each token among the real tokens of its row; padding before the first has position 0."""
    return jnp.maximum(jnp.cumsum(attention_mask, axis=1, dtype=jnp.int32) - 1, 0)


def rotary_frequencies(spec: ModelSpec) -> np.ndarray:
    """Compute the rotary frequencies f_i = theta^(-2i/h), then apply the spec's scaling.

    A frequency is an angle in radians per position, one for each pair of channels. The result is rounded to float32
    where PyTorch rounds, because checkpoints are trained with those values. Without that rounding, frequencies differ
    by up to 4 units in the last place. This moved the logits of a tiny random model by 3e-4 from position 137 on.

    `llama3` is the piecewise rule of Llama 3.1, with wavelength l = 2 pi / f and original context n. Where
    l < n / high, f stays. Where l > n / low, f becomes f / factor. In between, the two are blended, and f has weight
    (n / l - low) / (high - low).

    Args:
        spec: gives theta (`rope_theta`), h (`head_dim`) and the scaling.

    Returns:
        Frequencies, float32 (head width / 2,).

    Raises:
        ValueError: a llama3 scaling lacks one of its numbers.
    """
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    frequency = 1 / (spec.rope_theta ** exponents.astype(np.float64)).astype(np.float32)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / np.float32(scaling.factor)
    low, high, context = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_positions
    if low is None or high is None or context is None:
        raise ValueError(f"a llama3 RopeScaling needs all of its numbers, found {scaling}")
    wavelength = np.float32(2 * np.pi) * (1 / frequency)
    kept = np.clip((np.float32(context) * (1 / wavelength) - np.float32(low)) / np.float32(high - low), 0, 1)
    return (1 - kept) * frequency / np.float32(scaling.factor) + kept * frequency


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


def rotations(
    spec: ModelSpec, positions: Int[Array, "b t"], dtype: DTypeLike
) -> tuple[Float[Array, "b t half"], Float[Array, "b t half"]]:
    """Return cosine and sine of position times frequency, each (batch, tokens, head width / 2).

    Both have at least float32, because bfloat16 cannot tell positions over 256 apart.
    """
    frequency = jnp.asarray(rotary_frequencies(spec), wide(dtype))
    angles = positions.astype(frequency.dtype)[:, :, None] * frequency[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b t n h"], cos: Float[Array, "b t half"], sin: Float[Array, "b t half"]
) -> Float[Array, "b t n h"]:
    """Rotate the channel pairs (i, i + h/2) of every head by the token's angles, in Hugging Face's channel order."""
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def visible(geometry: Geometry, window: Int[Array, ""]) -> Bool[Array, "b t s"]:
    """Return True where a query sees a key: a real token, not after the query, fewer than `window` tokens back."""
    distance = geometry.query_positions[:, :, None] - geometry.key_positions[:, None, :]
    return (distance >= 0) & (distance < window) & geometry.key_mask[:, None, :]


def attend(
    query: Float[Array, "b t k g h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    seen: Bool[Array, "b t s"],
) -> Float[Array, "b t k g h"]:
    """Compute softmax(q k^T / sqrt(h)) v over the keys that each query sees.

    A query that sees no key gets the mean of all values, never NaN.

    Args:
        query: q, (batch, queries, key/value heads, query heads per key/value head, head width).
        key: k, (batch, keys, key/value heads, head width).
        value: v, shaped like `key`.
        seen: True where a query sees a key, (batch, queries, keys).

    Returns:
        The weighted means of the values, shaped like `query`.
    """
    scores = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=wide(query.dtype))
    scores = scores * query.shape[-1] ** -0.5
    scores = jnp.where(seen[:, None, None, :, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value)


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x^2) + eps) * scale over the last axis.

    Flax's own RMSNorm fails in bfloat16 under strict dtype promotion.
    """

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(wide(self.dtype))
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(scale.astype(x.dtype), tuple(range(x.ndim - 1)))
        return (x * scale).astype(self.dtype)


class Embed(nn.Module):
    """Embeds tokens, and computes the logits of a tied head from the same table.

    Rows are taken before the cast to the compute dtype, because a cast of the whole table would take much memory.
    """

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        self.embedding = self.param("embedding", KERNEL_INIT, shape, jnp.float32)

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

    def attend(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        return jnp.einsum("btd,vd->btv", hidden.astype(self.dtype), self.embedding.astype(self.dtype))


class Attention(nn.Module):
    """Computes grouped-query self-attention with rotary positions; biases, q/k norms, window and cache are optional."""

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "b t d"], window: Int[Array, ""], geometry: Geometry, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        spec = self.spec
        query = self._heads("q", spec.num_heads, hidden)
        key, value = self._heads("k", spec.num_kv_heads, hidden), self._heads("v", spec.num_kv_heads, hidden)
        if spec.qk_norm:
            query = RMSNorm(spec.rms_norm_eps, self.dtype, name="q_norm")(query)
            key = RMSNorm(spec.rms_norm_eps, self.dtype, name="k_norm")(key)
        query, key = rotate(query, geometry.cos, geometry.sin), rotate(key, geometry.cos, geometry.sin)
        if cache is not None:
            key = jax.lax.dynamic_update_slice_in_dim(cache.key, key, geometry.slot, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(cache.value, value, geometry.slot, axis=1)
            cache = LayerCache(key, value)
        query = query.reshape(*query.shape[:2], spec.num_kv_heads, -1, spec.head_dim)
        mixed = attend(query, key, value, visible(geometry, window))
        output = nn.Dense(spec.hidden_size, spec.o_bias, self.dtype, kernel_init=KERNEL_INIT, name="o")
        return output(mixed.reshape(*hidden.shape[:2], -1)), cache

    def _heads(self, name: str, count: int, hidden: Float[Array, "b t d"]) -> Float[Array, "b t n h"]:
        width = count * self.spec.head_dim
        dense = nn.Dense(width, self.spec.qkv_bias, self.dtype, kernel_init=KERNEL_INIT, name=name)
        return dense(hidden).reshape(*hidden.shape[:2], count, self.spec.head_dim)


class MLP(nn.Module):
    """Computes down(silu(gate(x)) * up(x))."""

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, self.spec.mlp_bias, self.dtype, kernel_init=KERNEL_INIT, name=name)

        gate = dense(self.spec.intermediate_size, "gate")(hidden)
        up = dense(self.spec.intermediate_size, "up")(hidden)
        return dense(self.spec.hidden_size, "down")(nn.silu(gate) * up)


class Block(nn.Module):
    """Computes one pre-norm transformer block.

    Its signature suits nn.scan over layers: `hidden` is the carry, and `window` and `cache` have one entry per layer.
    """

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "b t d"], window: Int[Array, ""], geometry: Geometry, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        eps = self.spec.rms_norm_eps
        normed = RMSNorm(eps, self.dtype, name="attention_norm")(hidden)
        mixed, cache = Attention(self.spec, self.dtype, name="attention")(normed, window, geometry, cache)
        hidden = hidden + mixed
        normed = RMSNorm(eps, self.dtype, name="mlp_norm")(hidden)
        return hidden + MLP(self.spec, self.dtype, name="mlp")(normed), cache
