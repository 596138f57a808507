"""Sum what a restoration reads of its data, batch by batch: scores, losses, and second moments of the inputs.

Only sums are kept, so that data may be an iterator that is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from hcnr_jax.errors import InputError
from hcnr_jax.method.curvature import Moments, mean_moments
from hcnr_jax.method.fisher import init_scores, score_batch
from hcnr_jax.method.neurons import Leaves, wide
from hcnr_jax.method.one_call.batches import Batch, check_losses
from hcnr_jax.method.one_call.layer_inputs import TokenMask, add_moments, layer_inputs, zero_moments
from hcnr_jax.method.one_call.linear_view import LinearView
from hcnr_jax.method.sums import mean_sums

# The number of views whose programs stay compiled.
CACHED_VIEWS = 16

Matrices = Mapping[str, Any]


class Programs(NamedTuple):
    """Holds the compiled programs of a view.

    Args:
        score: (sums, matrices, batch) -> sums with the batch's scores, and its losses.
        moments: (firsts, {first: moments}, matrices, batch) -> new moments, and the losses.
        shifted: (first, index, moments, matrices now, matrices of the aim, batch) -> new moments of one kernel.
    """

    score: Callable[..., Any]
    moments: Callable[..., Any]
    shifted: Callable[..., Any]


@functools.lru_cache(maxsize=CACHED_VIEWS)
def programs_of(view: LinearView, token_mask: TokenMask | None) -> Programs:
    """Return the programs of a view. A second restoration with the same loss and shapes compiles nothing."""

    def score(sums: Any, matrices: Matrices, batch: Batch) -> Any:
        count = jax.tree.leaves(batch)[0].shape[0]
        return score_batch(view.loss, matrices, view.paths, batch, jnp.ones(count, jnp.float32), sums)

    def moments(firsts: tuple[str, ...], sums: dict[str, Moments], matrices: Matrices, batch: Batch) -> Any:
        seen, losses = layer_inputs(view, matrices, batch, firsts=firsts, token_mask=token_mask)
        return {first: add_moments(sums[first], *seen[first]) for first in firsts}, losses

    def shifted(first: str, index: Any, sums: Moments, now: Matrices, aim: Matrices, batch: Batch) -> Moments:
        def inputs(matrices: Matrices) -> tuple[Array, Array]:
            seen, _ = layer_inputs(view, matrices, batch, firsts=(first,), token_mask=token_mask)
            x, keep = seen[first]
            x = x.reshape(x.shape[0], -1, *x.shape[-2:])
            keep = keep.reshape(keep.shape[0], -1, keep.shape[-1])
            return jax.lax.dynamic_index_in_dim(x, index, 1), jax.lax.dynamic_index_in_dim(keep, index, 1)

        reference, keep = inputs(aim)
        return add_moments(sums, inputs(now)[0], keep, reference)

    return Programs(
        jax.jit(score, donate_argnums=0),
        jax.jit(moments, static_argnums=0, donate_argnums=1),
        jax.jit(shifted, static_argnums=0, donate_argnums=2),
    )


class Pass(NamedTuple):
    """Holds the result of one pass over a set of rows.

    Args:
        scores: Fisher scores at tuned, {path: (*stack, in)}.
        losses: the losses at tuned, (examples,).
        moments: {first kernel of a group: moments with one leading axis over stacked kernels}, as means.
    """

    scores: Leaves
    losses: np.ndarray
    moments: dict[str, Moments]


def read_once(
    view: LinearView,
    programs: Programs,
    batches: Iterable[Batch],
    *,
    tuned: Matrices,
    aim: tuple[str, Matrices] | None,
    name: str,
) -> Pass:
    """Score the rows at tuned, and sum the moments of all groups at another model in the same pass.

    Args:
        view: the model.
        programs: of the view.
        batches: of the rows.
        tuned: the matrices at which rows are scored.
        aim: the name and the matrices of the model whose inputs are summed; None sums nothing.
        name: of the rows, for messages.

    Raises:
        InputError: a loss or a score is not finite, or no token counts.
    """
    sums, firsts = init_scores(tuned, view.paths), tuple(view.groups)
    flat = flatten_dict(tuned, sep="/")
    moments = {first: zero_moments(view, first, wide(flat[first].dtype)) for first in firsts} if aim else {}
    losses: list[Any] = []
    others: list[Any] = []
    for batch in batches:
        sums, found = programs.score(sums, tuned, batch)
        losses.append(found)
        if aim is not None:
            moments, found = programs.moments(firsts, moments, aim[1], batch)
            others.append(found)
    checked = check_losses(losses, name, "tuned")
    if aim is not None:
        check_losses(others, name, aim[0])
    scores = mean_sums(sums)["input"]
    _check_scores(scores, name)
    return Pass(scores, checked, {first: mean_of(total, first, name) for first, total in moments.items()})


def mean_of(moments: Moments, first: str, name: str) -> Moments:
    """Divide the moments of a group by its tokens, which must be more than 0."""
    if not np.all(np.asarray(moments.tokens) > 0):
        raise InputError(
            f"{name}: no token of the inputs of kernel {first} counts; expected at least one. Check `token_mask`, or "
            "leave the kernel out with `kernels`"
        )
    return _means(moments)


_means = jax.jit(jax.vmap(mean_moments))


def _check_scores(scores: Leaves, name: str) -> None:
    for path, leaf in scores.items():
        if not np.all(np.isfinite(np.asarray(leaf))):
            raise InputError(
                f"{name}: the scores of kernel {path} hold NaN or Inf though every loss is finite; expected finite "
                "numbers. A gradient overflows: scale the loss down (a mean over tokens), or compute in float32"
            )


def propagated_moments(
    view: LinearView,
    programs: Programs,
    batches: Sequence[Batch] | Iterable[Batch],
    *,
    place: tuple[str, int],
    now: Matrices,
    aim: Matrices,
    name: str,
) -> Moments:
    """Sum the moments that one group's kernels read in the model restored so far, with those of the aim beside.

    Args:
        view: the model.
        programs: of the view.
        batches: of the rows.
        place: the first kernel of the group, and the position of its kernels along the stack.
        now: the matrices of the model restored so far.
        aim: the matrices of base on honesty rows, of tuned on task rows.
        name: of the rows, for messages.
    """
    first, index = place
    dtype = wide(flatten_dict(now, sep="/")[first].dtype)
    moments = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:1]), zero_moments(view, first, dtype, propagated=True))
    for batch in batches:
        moments = programs.shifted(first, jnp.asarray(index), moments, now, aim, batch)
    return mean_of(moments, first, name)
