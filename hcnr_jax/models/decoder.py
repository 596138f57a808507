"""The decoder as one Linen module over stacked layers, its blocks as pure functions, and its logical axes."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from hcnr_jax.models.layers import (
    FULL_WINDOW,
    KERNEL_INIT,
    Block,
    Embed,
    Geometry,
    LayerCache,
    RMSNorm,
    geometry_of,
    wide,
)
from hcnr_jax.models.spec import ModelSpec

Params = dict[str, Any]


class Decoder(nn.Module):
    """Causal language model: `Decoder(spec).apply({"params": params}, tokens, attention_mask)` -> logits.

    Layers are stacked by nn.scan, so that it compiles once whatever the depth, and rematerialised, so that a backward
    pass holds one layer's activations. Every linear is an nn.Dense and can be tapped by nn.intercept_methods.
    Parameters may be stored in any float dtype.

    Attributes:
        spec: shapes and arithmetic.
        dtype: compute dtype of the linears and the residual stream.
        remat: False keeps every activation for the backward pass.
    """

    spec: ModelSpec
    dtype: DTypeLike = jnp.float32
    remat: bool = True

    def setup(self) -> None:
        spec = self.spec
        self.embed = Embed(spec, self.dtype)
        # Inside a scan nothing can be merged across iterations, so the barrier that remat adds by default only costs.
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        stacked = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, 0),
            length=spec.num_layers,
        )
        self.blocks = stacked(spec, self.dtype)
        self.final_norm = RMSNorm(spec.rms_norm_eps, self.dtype)
        if not spec.tie_embeddings:
            self.lm_head = nn.Dense(spec.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=KERNEL_INIT)

    def __call__(
        self, tokens: Int[Array, "b t"], attention_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t v"]:
        """Logits [b t v] in at least float32; rows at padding mean nothing. Padding may be on either side."""
        return self.head(self.hidden(tokens, attention_mask))

    def hidden(
        self, tokens: Int[Array, "b t"], attention_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t d"]:
        """The residual stream after the last block, which `head` reads."""
        mask = _real_tokens(tokens, attention_mask)
        return self.run_blocks(self.embed_tokens(tokens), geometry_of(self.spec, mask, self.dtype), None)[0]

    def embed_tokens(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The residual stream before the first block."""
        return self.embed(tokens)

    def run_blocks(
        self, hidden: Float[Array, "b t d"], geometry: Geometry, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """All blocks; `cache` (leading layer axis) comes back with the queries' keys and values written at `slot`."""
        return self.blocks(hidden, block_windows(self.spec), geometry, cache)

    def head(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Final norm and logits."""
        normed = self.final_norm(hidden)
        logits = self.embed.attend(normed) if self.spec.tie_embeddings else self.lm_head(normed)
        return logits.astype(wide(self.dtype))


def block_windows(spec: ModelSpec) -> Int[Array, " l"]:
    """The window of each layer as scan data; FULL_WINDOW where a layer sees everything."""
    return jnp.asarray([FULL_WINDOW if window is None else window for window in spec.layer_windows], jnp.int32)


def embed_tokens(
    spec: ModelSpec, params: Params, tokens: Int[Array, "b t"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b t d"]:
    """The residual stream before the first block. Of `params` only `embed` is read."""
    return cast(Array, Decoder(spec, dtype).apply({"params": params}, tokens, method="embed_tokens"))


def apply_block(
    spec: ModelSpec,
    block_params: Params,
    hidden: Float[Array, "b t d"],
    attention_mask: Bool[Array, "b t"] | None,
    window: Int[Array, ""],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b t d"]:
    """One block, without scan or remat, so that an interceptor around it sees plain nn.Dense calls.

    Args:
        block_params: the `blocks` subtree sliced at one layer.
        window: the layer's entry of `block_windows(spec)`; data, so that one compilation serves all layers.

    Embedding, the blocks in order and the head equal `Decoder`.
    """
    mask = _real_tokens(hidden[:, :, 0], attention_mask)
    geometry = geometry_of(spec, mask, dtype)
    return Block(spec, dtype).apply({"params": block_params}, hidden, window, geometry, None)[0]


def apply_head(
    spec: ModelSpec, params: Params, hidden: Float[Array, "b t d"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b t v"]:
    """Final norm and logits. Of `params` only `final_norm` and `lm_head` (`embed` where tied) are read."""
    return cast(Array, Decoder(spec, dtype).apply({"params": params}, hidden, method="head"))


@partial(jax.jit, static_argnames=("spec", "dtype"))
def init_params(spec: ModelSpec, key: Key[Array, ""] | Int[Array, "2"], dtype: DTypeLike = jnp.float32) -> Params:
    """Random parameters as the families initialise them: normal(0.02) matrices, zero biases, unit norms."""
    params = Decoder(spec, remat=False).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(spec: ModelSpec, dtype: DTypeLike = jnp.float32) -> Params:
    """The param tree as jax.ShapeDtypeStruct leaves: every shape of the model without an array of it."""
    return jax.eval_shape(lambda: init_params(spec, jax.random.key(0), dtype))


_AXES: dict[str, tuple[str, ...]] = {
    "embed/embedding": ("vocab", "embed"),
    "lm_head/kernel": ("embed", "vocab"),
    "norm": ("embed",),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "q": ("embed", "heads"),
    "k": ("embed", "heads"),
    "v": ("embed", "heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}

LOGICAL_AXES = ("layers", "vocab", "embed", "heads", "head_dim", "mlp")
"""Every name that `logical_axes` uses. `heads` counts channels, heads times head width."""


def logical_axes(spec: ModelSpec) -> Params:
    """A tree like the params whose leaves are tuples, one logical axis name per dimension.

    The leaves are tuples, so map over it with `is_leaf=lambda x: isinstance(x, tuple)`.
    """

    def axes(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> tuple[str, ...]:
        keys = [entry.key for entry in path]
        module = keys[-2]
        names = _AXES.get("/".join(keys)) or _AXES["norm" if module not in _AXES else module]
        if keys[-1] == "bias":
            names = names[-1:]
        return ("layers", *names) if keys[0] == "blocks" else names

    return jax.tree_util.tree_map_with_path(axes, abstract_params(spec))


def _real_tokens(like: Array, attention_mask: Array | None) -> Array:
    return jnp.ones(like.shape, bool) if attention_mask is None else attention_mask
