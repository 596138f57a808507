"""Computes rotary positions: frequencies, cosines and sines of the angles, and the rotation of channel pairs.

Axis letters: r rotary tables, b batch, t token, n heads, h head width. `half` is half of the rotated channels.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from hcnr_jax.models.rope import Rope, RopeScaling
from hcnr_jax.models.spec import ModelSpec


def wide(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype of norms, angles, softmax and logits: float64 if the compute dtype is, else float32."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def rotary_frequencies(spec: ModelSpec) -> np.ndarray:
    """Compute the frequencies of the spec's main table, float32 (rotated channels / 2,); see `table_frequencies`."""
    return table_frequencies(Rope(spec.rope_theta, spec.rope_scaling), spec.rotary_width)


def table_frequencies(rope: Rope | None, width: int) -> np.ndarray:
    """Compute the rotary frequencies f_i = theta^(-2i/w), then apply the table's scaling.

    A frequency is an angle in radians per position, one for each pair of channels. The result is rounded to float32
    where PyTorch rounds, because checkpoints are trained with those values. Without that rounding, frequencies differ
    by up to 4 units in the last place. This moved the logits of a tiny random model by 3e-4 from position 137 on.

    Args:
        rope: gives theta and the scaling; None gives frequencies of 0, which rotate nothing.
        width: w, the number of channels of a head that rotate.

    Returns:
        Frequencies, float32 (width / 2,).

    Raises:
        ValueError: a scaling lacks one of its numbers.
    """
    if rope is None:
        return np.zeros(width // 2, np.float32)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    period = (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    frequency, scaling = 1 / period, rope.scaling
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / np.float32(scaling.factor)
    return _llama3(frequency, scaling) if scaling.kind == "llama3" else _yarn(period, scaling, rope.theta, width)


def _llama3(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Apply the piecewise rule of Llama 3.1, with wavelength l = 2 pi / f and original context n.

    Where l < n / high, f stays. Where l > n / low, f becomes f / factor. In between, the two are blended, and f has
    weight (n / l - low) / (high - low).
    """
    low, high, context = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_positions
    if low is None or high is None or context is None:
        raise ValueError(f"a llama3 RopeScaling needs all of its numbers, found {scaling}")
    wavelength = np.float32(2 * np.pi) * (1 / frequency)
    kept = np.clip((np.float32(context) * (1 / wavelength) - np.float32(low)) / np.float32(high - low), 0, 1)
    return (1 - kept) * frequency / np.float32(scaling.factor) + kept * frequency


def _yarn(period: np.ndarray, scaling: RopeScaling, theta: float, width: int) -> np.ndarray:
    """Apply the rule of YaRN (arXiv 2309.00071), with the original context n and pair index i.

    A pair turns n f / (2 pi) times in the context, which is b for the index c(b) = w ln(n / (2 pi b)) / (2 ln theta).
    Up to floor c(fast), f stays. From ceil c(slow) on, f becomes f / factor. In between, the two are blended linearly
    in i.

    Args:
        period: 1 / f of every pair.
        scaling: gives fast, slow, factor and n.
        theta: rotary base.
        width: w, the number of channels of a head that rotate.
    """
    fast, slow, context = scaling.beta_fast, scaling.beta_slow, scaling.original_max_positions
    if fast is None or slow is None or context is None:
        raise ValueError(f"a yarn RopeScaling needs all of its numbers, found {scaling}")

    def index(turns: float) -> float:
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), width - 1)
    span = last - first or 0.001
    kept = 1 - np.clip((np.arange(width // 2, dtype=np.float32) - np.float32(first)) / np.float32(span), 0, 1)
    return (1 / (np.float32(scaling.factor) * period)) * (1 - kept) + (1 / period) * kept


def rotations(
    spec: ModelSpec, positions: Int[Array, "b t"], dtype: DTypeLike
) -> tuple[Float[Array, "r b t half"], Float[Array, "r b t half"]]:
    """Return cosine and sine of position times frequency, each (rotary tables, batch, tokens, rotated channels / 2).

    Both have at least float32, because bfloat16 cannot tell positions over 256 apart.
    """
    tables = (Rope(spec.rope_theta, spec.rope_scaling), *spec.other_ropes)
    frequency = jnp.asarray(np.stack([table_frequencies(rope, spec.rotary_width) for rope in tables]), wide(dtype))
    angles = positions.astype(frequency.dtype)[None, :, :, None] * frequency[:, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    factors = [1.0 if rope is None or rope.scaling is None else rope.scaling.attention_factor or 1.0 for rope in tables]
    if any(factor != 1 for factor in factors):
        factor = jnp.asarray(factors, cos.dtype)[:, None, None, None]
        cos, sin = cos * factor, sin * factor
    return cos, sin


def rotate(
    x: Float[Array, "b t n h"],
    cos: Float[Array, "b t half"],
    sin: Float[Array, "b t half"],
    interleaved: bool = False,
) -> Float[Array, "b t n h"]:
    """Rotate the first channels of every head in pairs by the token's angles, in Hugging Face's channel order.

    Args:
        x: queries or keys, (batch, tokens, heads, head width).
        cos: cosines of the angles, (batch, tokens, w / 2); the first w channels rotate.
        sin: sines of the angles.
        interleaved: whether the pairs are (2i, 2i + 1), and not (i, i + w/2).
    """
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width].astype(cos.dtype), x[..., width:]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else jnp.split(turned, 2, axis=-1)
    pairs = first * cos - second * sin, second * cos + first * sin
    turned = jnp.stack(pairs, axis=-1).reshape(turned.shape) if interleaved else jnp.concatenate(pairs, axis=-1)
    turned = turned.astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def grown(spec: ModelSpec, query: Float[Array, "b t n h"], positions: Int[Array, "b t"]) -> Float[Array, "b t n h"]:
    """Multiply the query at position p by 1 + beta ln(1 + floor(p / n)), with n the original context.

    Args:
        spec: gives beta (`query_growth`) and n, if the model has them.
        query: queries, (batch, tokens, heads, head width).
        positions: p of every query, (batch, tokens).
    """
    scaling = spec.rope_scaling
    if scaling is None or not scaling.query_growth or scaling.original_max_positions is None:
        return query
    turns = (positions // scaling.original_max_positions).astype(wide(query.dtype))
    factor = 1 + scaling.query_growth * jnp.log1p(turns)
    return query * factor[:, :, None, None].astype(query.dtype)
