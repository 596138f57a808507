"""The Decoder as the method sees it: a loss of one row, and a model made of blocks."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hcnr_jax.data import Batch
from hcnr_jax.method.blocks import BlockModel
from hcnr_jax.method.fisher import Loss
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.models import GROUPS, Decoder, ModelSpec, apply_block, block_windows, completion_nll, embed_tokens


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
def block_model(spec: ModelSpec, dtype: DTypeLike = jnp.float32) -> BlockModel:
    """The Decoder for the block sweep; its batches are `Batch` values. One value per spec: compilations are shared."""

    def apply(block_params: Params, hidden: Any, batch: Batch, index: Any) -> Any:
        return apply_block(
            spec, block_params, hidden, jnp.asarray(batch.attention_mask), block_windows(spec)[index], dtype
        )

    return BlockModel(
        num_blocks=spec.num_layers,
        embed=lambda params, batch: embed_tokens(spec, params, jnp.asarray(batch.tokens), dtype),
        apply=apply,
        block_params=lambda params, index: jax.tree.map(lambda leaf: leaf[index], params["blocks"]),
        token_mask=lambda batch: batch.attention_mask,
        groups=GROUPS,
        kernel=lambda index, path: Kernel(f"blocks/{path}", (index,)),
    )
