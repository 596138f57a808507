"""The Decoder as the method sees it: a loss of one row, and a model made of blocks."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hcnr_jax.checkpoints.stream import StreamedParams
from hcnr_jax.data import Batch
from hcnr_jax.method.blocks import BlockModel
from hcnr_jax.method.fisher import Loss
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.models import (
    GROUPS,
    Decoder,
    ModelSpec,
    apply_block,
    apply_head,
    block_windows,
    completion_nll,
    embed_tokens,
)


def row_loss(
    spec: ModelSpec, reduction: Literal["mean", "sum"] = "mean", dtype: DTypeLike = jnp.float32, remat: bool = True
) -> Loss:
    """The loss whose gradients are scored: NLL of ONE row's completion, (params, Batch without its row axis) ->
    scalar."""
    decoder = Decoder(spec, dtype, remat)

    def loss(params: Params, example: Batch) -> Float[Array, ""]:
        row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)
        logits: Any = decoder.apply({"params": params}, row.tokens, row.attention_mask)
        return completion_nll(logits, row.tokens, row.completion_mask, reduction)[0]

    return loss


@functools.cache
def block_model(
    spec: ModelSpec, dtype: DTypeLike = jnp.float32, reduction: Literal["mean", "sum"] = "mean"
) -> BlockModel:
    """The Decoder as blocks, for sweeps and layer-wise scores; its batches are `Batch` values.

    Params are the tree of `load_params`, or anything with `outer` and `block` such as `StreamedParams`. One value per
    spec: compilations are shared.
    """

    def apply(block_params: Params, hidden: Any, batch: Batch, index: Any) -> Any:
        return apply_block(
            spec, block_params, hidden, jnp.asarray(batch.attention_mask), block_windows(spec)[index], dtype
        )

    def loss(outer: Params, hidden: Any, batch: Batch) -> Float[Array, " b"]:
        tokens, completion = jnp.asarray(batch.tokens), jnp.asarray(batch.completion_mask)
        return completion_nll(apply_head(spec, outer, hidden, dtype), tokens, completion, reduction)

    return BlockModel(
        num_blocks=spec.num_layers,
        embed=lambda outer, batch: embed_tokens(spec, outer, jnp.asarray(batch.tokens), dtype),
        apply=apply,
        block_params=_block_params,
        token_mask=lambda batch: batch.attention_mask,
        groups=GROUPS,
        kernel=lambda index, path: Kernel(f"blocks/{path}", (index,)),
        outer=_outer_params,
        loss=loss,
    )


def _block_params(params: Any, index: int) -> Params:
    if isinstance(params, StreamedParams):
        return params.block(index)
    return _block_at(params["blocks"], index)


@jax.jit
def _block_at(blocks: Params, index: Any) -> Params:
    """One layer of every stacked leaf, in one program."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), blocks)


def _outer_params(params: Any) -> Params:
    if isinstance(params, StreamedParams):
        return params.outer
    return {name: leaf for name, leaf in params.items() if name != "blocks"}
