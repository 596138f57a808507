"""Defines the decoder as one Linen module over stacked layers, its blocks as pure functions, and its logical axes.

Axis letters in shapes are those of `hcnr_jax.models.layers`.
"""

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
    LayerKind,
    RMSNorm,
    geometry_of,
    wide,
)
from hcnr_jax.models.spec import ModelSpec

Params = dict[str, Any]


class Decoder(nn.Module):
    """Computes the logits of a causal language model: `Decoder(spec).apply({"params": params}, tokens, mask)`.

    nn.scan stacks the layers, so that one block is compiled whatever the depth. nn.remat recomputes each layer in the
    backward pass, which therefore holds the activations of one layer only. Every linear layer is an nn.Dense, so that
    nn.intercept_methods can read and change its inputs. Parameters may be stored in any float dtype.

    Attributes:
        spec: the shapes and the arithmetic of the model.
        dtype: compute dtype of the linear layers and the residual stream.
        remat: False keeps every activation for the backward pass, which is faster and takes more memory.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from hcnr_jax.models import Decoder, init_params, spec_from_config
        >>> sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
        >>> config = {"model_type": "llama", "num_attention_heads": 2, **sizes}
        >>> spec = spec_from_config(config, source="config.json")
        >>> params = init_params(spec, jax.random.key(0))
        >>> Decoder(spec).apply({"params": params}, jnp.array([[1, 5, 7]])).shape
        (1, 3, 16)
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
        self.final_norm = RMSNorm(spec.rms_norm_eps, self.dtype, spec.recipe.norm_offset)
        if not spec.tie_embeddings:
            self.lm_head = nn.Dense(spec.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=KERNEL_INIT)

    def __call__(
        self, tokens: Int[Array, "b t"], attention_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t v"]:
        """Return the logits of the token after each position.

        Args:
            tokens: token ids, (batch, tokens).
            attention_mask: True at real tokens, (batch, tokens); None where no token is padding. Padding may be on
                either side.

        Returns:
            Logits (batch, tokens, vocabulary) in at least float32. Logits at padding have no meaning.
        """
        return self.head(self.hidden(tokens, attention_mask))

    def hidden(
        self, tokens: Int[Array, "b t"], attention_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t d"]:
        """Return the residual stream after the last block, which is the input of `head`."""
        mask = _real_tokens(tokens, attention_mask)
        return self.run_blocks(self.embed_tokens(tokens), geometry_of(self.spec, mask, self.dtype), None)[0]

    def embed_tokens(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Return the residual stream before the first block."""
        return self.embed(tokens)

    def run_blocks(
        self, hidden: Float[Array, "b t d"], geometry: Geometry, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """Run all blocks on the residual stream.

        Args:
            hidden: the residual stream before the first block, (batch, tokens, hidden).
            geometry: positions and masks of the tokens, see `Geometry`.
            cache: keys and values of earlier tokens with a leading layer axis; None to run without a cache.

        Returns:
            The residual stream after the last block, and the cache. The cache has the keys and values of these tokens
            from slot `geometry.slot` on.
        """
        return self.blocks(hidden, block_kinds(self.spec), geometry, cache)

    def head(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Apply the final norm and compute the logits, in at least float32."""
        normed = self.final_norm(hidden)
        logits = self.embed.attend(normed) if self.spec.tie_embeddings else self.lm_head(normed)
        logits = logits.astype(wide(self.dtype))
        if self.spec.logits_scaling != 1:
            logits = logits / self.spec.logits_scaling
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def block_kinds(spec: ModelSpec) -> LayerKind:
    """Return the window and the rotary table of each layer; slice it at one layer for `apply_block`."""
    rotary = spec.layer_rotary or (0,) * len(spec.layer_windows)
    return LayerKind(block_windows(spec), jnp.asarray(rotary, jnp.int32))


def block_windows(spec: ModelSpec) -> Int[Array, " l"]:
    """Return the attention window of each layer in tokens, (layers,); FULL_WINDOW where a layer has no window."""
    return jnp.asarray([FULL_WINDOW if window is None else window for window in spec.layer_windows], jnp.int32)


def embed_tokens(
    spec: ModelSpec, params: Params, tokens: Int[Array, "b t"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b t d"]:
    """Return the residual stream before the first block.

    Args:
        spec: the model.
        params: the parameter tree, of which only `embed` is read.
        tokens: token ids, (batch, tokens).
        dtype: compute dtype.
    """
    return cast(Array, Decoder(spec, dtype).apply({"params": params}, tokens, method="embed_tokens"))


def apply_block(
    spec: ModelSpec,
    block_params: Params,
    hidden: Float[Array, "b t d"],
    attention_mask: Bool[Array, "b t"] | None,
    layer: LayerKind | Int[Array, ""],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b t d"]:
    """Run one block without scan or remat, so that an interceptor around this call sees plain nn.Dense calls.

    `embed_tokens`, then `apply_block` for every layer in order, then `apply_head` compute the same as `Decoder`.

    Args:
        spec: the model.
        block_params: the `blocks` subtree sliced at one layer, without the layer axis.
        hidden: the residual stream before the block, (batch, tokens, hidden).
        attention_mask: True at real tokens, (batch, tokens); None where no token is padding.
        layer: the layer's entry of `block_kinds(spec)`, whose leaves are arrays, so that one compilation serves all
            layers. The entry of `block_windows(spec)` is enough where all layers share one rotary table.
        dtype: compute dtype.

    Returns:
        The residual stream after the block, (batch, tokens, hidden).

    Raises:
        ValueError: `layer` is a window alone, and the layers of the model have different rotary tables.
    """
    if not isinstance(layer, LayerKind):
        if spec.other_ropes:
            raise ValueError("layer is a window, but layers rotate differently; expected an entry of block_kinds(spec)")
        layer = LayerKind(layer, jnp.zeros((), jnp.int32))
    mask = _real_tokens(hidden[:, :, 0], attention_mask)
    geometry = geometry_of(spec, mask, dtype)
    return Block(spec, dtype).apply({"params": block_params}, hidden, layer, geometry, None)[0]


def apply_head(
    spec: ModelSpec, params: Params, hidden: Float[Array, "b t d"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b t v"]:
    """Apply the final norm and compute the logits (batch, tokens, vocabulary), in at least float32.

    Args:
        spec: the model.
        params: the parameter tree, of which only `final_norm` and `lm_head` are read (`embed` where the head is tied).
        hidden: the residual stream after the last block, (batch, tokens, hidden).
        dtype: compute dtype.
    """
    return cast(Array, Decoder(spec, dtype).apply({"params": params}, hidden, method="head"))


@partial(jax.jit, static_argnames=("spec", "dtype"))
def init_params(spec: ModelSpec, key: Key[Array, ""] | Int[Array, "2"], dtype: DTypeLike = jnp.float32) -> Params:
    """Draw random parameters as the families initialise theirs: normal(0.02) matrices, zero biases, unit norms."""
    params = Decoder(spec, remat=False).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(spec: ModelSpec, dtype: DTypeLike = jnp.float32) -> Params:
    """Return the parameter tree with jax.ShapeDtypeStruct leaves, without allocating any array."""
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
    "qkv": ("embed", "heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "gate_up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}

LOGICAL_AXES = ("layers", "vocab", "embed", "heads", "head_dim", "mlp")
"""Lists every name that `logical_axes` uses. The size of `heads` is in channels: heads times head width."""


def logical_axes(spec: ModelSpec) -> Params:
    """Return a tree like the parameters whose leaves are tuples: one logical axis name per dimension.

    JAX takes a tuple for a subtree, so map over this tree with `is_leaf=lambda x: isinstance(x, tuple)`.
    """

    def axes(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> tuple[str, ...]:
        keys = [entry.key for entry in path]
        module = keys[-2]
        names = _AXES.get("/".join(keys)) or _AXES["norm" if module not in _AXES else module]
        if spec.recipe.qk_norm_joint and module in ("q_norm", "k_norm"):
            names = ("heads",)
        if keys[-1] == "bias":
            names = names[-1:]
        return ("layers", *names) if keys[0] == "blocks" else names

    return jax.tree_util.tree_map_with_path(axes, abstract_params(spec))


def _real_tokens(like: Array, attention_mask: Array | None) -> Array:
    return jnp.ones(like.shape, bool) if attention_mask is None else attention_mask
