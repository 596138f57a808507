"""The stages between loading and saving: score, select, correct. Each takes and gives values; progress goes to the
reporter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax import streaming
from hcnr_jax.config import RestoreConfig
from hcnr_jax.data import Batch, Example, pad_examples
from hcnr_jax.errors import InputError, RunError
from hcnr_jax.method import select
from hcnr_jax.method.blocks import Result, Settings, Sweep
from hcnr_jax.method.compensate import Info
from hcnr_jax.method.fisher import init_scores, score_batch
from hcnr_jax.method.neurons import Granularity, Kernel, Leaves, Params, get_leaves
from hcnr_jax.method.restore import restore_kernel
from hcnr_jax.method.solve import REMEDY, Outcome
from hcnr_jax.models import KERNELS, ModelSpec
from hcnr_jax.pipeline.console import Reporter
from hcnr_jax.pipeline.model import block_model, row_loss

# A correction this many times the base kernel's own norm is no correction any more.
EXPLODED = 10.0


@dataclass(frozen=True)
class Scores:
    """Mean scores of the kernels on one set of rows, and the loss of every row."""

    scores: Leaves
    losses: np.ndarray


@dataclass(frozen=True)
class Selection:
    """The mask A_hc (restored neurons of kept kernels), d_j of every kernel, and the kept kernels in data-flow
    order."""

    masks: Leaves
    perturbations: dict[Kernel, float]
    kept: list[Kernel]


@dataclass(frozen=True)
class Corrected:
    """One kept kernel's new weights (in, out) in the leaf's dtype, and what the solve said (None for `none`)."""

    weights: jax.Array
    form: str
    info: Info | None


def microbatches(examples: Sequence[Example], rows: int, length: int) -> list[Batch]:
    """Batches of `rows` rows and `length` tokens; the last is filled with padding rows, so that all have one shape."""
    return [pad_examples(examples[i : i + rows], length, rows) for i in range(0, len(examples), rows)]


def score(
    config: RestoreConfig,
    spec: ModelSpec,
    params: Params,
    examples: Sequence[Example],
    length: int,
    microbatch: int,
    name: str,
    reporter: Reporter,
) -> Scores:
    """Fisher scores of every kernel's neurons over the rows. A microbatch that does not fit in memory is halved."""
    with reporter.stage(f"score {name} rows", len(examples), "rows") as stage:
        while True:
            try:
                sums, losses = init_scores(params, KERNELS, (config.granularity,)), []
                for start in range(0, len(examples), microbatch):
                    part = examples[start : start + microbatch]
                    batch = pad_examples(part, length, microbatch)
                    weights = jnp.asarray(np.arange(microbatch) < len(part), jnp.float32)
                    sums, row_losses = _score_step(spec, config.loss, config.granularity, params, batch, weights, sums)
                    losses.append(np.asarray(row_losses)[: len(part)])
                    _check_losses(losses[-1], part, name)
                    stage.advance(len(part))
                means = streaming.mean(sums)[config.granularity]
                return Scores({path: means[path] for path in KERNELS}, np.concatenate(losses))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or microbatch == 1:
                    raise RunError(_memory_message(error, microbatch)) from error
                microbatch = -(-microbatch // 2)
                reporter.warn(f"device memory ran out: going on with --microbatch {microbatch}")
                stage.restart()


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6)
def _score_step(
    spec: ModelSpec,
    loss: Any,
    granularity: Granularity,
    params: Params,
    batch: Batch,
    weights: jax.Array,
    sums: streaming.Sums,
) -> tuple[streaming.Sums, jax.Array]:
    return score_batch(row_loss(spec, loss), params, KERNELS, batch, weights, sums, (granularity,))


@partial(jax.jit, static_argnums=0)
def _loss_step(spec: ModelSpec, params: Params, batch: Batch) -> jax.Array:
    return jax.vmap(row_loss(spec, remat=False), in_axes=(None, 0))(params, batch)


def losses_of(
    spec: ModelSpec, params: Params, examples: Sequence[Example], length: int, microbatch: int, name: str
) -> np.ndarray:
    """Mean completion NLL of every row, forward passes only. InputError names a row whose loss is not finite."""
    batches = microbatches(examples, microbatch, length)
    losses = np.concatenate([np.asarray(_loss_step(spec, params, batch)) for batch in batches])[: len(examples)]
    _check_losses(losses, examples, name)
    return losses


def select_neurons(
    config: RestoreConfig, base: Params, tuned: Params, honesty: Leaves, task: Leaves, names: dict[Kernel, str]
) -> Selection:
    """Stage 1.2 to 1.4 of the method: priorities, candidates, kernel perturbations, the kept kernels."""
    _check_scores(honesty, "honesty", names)
    _check_scores(task, "task", names)
    old, new = get_leaves(base, KERNELS), get_leaves(tuned, KERNELS)
    key = jax.random.key(config.seed or 0)
    axes = 2 if config.granularity == "weight" else 1
    priorities = select.priorities(config.priority, honesty, task, key, axes)
    candidates = select.in_weight_mask(priorities, new, config.in_weight, config.granularity)
    measure = jax.jit(select.perturbation, static_argnums=3)
    perturbations = {path: measure(old[path], new[path], candidates[path], config.granularity) for path in KERNELS}
    masks, kept = select.cross_weight_mask(candidates, perturbations, new, config.cross_weight, names)
    ranked = select.rank_kernels(perturbations, new, names)
    return Selection(masks, dict(ranked), kept)


def correct(
    config: RestoreConfig,
    spec: ModelSpec,
    base: Params,
    tuned: Params,
    selection: Selection,
    honesty: list[Batch],
    task: list[Batch],
    names: dict[Kernel, str],
    reporter: Reporter,
) -> dict[Kernel, Corrected]:
    """Stage 2: the new weights of every kept kernel. InputError names a kernel whose solve failed or exploded."""
    if config.compensation == "none":
        return _plain(config, base, tuned, selection)
    settings = Settings(
        config.compensation, config.inputs, config.solver, config.damping, config.task_weight, config.moments_at
    )
    corrected: dict[Kernel, Corrected] = {}
    with reporter.stage("correct kernels", len(selection.kept), "kernels") as stage:
        for result in Sweep(block_model(spec), settings).run(base, tuned, selection.masks, honesty, task):
            info = jax.device_get(result.info)
            mask = selection.masks[result.kernel.path][result.kernel.index]
            _check_rank(config, result, np.asarray(mask), names[result.kernel])
            _check_solve(info, result.weights, names[result.kernel])
            corrected[result.kernel] = Corrected(result.weights, result.form, info)
            stage.advance()
    return corrected


def _plain(config: RestoreConfig, base: Params, tuned: Params, selection: Selection) -> dict[Kernel, Corrected]:
    old, new = get_leaves(base, KERNELS), get_leaves(tuned, KERNELS)
    restore = jax.jit(restore_kernel, static_argnums=3)
    return {
        kernel: Corrected(
            restore(
                old[kernel.path][kernel.index],
                new[kernel.path][kernel.index],
                selection.masks[kernel.path][kernel.index],
                config.granularity,
            ),
            "none",
            None,
        )
        for kernel in selection.kept
    }


def _check_losses(losses: np.ndarray, examples: Sequence[Example], name: str) -> None:
    for loss, example in zip(losses, examples, strict=True):
        if not np.isfinite(loss):
            raise InputError(
                f"{example.row.where}: the model's loss on this {name} row is {loss}; expected a finite number. The "
                "weights overflow on it: look at the row, or use checkpoints saved in float32 or bfloat16"
            )


def _check_scores(scores: Leaves, name: str, names: dict[Kernel, str]) -> None:
    for kernel, tensor in names.items():
        if not bool(jnp.all(jnp.isfinite(scores[kernel.path][kernel.index]))):
            raise InputError(
                f"tensor {tensor}: its {name} scores hold NaN or Inf though every loss is finite: gradients overflow; "
                "use --loss mean, shorter rows (--max-length), or checkpoints saved in float32"
            )


def _check_rank(config: RestoreConfig, result: Result, mask: np.ndarray, tensor: str) -> None:
    """Without damping, fewer tokens than unknowns leave the moments singular; a Cholesky factor can miss it, because
    rounding may make the pivots that should be 0 positive."""
    unknowns = mask.size if config.compensation == "paper" else int(mask.sum())
    if config.damping == 0 and config.solver == "dense" and result.tokens < unknowns:
        raise InputError(
            f"tensor {tensor}: --damping 0 needs at least as many tokens as the {unknowns} inputs solved for, found "
            f"{result.tokens}: raise --damping (0.01 is usual), or give more rows or longer ones"
        )


def _check_solve(info: Info, weights: Any, tensor: str) -> None:
    outcome = Outcome(int(info.solve.outcome))
    if outcome is not Outcome.OK:
        residual = float(info.solve.residual)
        raise InputError(
            f"tensor {tensor}: {REMEDY[outcome]}" + (f" (residual {residual:.2g})" if np.isfinite(residual) else "")
        )
    if float(info.correction) > EXPLODED or not bool(jnp.all(jnp.isfinite(weights))):
        raise InputError(
            f"tensor {tensor}: the correction is {float(info.correction):.3g} times the base kernel's norm (expected "
            f"well below {EXPLODED:g}) or overflows {weights.dtype}: raise --damping, or use --compensation two_sided"
        )


def _memory_message(error: Exception, microbatch: int) -> str:
    if "RESOURCE_EXHAUSTED" in str(error):
        return "device memory does not hold one row: lower --max-length, or use more devices (--mesh)"
    return f"the device failed at --microbatch {microbatch}: {' '.join(str(error).split())[:500]}"
