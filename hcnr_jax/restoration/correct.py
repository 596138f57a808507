"""Computes the new weights of every kept kernel: stage 2 of the method."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.checkpoints.names import hf_name_of
from hcnr_jax.config import RestoreConfig
from hcnr_jax.data import Batch
from hcnr_jax.errors import InputError, RunError
from hcnr_jax.method.compensate import Info
from hcnr_jax.method.neurons import Kernel, Leaves, Params, get_leaves, put_leaves
from hcnr_jax.method.program import lowering
from hcnr_jax.method.restore import restore_kernel
from hcnr_jax.method.select import exact_count
from hcnr_jax.method.solve import Outcome
from hcnr_jax.method.sweep.run import BlockModel, Problem, Settings, Sweep
from hcnr_jax.method.sweep.run import Result as SweepResult
from hcnr_jax.method.sweep.solve_kernel import form_of
from hcnr_jax.method.sweep.streams import count_tokens
from hcnr_jax.models import ModelSpec
from hcnr_jax.restoration.decoder_blocks import block_model, place_batch
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.microbatches import microbatches
from hcnr_jax.restoration.plan import Plan
from hcnr_jax.restoration.resume.products import CorrectedKernel, KernelStore, KnownWeights
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.select import Selection
from hcnr_jax.runtime.compile import compile_later
from hcnr_jax.runtime.sharding import Layout

# Largest norm of a correction, relative to the base kernel's norm. A larger correction shows that the solve failed.
EXPLODED = 10.0

# What a user can do about a solve that failed.
REMEDY = {
    Outcome.NOT_POSITIVE_DEFINITE: (
        "the damped second moments are not positive definite: raise --damping (0.01 is usual), or give more rows or "
        "longer ones; with --damping 0 there must be more tokens than inputs"
    ),
    Outcome.NOT_FINITE: "the second moments or the weights hold NaN or Inf: see the models' activations on these rows",
    Outcome.NOT_CONVERGED: "conjugate gradients did not converge: raise --damping, or use --solver dense",
}


def correct(run: Run, selection: Selection, store: KernelStore) -> dict[Kernel, CorrectedKernel]:
    """Correct every kept kernel with the settings of `run.config`.

    Args:
        run: both models and their rows.
        selection: the kept kernels and their restored neurons.
        store: saves every solved kernel, and returns the kernels that an interrupted run solved.

    Raises:
        InputError: a solve failed, or a correction is far larger than its kernel.
        RunError: the device failed.
    """
    corrected = store.known()
    known = KnownWeights(dict(corrected))
    with run.reporter.stage("correct kernels", len(selection.kept), "kernels") as stage:
        stage.advance(len(known))
        try:
            for kernel, item in _items(run, selection, known):
                corrected[kernel] = store.keep(kernel, item)
                stage.advance()
        except jax.errors.JaxRuntimeError as error:
            raise RunError(device_message(error)) from error
        finally:
            store.work.settle()
    return {kernel: corrected[kernel] for kernel in selection.kept}


def _items(
    run: Run, selection: Selection, known: Mapping[Kernel, jax.Array]
) -> Iterator[tuple[Kernel, CorrectedKernel]]:
    config = run.config
    if not config.objective.solves:
        yield from plain_kernels(run, selection, known)
        return
    settings = settings_of(config)
    waiting: list[SweepResult] = []
    sweep = Sweep(settings, keep_inputs=run.plan.keep_inputs)
    for result in sweep.run(problem_of(run, settings), selection.masks, known):
        # Results are checked one block late: the device then has the next block's work while the host waits.
        while waiting and waiting[0].kernel.index < result.kernel.index:
            yield checked(config, run.spec, waiting.pop(0), selection=selection)
        waiting.append(result)
    for result in waiting:
        yield checked(config, run.spec, result, selection=selection)


def problem_of(run: Run, settings: Settings) -> Problem:
    """Build the problem that a run's sweeps solve, with the rows on the run's mesh."""
    layout = run.inputs.layout
    model = sweep_model(run.spec, settings, run.plan.dtype, layout=layout)
    honesty, task = ([place_batch(layout, batch) for batch in rows] for rows in batches_of(run.inputs, run.plan))
    return Problem(model, *run.models, honesty, task, run.inputs.coordinates)


def prepare_corrections(inputs: RunInputs, plan: Plan, models: tuple[Params, Params]) -> None:
    """Start to compile the programs that `correct` will call, in background threads.

    The first block is corrected on descriptions of arrays, with a mask of the right size. Nothing is compiled ahead for
    conjugate gradients, or for so few tokens that solves read the tokens themselves.

    Args:
        inputs: the configuration and the encoded rows.
        plan: microbatches and dtype.
        models: `checkpoints.describe_params` of BASE and TUNED.
    """
    config, spec = inputs.config, inputs.spec
    if not config.objective.solves or config.solver != "dense":
        return
    settings = settings_of(config)
    honesty, task = batches_of(inputs, plan)
    model = sweep_model(spec, settings, plan.dtype)
    problem = Problem(model, *models, honesty, task, inputs.coordinates)
    masks: dict[str, Any] = {}
    for path, leaf in get_leaves(models[1], spec.kernels).items():
        layers, width = leaf.shape[:2]
        restored = np.arange(width) < exact_count(config.in_weight, width)
        held = [inputs.coordinates is None or Kernel(path, (k,)) in inputs.coordinates for k in range(layers)]
        masks[path] = np.asarray(held)[:, None] & restored
    read = [*honesty, *(task if config.objective.reads_task else [])]
    tokens = count_tokens([np.asarray(batch.attention_mask) for batch in read])
    if any(form_of(settings, tokens, row) != "moments" for mask in masks.values() for row in mask if row.any()):
        return
    with lowering(compile_later):
        for result in Sweep(settings, keep_inputs=plan.keep_inputs).run(problem, masks):
            if result.kernel.index[0] > 0:
                return


def device_message(error: Exception) -> str:
    """Return a message that tells the user what to do about a device that failed while kernels were corrected."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return "device memory does not hold one block's moments: take fewer --samples, or use --stream or --solver cg"
    return f"the device failed while kernels were corrected: {' '.join(str(error).split())[:500]}"


def batches_of(inputs: RunInputs, plan: Plan) -> tuple[list[Batch], list[Batch]]:
    """Return the honesty and the task microbatches that corrections are solved for."""
    honesty, task = ([part.batch for part in microbatches(rows, plan.shapes)] for rows in (inputs.honesty, inputs.task))
    return honesty, task


def sweep_model(spec: ModelSpec, settings: Settings, dtype: str, *, layout: Layout | None = None) -> BlockModel:
    """Build the block model that gives the layer inputs of the corrections.

    Propagated inputs are always computed in float32: the solve uses small differences of two models' activations, which
    16-bit rounding would hide.

    Args:
        spec: description of the model.
        settings: how to compensate.
        dtype: `Plan.dtype`, the compute dtype with local inputs.
        layout: places of params on a mesh; None for one device.
    """
    return block_model(spec, jnp.dtype(dtype if settings.inputs == "local" else "float32"), layout=layout)


def settings_of(config: RestoreConfig) -> Settings:
    """Return the options that say how to compensate."""
    return Settings(
        config.compensation, config.inputs, config.solver, config.damping, config.task_weight, config.moments_at
    )


def plain_kernels(
    run: Run, selection: Selection, known: Collection[Kernel] = ()
) -> Iterator[tuple[Kernel, CorrectedKernel]]:
    """Yield every kept kernel with BASE's weights where the mask is True, block by block, without the `known` ones."""
    model, kept = block_model(run.spec, layout=run.inputs.layout), set(selection.kept) - set(known)
    for index in range(model.num_blocks):
        kernels = {path: model.kernel(index, path) for path in model.paths if model.kernel(index, path) in kept}
        if not kernels:
            continue
        old, new = (get_leaves(model.block_params(params, index), kernels) for params in run.models)
        for path, kernel in kernels.items():
            mask = np.asarray(selection.masks[kernel.path][kernel.index])
            pair = model.to_solver(kernel, (old[path], new[path]))
            own = run.inputs.coordinates
            thin = None if own is None else np.zeros((int(mask.sum()), own[kernel].rank), np.float32)
            yield kernel, CorrectedKernel(_restore(*pair, mask, run.config.granularity), "none", None, thin)


_restore = jax.jit(restore_kernel, static_argnums=3)


def restored_params(tuned: Params, corrected: Mapping[Kernel, CorrectedKernel]) -> Params:
    """Return TUNED's params with the corrected kernels in place: the model that `write_output` would write."""
    leaves: Leaves = get_leaves(tuned, dict.fromkeys(kernel.path for kernel in corrected))
    layers: dict[str, dict[int, Any]] = {path: {} for path in leaves}
    for kernel, item in corrected.items():
        found = item.weights
        layers[kernel.path][kernel.index[0]] = found if isinstance(found, jax.Array) else np.asarray(found)
    return put_leaves(tuned, _with_layers(leaves, layers))


@jax.jit
def _with_layers(leaves: Leaves, layers: dict[str, dict[int, jax.Array]]) -> Leaves:
    """Replace single layers of stacked leaves, in one program."""
    changed = dict(leaves)
    for path, found in layers.items():
        for layer, weights in found.items():
            changed[path] = changed[path].at[layer].set(weights)
    return changed


def checked(
    config: RestoreConfig, spec: ModelSpec, result: SweepResult, *, selection: Selection
) -> tuple[Kernel, CorrectedKernel]:
    """Check the result of a solve, and return the corrected kernel with its info on the host.

    Args:
        config: settings of the solve.
        spec: description of the model.
        result: of the sweep.
        selection: the restored neurons.

    Raises:
        InputError: the solve failed or its correction is too large; the message names the tensor.
    """
    name = hf_name_of(result.kernel.path, result.kernel.index[0], spec.recipe)
    mask = np.asarray(selection.masks[result.kernel.path][result.kernel.index])
    _check_rank(config, result, mask, name)
    info, finite = jax.device_get((result.info, result.finite))
    _check_solve(info, bool(finite), result.weights.dtype, name)
    return result.kernel, CorrectedKernel(result.weights, result.form, info, result.thin)


def _check_rank(config: RestoreConfig, result: SweepResult, mask: np.ndarray, tensor: str) -> None:
    """Refuse a solve without damping that has fewer tokens than unknowns, because its moments are singular.

    The Cholesky factorisation can succeed all the same: rounding may turn pivots of 0 into positive numbers.
    """
    unknowns = mask.size if config.objective.unknowns == "all" else int(mask.sum())
    if config.damping == 0 and config.solver == "dense" and result.tokens < unknowns:
        raise InputError(
            f"tensor {tensor}: --damping 0 needs at least as many tokens as the {unknowns} inputs solved for, found "
            f"{result.tokens}: raise --damping (0.01 is usual), or give more rows or longer ones"
        )


def _check_solve(info: Info, finite: bool, dtype: Any, tensor: str) -> None:
    outcome = Outcome(int(info.solve.outcome))
    if outcome is not Outcome.OK:
        residual = float(info.solve.residual)
        raise InputError(
            f"tensor {tensor}: {REMEDY[outcome]}" + (f" (residual {residual:.2g})" if np.isfinite(residual) else "")
        )
    if float(info.correction) > EXPLODED or not finite:
        raise InputError(
            f"tensor {tensor}: the correction is {float(info.correction):.3g} times the base kernel's norm (expected "
            f"well below {EXPLODED:g}) or overflows {dtype}: raise --damping, or use --compensation two_sided"
        )
