"""Adapts the Decoder to the method: as the loss of one row, and as a sequence of blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hcnr_jax.checkpoints.stream import StreamedParams
from hcnr_jax.data import Batch
from hcnr_jax.method.fisher import Loss
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.method.program import Program
from hcnr_jax.method.refine.problem import Outputs
from hcnr_jax.method.sweep.run import BlockModel
from hcnr_jax.models import (
    Decoder,
    ModelSpec,
    abstract_params,
    apply_block,
    apply_head,
    block_kinds,
    completion_nll,
    completion_window,
    embed_tokens,
    logical_axes,
)
from hcnr_jax.runtime.sharding import Layout, make_layout


def row_loss(
    spec: ModelSpec,
    reduction: Literal["mean", "sum"] = "mean",
    dtype: DTypeLike = jnp.float32,
    *,
    remat: bool = True,
    window: int | None = None,
) -> Loss:
    """Build the loss whose gradients give the scores: (params, Batch without its row axis) -> NLL of ONE completion.

    Args:
        spec: description of the model.
        reduction: mean or sum over the completion's tokens.
        dtype: compute dtype.
        remat: whether the backward pass recomputes every block, to save memory.
        window: number of positions whose logits are computed, of `microbatches.loss_window`; None computes all.
    """
    decoder = Decoder(spec, dtype, remat)

    def loss(params: Params, example: Batch) -> Float[Array, ""]:
        row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)
        hidden: Any = decoder.apply({"params": params}, row.tokens, row.attention_mask, method="hidden")
        return head_nll(spec, params, hidden, batch=row, dtype=dtype, reduction=reduction, window=window)[0]

    return loss


def head_nll(
    spec: ModelSpec,
    outer: Params,
    hidden: Float[Array, "b t d"],
    *,
    batch: Batch,
    dtype: DTypeLike,
    reduction: Literal["mean", "sum"],
    window: int | None,
) -> Float[Array, " b"]:
    """Compute every row's loss from the residual stream after the last block.

    Args:
        spec: description of the model.
        outer: params outside the blocks.
        hidden: the residual stream.
        batch: the rows' tokens and completion mask.
        dtype: compute dtype of the head.
        reduction: mean or sum over a completion's tokens.
        window: as in `row_loss`.
    """
    tokens, completion = jnp.asarray(batch.tokens), jnp.asarray(batch.completion_mask)
    if window is not None:
        hidden, tokens, completion = completion_window(hidden, tokens, completion, window)
    return completion_nll(apply_head(spec, outer, hidden, dtype), tokens, completion, reduction)


@functools.cache
def completion_outputs(spec: ModelSpec, dtype: DTypeLike = jnp.float32, window: int | None = None) -> Outputs:
    """Build the function (params, batch) -> (logits, weights) of the completions' positions.

    A row's weights sum to 1 over the positions that predict its completion, and are 0 elsewhere. `window` is that of
    `row_loss`.
    """
    decoder = Decoder(spec, dtype)

    def outputs(params: Params, batch: Batch) -> tuple[Float[Array, "n t v"], Float[Array, "n t"]]:
        tokens, completion = jnp.asarray(batch.tokens), jnp.asarray(batch.completion_mask)
        hidden: Any = decoder.apply({"params": params}, tokens, jnp.asarray(batch.attention_mask), method="hidden")
        if window is not None:
            hidden, tokens, completion = completion_window(hidden, tokens, completion, window)
        predicts = jnp.pad(completion[:, 1:], ((0, 0), (0, 1)))
        counts = jnp.maximum(jnp.sum(predicts, axis=1, keepdims=True, dtype=jnp.int32), 1)
        logits = apply_head(spec, params, hidden, dtype)
        return logits, predicts.astype(logits.dtype) / counts.astype(logits.dtype)

    return outputs


@functools.cache
def layout_of(mesh: Mesh, spec: ModelSpec) -> Layout:
    """Return where the Decoder's params lie on a mesh."""
    axes: dict[str, Any] = flatten_dict(logical_axes(spec), sep="/")
    shapes: dict[str, Any] = flatten_dict(abstract_params(spec), sep="/")
    return make_layout(mesh, axes, {path: leaf.shape for path, leaf in shapes.items()})


def place_batch(layout: Layout | None, batch: Batch) -> Batch:
    """Place a microbatch on the mesh. The attention mask stays on the host, where the sweep reads it."""
    if layout is None:
        return batch
    return Batch(layout.put_rows(batch.tokens), batch.attention_mask, layout.put_rows(batch.completion_mask))


@functools.cache
def block_model(
    spec: ModelSpec,
    dtype: DTypeLike = jnp.float32,
    reduction: Literal["mean", "sum"] = "mean",
    *,
    layout: Layout | None = None,
    window: int | None = None,
) -> BlockModel:
    """Describe the Decoder as a sequence of blocks, for sweeps and layer-wise scores; its batches are `Batch` values.

    Params are the tree of `load_params`, or a `StreamedParams`. The function returns the same object for the same
    arguments, so that compiled programs are shared.

    On a mesh every kernel of a block is solved whole on one device, because a Cholesky factorisation does not split.
    Different kernels are solved side by side, and every process computes the same results.

    Args:
        spec: description of the model.
        dtype: compute dtype.
        reduction: mean or sum over a completion's tokens.
        layout: places of params on a mesh; None for one device.
        window: as in `row_loss`.
    """

    def apply(block_params: Params, hidden: Any, batch: Batch, index: Any) -> Any:
        layer = jax.tree.map(lambda leaf: leaf[index], block_kinds(spec))
        return apply_block(spec, block_params, hidden, jnp.asarray(batch.attention_mask), layer, dtype)

    def loss(outer: Params, hidden: Any, batch: Batch) -> Float[Array, " b"]:
        return head_nll(spec, outer, hidden, batch=batch, dtype=dtype, reduction=reduction, window=window)

    return BlockModel(
        num_blocks=spec.num_layers,
        embed=lambda outer, batch: embed_tokens(spec, outer, jnp.asarray(batch.tokens), dtype),
        apply=apply,
        block_params=_block_params,
        token_mask=lambda batch: batch.attention_mask,
        groups=spec.groups,
        kernel=lambda index, path: Kernel(f"blocks/{path}", (index,)),
        outer=_outer_params,
        loss=loss,
        **({} if layout is None else _movers(layout, spec.kernels)),
    )


def _movers(layout: Layout, kernels: Sequence[str]) -> dict[str, Callable[..., Any]]:
    def to_solver(kernel: Kernel, operands: Any) -> Any:
        return layout.local(operands, kernels.index(kernel.path))

    def from_solver(kernel: Kernel, weights: jax.Array) -> jax.Array:
        return layout.put(weights, layout.kernel(kernel.path))

    return {"to_solver": to_solver, "from_solver": from_solver}


def _block_params(params: Any, index: int) -> Params:
    if isinstance(params, StreamedParams):
        return params.block(index)
    return _block_at(params["blocks"], index)


@Program
def _block_at(blocks: Params, index: Any) -> Params:
    """Take one layer of every stacked leaf, in one program."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), blocks)


def _outer_params(params: Any) -> Params:
    if isinstance(params, StreamedParams):
        return params.outer
    return {name: leaf for name, leaf in params.items() if name != "blocks"}
