"""Estimates the condition numbers of the second moments of a few blocks' inputs, in one pass through the model."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hcnr_jax.evaluate.warning_signs import Condition
from hcnr_jax.method.curvature import Moments, capture_inputs, damping_of, init_moments, mean_moments, update_moments
from hcnr_jax.method.solve import condition_of, factorise
from hcnr_jax.method.sweep.run import BlockModel


def middle_blocks(count: int) -> list[int]:
    """List the first, the middle and the last block."""
    return sorted({0, count // 2, count - 1})


@partial(jax.jit, static_argnums=0)
def _step(model: BlockModel, block: Any, hidden: Any, batch: Any, index: Any) -> Any:
    return model.apply(block, hidden, batch, index)


@partial(jax.jit, static_argnums=(0, 1))
def _add(
    model: BlockModel, paths: tuple[str, ...], moments: tuple[Moments, ...], block: Any, hidden: Any, batch: Any, i: Any
) -> tuple[Moments, ...]:
    seen = capture_inputs(model.apply, paths, block, hidden, batch, i).inputs
    mask = jnp.asarray(model.token_mask(batch))
    return tuple(update_moments(old, seen[path], None, mask) for old, path in zip(moments, paths, strict=True))


@jax.jit
def _conditions(moments: Moments, damping: Float[Array, ""]) -> tuple[Array, Array]:
    matrix, ridge = moments.inputs, damping_of(moments, damping)
    damped = matrix + ridge * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return condition_of(factorise(matrix)), condition_of(factorise(damped))


def input_conditions(
    model: BlockModel, params: Any, batches: Sequence[Any], *, damping: float, blocks: Sequence[int] | None = None
) -> list[Condition]:
    """Estimate the condition number of H = mean x x^T over the rows' tokens, for each group of kernels of `blocks`.

    Args:
        model: the model as a sequence of blocks.
        params: params of the model that gives the inputs x (BASE for honesty rows).
        batches: microbatches of the rows.
        damping: damping of H, as a fraction of its mean diagonal.
        blocks: indices of the blocks to measure; `middle_blocks` by default.
    """
    chosen = middle_blocks(model.num_blocks) if blocks is None else list(blocks)
    firsts = tuple(group[0] for group in model.groups)
    hidden = [jax.jit(model.embed)(params, batch) for batch in batches]
    found: list[Condition] = []
    for index in range(max(chosen, default=-1) + 1):
        block = model.block_params(params, index)
        if index in chosen:
            widths = [_leaf(block, path).shape[-2] for path in firsts]
            moments = tuple(init_moments(width, False) for width in widths)
            for states, batch in zip(hidden, batches, strict=True):
                moments = _add(model, firsts, moments, block, states, batch, index)
            for group, sums in zip(model.groups, moments, strict=True):
                found.append(_condition(f"block {index} {_short(group)}", mean_moments(sums), damping))
        if index < max(chosen):
            hidden = [_step(model, block, states, batch, index) for states, batch in zip(hidden, batches, strict=True)]
    return found


def _condition(name: str, moments: Moments, damping: float) -> Condition:
    pair = _conditions(moments, jnp.asarray(damping, jnp.float32))
    undamped, damped = (float(value) if np.isfinite(float(value)) else None for value in pair)
    return Condition(name, moments.inputs.shape[0], int(moments.tokens), undamped, damped)


def _short(group: Sequence[str]) -> str:
    return ", ".join(path.split("/")[-2] for path in group)


def _leaf(block: Any, path: str) -> Any:
    for key in path.split("/"):
        block = block[key]
    return block
