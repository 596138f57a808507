"""The parts of a Llama-shaped block: RMSNorm, rotary positions, grouped-query attention, gated MLP.

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
"""The window of a layer that sees everything; windows are data, so that layers which differ share one compiled body."""

KERNEL_INIT = nn.initializers.normal(0.02)  # the initializer_range of every supported family


class Geometry(NamedTuple):
    """Where the queries and keys of a batch stand; the same for all layers.

    Attributes:
        cos, sin: [b t h/2] rotations of the queries' tokens.
        query_positions: [b t]; key_positions: [b s]; counted over real tokens, so padding on either side is harmless.
        key_mask: [b s] True where a key belongs to a real token.
        slot: [] the cache slot of the first query; 0 without a cache.
    """

    cos: Float[Array, "b t half"]
    sin: Float[Array, "b t half"]
    query_positions: Int[Array, "b t"]
    key_positions: Int[Array, "b s"]
    key_mask: Bool[Array, "b s"]
    slot: Int[Array, ""]


class LayerCache(NamedTuple):
    """Keys (rotated) and values of the tokens seen so far, [b s k h]; stacked over layers on a leading axis."""

    key: Float[Array, "*l b s k h"]
    value: Float[Array, "*l b s k h"]


def wide(dtype: DTypeLike) -> DTypeLike:
    """The dtype of norms, angles, softmax and logits: float32, or float64 where that is the compute dtype."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def positions_of(attention_mask: Bool[Array, "b t"]) -> Int[Array, "b t"]:
    """Position of each token among the real tokens of its row; padding before the first counts as position 0."""
    return jnp.maximum(jnp.cumsum(attention_mask, axis=1, dtype=jnp.int32) - 1, 0)


def rotary_frequencies(spec: ModelSpec) -> np.ndarray:
    """Angle per position of each pair of channels, float32 [h/2]: theta^(-2i/h), then the spec's scaling.

    Rounded to float32 where PyTorch rounds, since checkpoints are trained so: frequencies exact to the end differ by up
    to 4 units in the last place, which moved the logits of a tiny random model by 3e-4 from position 137 on.

    `llama3` is the piecewise rule of Llama 3.1: with wavelength l and original context n, f stays where l < n / high,
    becomes f / factor where l > n / low, and is blended in between with weight (n / l - low) / (high - low).
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
    """Geometry of a batch whose queries are its keys; with `slots` > t, of a prompt before a cache of that many slots.

    Slots after the prompt stand for tokens to come, one position each; a query never sees a later position, so
    they need no mask of their own.
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
    """cos and sin of position x frequency, in at least float32: bfloat16 cannot tell positions over 256 apart."""
    frequency = jnp.asarray(rotary_frequencies(spec), wide(dtype))
    angles = positions.astype(frequency.dtype)[:, :, None] * frequency[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b t n h"], cos: Float[Array, "b t half"], sin: Float[Array, "b t half"]
) -> Float[Array, "b t n h"]:
    """Turns channel pairs (i, i + h/2), Hugging Face's layout of rotary embedding, by each token's angles."""
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def visible(geometry: Geometry, window: Int[Array, ""]) -> Bool[Array, "b t s"]:
    """True where a query sees a key: a real token, not after it, fewer than `window` tokens back."""
    distance = geometry.query_positions[:, :, None] - geometry.key_positions[:, None, :]
    return (distance >= 0) & (distance < window) & geometry.key_mask[:, None, :]


def attend(
    query: Float[Array, "b t k g h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    seen: Bool[Array, "b t s"],
) -> Float[Array, "b t k g h"]:
    """softmax(q k^T / sqrt(h)) v over the keys seen. A row that sees none gets the mean of all values, never NaN."""
    scores = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=wide(query.dtype))
    scores = scores * query.shape[-1] ** -0.5
    scores = jnp.where(seen[:, None, None, :, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis.

    Ours, since Flax's own fails in bfloat16 under strict promotion.
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
    """Token embedding, and the tied head's product with it. Rows are taken before the cast: the table may be large."""

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
    """Grouped-query self-attention with rotary positions, optional biases, q/k norms, window and cache."""

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
    """down(silu(gate(x)) * up(x))."""

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
    """One pre-norm transformer block, shaped for a scan over layers: hidden is the carry, window and cache the data."""

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
