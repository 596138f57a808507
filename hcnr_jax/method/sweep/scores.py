"""Fisher scores one block at a time: a forward sweep that keeps block inputs, a backward sweep of block VJPs.

The same scores as `fisher.score_batch`, for models of which only a block fits in memory: parameters are asked for one
block at a time, forward and then backward, and the inputs of every block go to a mapping of the caller's (a dict, or
files). Beside them one block's weights and one microbatch's activations are alive.

    h_0 = embed, h_{i+1} = block_i(h_i), L = loss(h_n)            forward
    (s_i, dL/dh_i) = VJP of block_i at (taps, h_i)              backward, the taps' cotangent being the score
"""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hcnr_jax.method.fisher import TAPS, make_taps, tapped
from hcnr_jax.method.neurons import Granularity, Kernel, Params, beside, put_leaves
from hcnr_jax.method.sums import Sums, init_sums, mean_sums, update_sums
from hcnr_jax.method.sweep.model import Batch, BlockModel, Hidden, embed, steps_of

Store = MutableMapping[tuple[int, int], Any]
"""(block, microbatch) -> the hidden states before that block."""


def layerwise_losses(
    model: BlockModel, params: Params, batches: Sequence[Batch], *, on_block: Callable[[int], None] = lambda index: None
) -> list[Float[Array, " b"]]:
    """The loss of every row, by microbatch: one forward sweep."""
    hidden = [embed(model, params, batch) for batch in batches]
    for index in range(model.num_blocks):
        block = model.block_params(params, index)
        hidden = [steps_of(model).apply(block, x, batch, index) for x, batch in zip(hidden, batches, strict=True)]
        on_block(index)
    outer = model.outer(params)
    return [_losses(model, outer, x, batch) for x, batch in zip(hidden, batches, strict=True)]


def layerwise_scores(
    model: BlockModel,
    params: Params,
    batches: Sequence[Batch],
    *,
    weights: Sequence[Float[Array, " b"]],
    granularity: Granularity,
    store: Store,
    on_block: Callable[[int], None] = lambda index: None,
) -> tuple[dict[Kernel, Array], list[Float[Array, " b"]]]:
    """Mean score of every kernel's neurons over all rows, and the rows' losses by microbatch.

    weights: 1 for a row, 0 for padding. store: emptied again as it is read. on_block is called once a block in either
    direction.
    """
    hidden = [embed(model, params, batch) for batch in batches]
    for index in range(model.num_blocks):
        block = model.block_params(params, index)
        for place, batch in enumerate(batches):
            store[index, place] = hidden[place]
            hidden[place] = steps_of(model).apply(block, hidden[place], batch, index)
        on_block(index)
    outer = model.outer(params)
    heads = [_head(model, outer, x, batch) for x, batch in zip(hidden, batches, strict=True)]
    losses, cotangents = [loss for loss, _ in heads], [cotangent for _, cotangent in heads]
    scores: dict[Kernel, Array] = {}
    for index in reversed(range(model.num_blocks)):
        block = model.block_params(params, index)
        taps = make_taps(block, model.paths, (granularity,))
        sums = init_sums(taps)
        for place, batch in enumerate(batches):
            x = store.pop((index, place))
            sums, cotangents[place] = _backward(
                model, granularity, block, taps, x, batch, index, cotangents[place], weights[place], sums
            )
        means = mean_sums(sums)
        scores |= {model.kernel(index, path): means[beside(path, TAPS[granularity])] for path in model.paths}
        on_block(index)
    return scores, losses


def stack_scores(scores: dict[Kernel, Array], paths: Sequence[str]) -> dict[str, Array]:
    """{path: (*stack, n)} as `fisher` gives them, from single kernels with at most one stack axis."""

    def leaf(path: str) -> Array:
        found = {kernel.index: score for kernel, score in scores.items() if kernel.path == path}
        return found[()] if () in found else jnp.stack([found[index] for index in sorted(found)])

    return {path: leaf(path) for path in paths}


@functools.partial(jax.jit, static_argnums=0)
def _losses(model: BlockModel, outer: Params, hidden: Hidden, batch: Batch) -> Float[Array, " b"]:
    return _loss_of(model)(outer, hidden, batch)


@functools.partial(jax.jit, static_argnums=0)
def _head(model: BlockModel, outer: Params, hidden: Hidden, batch: Batch) -> tuple[Float[Array, " b"], Hidden]:
    """Losses, and each row's own dL/dh: rows do not meet, so that the gradient of their sum holds every row's."""

    def total(x: Hidden) -> tuple[Array, Array]:
        losses = _loss_of(model)(outer, x, batch)
        return jnp.sum(losses), losses

    cotangent, losses = jax.grad(total, has_aux=True)(hidden)
    return losses, cotangent


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=9)
def _backward(
    model: BlockModel,
    granularity: Granularity,
    block: Params,
    taps: dict[str, Array],
    hidden: Hidden,
    batch: Batch,
    index: Any,
    cotangent: Hidden,
    weights: Float[Array, " b"],
    sums: Sums,
) -> tuple[Sums, Hidden]:
    """One block of one microbatch: per-row scores added up, and the cotangent of its input."""

    def one(x: Hidden, row: Batch, g: Hidden) -> tuple[dict[str, Array], Hidden]:
        lone = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], row)

        def through(p: dict[str, Array], h: Hidden) -> Hidden:
            with tapped():
                out = model.apply(put_leaves(block, p), jax.tree.map(lambda leaf: leaf[None], h), lone, index)
            return jax.tree.map(lambda leaf: leaf[0], out)

        return jax.vjp(through, taps, x)[1](g)

    if granularity != "weight":
        scores, before = jax.vmap(one)(hidden, batch, cotangent)
        return update_sums(sums, scores, weights), before

    # Weight scores are as large as the weights: only one row's are alive at a time.
    def step(carry: Sums, row: tuple[Hidden, Batch, Hidden, Array]) -> tuple[Sums, Hidden]:
        scores, before = one(*row[:3])
        return update_sums(carry, jax.tree.map(lambda leaf: leaf[None], scores), row[3][None]), before

    return jax.lax.scan(step, sums, (hidden, jax.tree.map(jnp.asarray, batch), cotangent, weights))


def _loss_of(model: BlockModel) -> Callable[..., Array]:
    if model.loss is None:
        raise ValueError("BlockModel.loss is None: layer-wise scores need (outer params, hidden, batch) -> (rows,)")
    return model.loss
