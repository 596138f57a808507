"""Compute Fisher scores one block at a time: a forward sweep keeps block inputs, a backward sweep applies block VJPs.

The scores equal those of `fisher.score_batch`, and models of which only a block fits in memory can be scored. The
sweeps ask for the parameters of one block at a time, forward and then backward. The caller's mapping (a dict, or files)
keeps the inputs of every block. Apart from that mapping, memory holds one block's weights, one microbatch's
activations, and one block output and one gradient of that shape for every row.

    h_0 = embed, h_{i+1} = block_i(h_i), L = loss(h_n)            forward
    (s_i, dL/dh_i) = VJP of block_i at (taps, h_i)              backward; the taps' cotangent is the score
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
"""Maps (block, microbatch) to the hidden states before that block."""


def layerwise_losses(
    model: BlockModel, params: Params, batches: Sequence[Batch], *, on_block: Callable[[int], None] = lambda index: None
) -> list[Float[Array, " b"]]:
    """Compute the loss L of every row in one forward sweep.

    Args:
        model: the model as blocks; its `loss` is needed.
        params: the params that `model` reads, one block at a time.
        batches: microbatches of rows.
        on_block: called with a block's index when the block is done.

    Returns:
        One array (rows,) for each microbatch, in the unit of `model.loss`.

    Raises:
        ValueError: `model.loss` is None.

    >>> model = BlockModel(
    ...     num_blocks=2,
    ...     embed=lambda params, batch: batch,
    ...     apply=lambda block, hidden, batch, index: block * hidden,
    ...     block_params=lambda params, index: params[index],
    ...     token_mask=lambda batch: batch[..., 0] != 0,
    ...     groups=(),
    ...     kernel=lambda index, path: Kernel(path, (index,)),
    ...     loss=lambda params, hidden, batch: jnp.sum(hidden, axis=-1),
    ... )
    >>> [loss.tolist() for loss in layerwise_losses(model, jnp.asarray([2.0, 3.0]), [jnp.asarray([[1.0], [5.0]])])]
    [[6.0, 30.0]]
    """
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
    """Compute the scores s_jk, averaged over all rows, and the rows' losses.

    Args:
        model: the model as blocks; its `loss` is needed.
        params: the params that `model` reads, one block at a time, at which the gradients are taken.
        batches: microbatches of rows.
        weights: for each microbatch (rows,), 1 for a row and 0 for padding.
        granularity: which axes of a kernel are the neuron.
        store: keeps the hidden states before every block, and is empty again at the end.
        on_block: called with a block's index when the block is done, once in the forward and once in the backward
            sweep.

    Returns:
        {kernel: s_jk (*neuron axes)} in the unit of a squared gradient of L, and the losses as in `layerwise_losses`.

    Raises:
        ValueError: `model.loss` is None.

    >>> from flax import linen as nn
    >>> dense = nn.Dense(1, use_bias=False)
    >>> model = BlockModel(
    ...     num_blocks=1,
    ...     embed=lambda params, batch: batch,
    ...     apply=lambda block, hidden, batch, index: dense.apply({"params": block}, hidden),
    ...     block_params=lambda params, index: params,
    ...     token_mask=lambda batch: batch[..., 0] != 0,
    ...     groups=(("kernel",),),
    ...     kernel=lambda index, path: Kernel(path, ()),
    ...     loss=lambda params, hidden, batch: jnp.sum(hidden, axis=(-2, -1)),
    ... )
    >>> params, rows = {"kernel": jnp.ones((2, 1))}, jnp.asarray([[[1.0, 2.0]], [[3.0, 0.0]]])
    >>> scores, losses = layerwise_scores(
    ...     model, params, [rows], weights=[jnp.ones(2)], granularity="input", store={}
    ... )
    >>> scores[Kernel("kernel", ())].tolist(), losses[0].tolist()
    ([5.0, 2.0], [3.0, 3.0])
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
    """Stack the scores of single kernels into leaves {path: (*stack, *neuron axes)}, as `fisher` returns them.

    A leaf may have at most one stack axis.

    >>> scores = {Kernel("q/kernel", (1,)): jnp.asarray([3.0, 4.0]), Kernel("q/kernel", (0,)): jnp.asarray([1.0, 2.0])}
    >>> stack_scores(scores, ["q/kernel"])["q/kernel"].tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """

    def leaf(path: str) -> Array:
        found = {kernel.index: score for kernel, score in scores.items() if kernel.path == path}
        return found[()] if () in found else jnp.stack([found[index] for index in sorted(found)])

    return {path: leaf(path) for path in paths}


@functools.partial(jax.jit, static_argnums=0)
def _losses(model: BlockModel, outer: Params, hidden: Hidden, batch: Batch) -> Float[Array, " b"]:
    return _loss_of(model)(outer, hidden, batch)


@functools.partial(jax.jit, static_argnums=0)
def _head(model: BlockModel, outer: Params, hidden: Hidden, batch: Batch) -> tuple[Float[Array, " b"], Hidden]:
    """Compute the losses and each row's own dL/dh.

    Rows do not influence each other, so that the gradient of the summed loss holds every row's gradient.
    """

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
    """Add the scores of each row of one microbatch to the sums of one block. Also return dL/dh before the block."""

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

    # Weight scores are as large as the weights. Only one row's scores are in memory at a time.
    def step(carry: Sums, row: tuple[Hidden, Batch, Hidden, Array]) -> tuple[Sums, Hidden]:
        scores, before = one(*row[:3])
        return update_sums(carry, jax.tree.map(lambda leaf: leaf[None], scores), row[3][None]), before

    return jax.lax.scan(step, sums, (hidden, jax.tree.map(jnp.asarray, batch), cotangent, weights))


def _loss_of(model: BlockModel) -> Callable[..., Array]:
    if model.loss is None:
        raise ValueError("BlockModel.loss is None: layer-wise scores need (outer params, hidden, batch) -> (rows,)")
    return model.loss
