"""One Llama-shaped block in float64 numpy, for the oracle's whole-model runs; written from the architecture."""

from collections.abc import Callable, Mapping

import numpy as np

from hcnr_jax.models import ModelSpec

Array = np.ndarray


def norm(x: Array, scale: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def rotary(x: Array, theta: float) -> Array:
    """x (b, t, n, h): channel pairs (i, i + h/2) turned by position * theta^(-2i/h); right-padded rows."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)[None, :]
    cos, sin = np.cos(angle)[None, :, None, :], np.sin(angle)[None, :, None, :]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def decoder_block(spec: ModelSpec) -> Callable[..., Array]:
    """The block as `oracle.run_block` calls it: grouped-query attention and a gated MLP, both pre-norm."""

    def block(
        weights: Mapping[str, Array], hidden: Array, valid: Array, linear: Callable[[str, Array], Array]
    ) -> Array:
        rows, length, _ = hidden.shape
        x = norm(hidden, weights["attention_norm/scale"], spec.rms_norm_eps)

        def heads(name: str, count: int) -> Array:
            return linear(f"attention/{name}", x).reshape(rows, length, count, spec.head_dim)

        repeats = spec.num_heads // spec.num_kv_heads
        q = rotary(heads("q", spec.num_heads), spec.rope_theta)
        k = rotary(heads("k", spec.num_kv_heads), spec.rope_theta).repeat(repeats, axis=2)
        v = heads("v", spec.num_kv_heads).repeat(repeats, axis=2)
        scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(spec.head_dim)
        seen = np.tril(np.ones((length, length), bool))[None, None] & valid[:, None, None, :]
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("bnts,bsnh->btnh", shares, v).reshape(rows, length, -1)
        hidden = hidden + linear("attention/o", mixed)
        x = norm(hidden, weights["mlp_norm/scale"], spec.rms_norm_eps)
        gate, up = linear("mlp/gate", x), linear("mlp/up", x)
        return hidden + linear("mlp/down", gate / (1 + np.exp(-gate)) * up)

    return block
