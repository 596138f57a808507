"""Computes the scores and losses of a set of rows, with the whole model in memory or streamed block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from hcnr_jax.checkpoints.stream import StreamedParams
from hcnr_jax.data import Batch, Example
from hcnr_jax.errors import InputError, RunError
from hcnr_jax.method.fisher import init_scores, score_batch
from hcnr_jax.method.neurons import Granularity, Kernel, Leaves, Params
from hcnr_jax.method.program import Program, lowering
from hcnr_jax.method.sums import Sums, mean_sums
from hcnr_jax.method.sweep.blockwise_fisher import layerwise_losses, layerwise_scores, stack_scores
from hcnr_jax.models import ModelSpec, abstract_params
from hcnr_jax.report.console import Reporter, Stage
from hcnr_jax.restoration.decoder_blocks import block_model, place_batch, row_loss
from hcnr_jax.restoration.microbatches import Part, Shape, halved, microbatches
from hcnr_jax.restoration.score_rounding import jolted, rounding_of
from hcnr_jax.runtime.compile import compile_later
from hcnr_jax.runtime.sharding import Layout
from hcnr_jax.runtime.spill import Spill


@dataclass(frozen=True)
class Scoring:
    """Says how rows are scored. The value is a static argument of the compiled step.

    Args:
        spec: description of the model.
        loss: mean or sum over a completion's tokens.
        granularity: unit that gets a score.
        dtype: compute dtype.
        layout: places of params and rows on a mesh; None for one device.
        window: as in `decoder_blocks.row_loss`.
    """

    spec: ModelSpec
    loss: Literal["mean", "sum"] = "mean"
    granularity: Granularity = "input"
    dtype: str = "float32"
    layout: Layout | None = None
    window: int | None = None


@dataclass(frozen=True)
class Scores:
    """Holds the kernels' mean scores on one set of rows, and the loss of every row.

    Args:
        scores: Fisher scores, by path.
        losses: completion loss of every row in nats, (rows,).
        rounding: {path: (layers,)}, the relative rounding error of the scores; None where it was not measured.
    """

    scores: Leaves
    losses: np.ndarray
    rounding: dict[str, np.ndarray] | None = None


def prepare_scoring(how: Scoring, shapes: Sequence[Shape], params: Params, other: Params | None = None) -> None:
    """Start to compile the programs that `score` and `losses_of` will call, in background threads.

    Nothing is compiled for a mesh, because its program also depends on where the arguments lie.

    Args:
        how: how rows are scored.
        shapes: of the microbatches.
        params: `checkpoints.describe_params` of the model to be scored.
        other: the same of the model whose losses alone are computed; None if there is none.
    """
    if how.layout is not None:
        return
    sums = jax.eval_shape(partial(_no_scores, how))
    with lowering(compile_later):
        for length, rows in shapes:
            mask = np.zeros((rows, length), bool)
            batch = Batch(np.zeros((rows, length), np.int32), mask, mask)
            _score_step(how, params, batch, np.zeros(rows, np.float32), sums)
            if other is not None:
                _loss_step(how, other, batch)


def scoring_memory(how: Scoring, shape: Shape, params: Params) -> tuple[int, int]:
    """Return the compiled scoring program's memory on each device of a mesh: bytes of arguments, and of temporaries.

    Args:
        how: how rows are scored, with a layout.
        shape: of the microbatch.
        params: a tree of jax.ShapeDtypeStruct; no array is allocated.
    """
    layout = how.layout
    if layout is None:
        raise ValueError("scoring_memory: expected a Scoring with a layout")
    shardings = unflatten_dict(layout.params(), sep="/")
    placed = jax.tree.map(lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), params, shardings)

    def rows(dtype: Any, *axes: int) -> Any:
        return jax.ShapeDtypeStruct((shape.rows, *axes), dtype, sharding=layout.rows)

    sums = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.replicated),
        jax.eval_shape(partial(_no_scores, how)),
    )
    batch = Batch(rows(jnp.int32, shape.length), rows(bool, shape.length), rows(bool, shape.length))
    used = _score_step.lower(how, placed, batch, rows(jnp.float32), sums).compile().memory_analysis()
    return used.argument_size_in_bytes, used.temp_size_in_bytes


def score(
    how: Scoring,
    params: Params | StreamedParams,
    examples: Sequence[Example],
    *,
    shapes: Sequence[Shape],
    name: str,
    reporter: Reporter,
    spill: Path | None = None,
    rounding: bool = False,
) -> Scores:
    """Compute the Fisher scores of every kernel's neurons over the rows.

    Microbatches that do not fit in memory are halved, except in a run of several processes.

    Args:
        how: how rows are scored.
        params: of the model to score.
        examples: the encoded rows.
        shapes: of the microbatches.
        name: of the set of rows, for messages.
        reporter: prints progress.
        spill: folder to which a streamed model's block inputs are offloaded; must not exist yet. None keeps them in
            memory.
        rounding: whether to measure the scores' rounding error, with one more backward pass of the cheapest
            microbatch. Streamed models are not measured.

    Raises:
        InputError: the loss of a row is not finite.
        RunError: the device failed, or its memory does not hold the smallest microbatch.
    """
    streamed = isinstance(params, StreamedParams)
    total = 2 * how.spec.num_layers if streamed else len(examples)
    with reporter.stage(f"score {name} rows", total, "block passes" if streamed else "rows") as stage:
        while True:
            try:
                parts = microbatches(examples, shapes)
                if streamed:
                    return _score_streamed(how, params, parts, examples, name, stage, spill)
                return _score_whole(how, params, parts, examples, name, stage, rounding)
            except jax.errors.JaxRuntimeError as error:
                rows = max(shape.rows for shape in shapes)
                least = 1 if how.layout is None else how.layout.row_count
                if "RESOURCE_EXHAUSTED" not in str(error) or rows <= least:
                    raise RunError(memory_message(error, rows)) from error
                if jax.process_count() > 1:  # the other processes wait in a collective of this size
                    raise RunError(f"device memory does not hold {rows} rows: use --microbatch {rows // 2}") from error
                shapes = halved(shapes, least)
                reporter.warn(f"device memory ran out: going on with --microbatch {max(s.rows for s in shapes)}")
                stage.restart()


def _score_whole(
    how: Scoring,
    params: Params,
    parts: Sequence[Part],
    examples: Sequence[Example],
    name: str,
    stage: Stage,
    rounding: bool,
) -> Scores:
    """Score with one backward pass for each microbatch. Losses are read one microbatch late: the device never waits."""
    losses = _Losses(examples, name, stage)
    # The cheapest microbatch comes first, because the rounding is measured on its sums.
    parts = sorted(parts, key=lambda part: part.batch.tokens.size)
    sums, found = _add(how, params, parts[0], _start(how))
    losses.add(parts[0], found)
    measured = None
    if rounding:
        recipe = how.spec.recipe
        moved = jolted(params, recipe.norms, how.dtype, recipe.norm_offset)
        again, _ = _add(how, moved, parts[0], _start(how))
        measured = rounding_of(_means(how, sums), _means(how, again), 2 if how.granularity == "weight" else 1)
    for part in parts[1:]:
        sums, found = _add(how, params, part, sums)
        losses.add(part, found)
    return Scores(_means(how, sums), losses.all(), measured)


def _start(how: Scoring) -> Sums:
    sums = _no_scores(how)
    return sums if how.layout is None else how.layout.replicate(sums)


def _add(how: Scoring, params: Params, part: Part, sums: Sums) -> tuple[Sums, jax.Array]:
    """Add one microbatch's scores to the sums, and return the sums and the microbatch's losses."""
    weights = part.weights if how.layout is None else how.layout.put_rows(part.weights)
    return _score_step(how, params, place_batch(how.layout, part.batch), weights, sums)


def _means(how: Scoring, sums: Sums) -> Leaves:
    means = _mean(sums if how.layout is None else how.layout.local(sums))[how.granularity]
    return {path: means[path] for path in how.spec.kernels}


def _score_streamed(
    how: Scoring,
    params: StreamedParams,
    parts: Sequence[Part],
    examples: Sequence[Example],
    name: str,
    stage: Stage,
    spill: Path | None,
) -> Scores:
    """Score with one sweep forward and one backward. Block inputs are offloaded to `spill`, or stay in memory."""
    model = block_model(how.spec, jnp.dtype(how.dtype), how.loss, window=how.window)
    kernels, found = layerwise_scores(
        model,
        params,
        [part.batch for part in parts],
        weights=[jnp.asarray(part.weights) for part in parts],
        granularity=how.granularity,
        store={} if spill is None else Spill(spill),
        on_block=lambda index: stage.advance(),
    )
    losses = _Losses(examples, name)
    for part, loss in zip(parts, found, strict=True):
        losses.add(part, loss)
    return Scores(stack_scores(kernels, how.spec.kernels), losses.all())


def losses_of(
    how: Scoring, params: Params | StreamedParams, examples: Sequence[Example], *, shapes: Sequence[Shape], name: str
) -> np.ndarray:
    """Compute the mean completion NLL of every row, in nats, with forward passes only.

    Args:
        how: how rows are scored; `loss` and `granularity` are not used.
        params: of the model.
        examples: the encoded rows.
        shapes: of the microbatches.
        name: of the set of rows, for messages.

    Raises:
        InputError: the loss of a row is not finite.
    """
    parts, losses = microbatches(examples, shapes), _Losses(examples, name)
    if isinstance(params, StreamedParams):
        model = block_model(how.spec, jnp.dtype(how.dtype), window=how.window)
        for part, found in zip(parts, layerwise_losses(model, params, [p.batch for p in parts]), strict=True):
            losses.add(part, found)
        return losses.all()
    for part in parts:
        losses.add(part, _loss_step(how, params, place_batch(how.layout, part.batch)))
    return losses.all()


def _score(how: Scoring, params: Params, batch: Batch, weights: jax.Array, sums: Sums) -> tuple[Sums, jax.Array]:
    loss = row_loss(how.spec, how.loss, jnp.dtype(how.dtype), window=how.window)
    found = score_batch(loss, params, how.spec.kernels, batch, jnp.asarray(weights), sums, (how.granularity,))
    return _everywhere(how, found)


def _loss(how: Scoring, params: Params, batch: Batch) -> jax.Array:
    loss = row_loss(how.spec, dtype=jnp.dtype(how.dtype), remat=False, window=how.window)
    return _everywhere(how, jax.vmap(loss, in_axes=(None, 0))(params, batch))


def _everywhere(how: Scoring, tree: Any) -> Any:
    """Replicate a tree on every device of a mesh, so that every process can read it."""
    return tree if how.layout is None else jax.lax.with_sharding_constraint(tree, how.layout.replicated)


@partial(jax.jit, static_argnums=0)
def _no_scores(how: Scoring) -> Sums:
    """Make sums of zero, all leaves in one program."""
    return init_scores(abstract_params(how.spec), how.spec.kernels, (how.granularity,))


_mean = jax.jit(mean_sums)
_score_step = Program(_score, static_argnums=(0,), donate_argnums=(4,))
_loss_step = Program(_loss, static_argnums=(0,))


class _Losses:
    """Collects the rows' losses from the device, and checks each microbatch while the next microbatch runs."""

    def __init__(self, examples: Sequence[Example], name: str, stage: Stage | None = None) -> None:
        self._examples, self._name, self._stage = examples, name, stage
        self._found = np.full(len(examples), np.nan, np.float64)
        self._waiting: tuple[Part, Any] | None = None

    def add(self, part: Part, losses: jax.Array) -> None:
        """Take the losses (b,) of one microbatch without waiting for them, and check those of the microbatch before."""
        waiting, self._waiting = self._waiting, (part, losses)
        self._settle(waiting)

    def all(self) -> np.ndarray:
        """Return the losses in the order of the examples."""
        self._settle(self._waiting)
        self._waiting = None
        return self._found

    def _settle(self, waiting: tuple[Part, Any] | None) -> None:
        if waiting is None:
            return
        part, losses = waiting
        values = np.asarray(losses, np.float64)[: len(part.places)]
        self._found[part.places] = values
        for place, value in zip(part.places, values, strict=True):
            if not np.isfinite(value):
                raise InputError(
                    f"{self._examples[place].row.where}: the model's loss on this {self._name} row is {value}; "
                    "expected a finite number. The weights overflow on it: look at the row, or use checkpoints saved "
                    "in float32 or bfloat16"
                )
        if self._stage is not None:
            self._stage.advance(len(part.places))


def check_scores(scores: Leaves, name: str, names: dict[Kernel, str]) -> None:
    """Raise InputError, which names the tensor, for scores with NaN or Inf."""
    finite = {path: np.isfinite(leaf) for path, leaf in jax.device_get(scores).items()}
    for kernel, tensor in names.items():
        if not finite[kernel.path][kernel.index].all():
            raise InputError(
                f"tensor {tensor}: its {name} scores hold NaN or Inf though every loss is finite: gradients overflow; "
                "use --loss mean, shorter rows (--max-length), or checkpoints saved in float32"
            )


def memory_message(error: Exception, microbatch: int) -> str:
    """Return a message that tells the user what to do about a device that failed."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return "device memory does not hold one row: lower --max-length, or use --stream"
    return f"the device failed at --microbatch {microbatch}: {' '.join(str(error).split())[:500]}"
