"""Stage 2 of the method: the new weights of every kept kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.checkpoints.stream import StreamedParams
from hcnr_jax.config import RestoreConfig
from hcnr_jax.data import Batch
from hcnr_jax.errors import InputError, RunError
from hcnr_jax.method.neurons import Kernel, Leaves, Params, get_leaves, put_leaves
from hcnr_jax.method.objectives.ridge import Info
from hcnr_jax.method.restore import restore_kernel
from hcnr_jax.method.solve import Outcome
from hcnr_jax.method.sweep.run import BlockModel, Result, Settings, Sweep
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.decoder_blocks import block_model, place_batch
from hcnr_jax.restoration.inputs import Prepared, kernel_names
from hcnr_jax.restoration.microbatches import microbatches
from hcnr_jax.restoration.plan import Plan
from hcnr_jax.restoration.resume.corrected_kernels import Corrected, Known, Store
from hcnr_jax.restoration.select import Selection
from hcnr_jax.runtime.sharding import Layout

# A correction this many times the base kernel's own norm is no correction any more.
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


def correct(
    prepared: Prepared,
    plan: Plan,
    base: Params | StreamedParams,
    tuned: Params | StreamedParams,
    selection: Selection,
    reporter: Reporter,
    store: Store,
) -> dict[Kernel, Corrected]:
    """Every kept kernel corrected, with the settings of `prepared.config`. InputError names a kernel whose solve failed
    or exploded.

    store: what is kept of every kernel as it is made.
    """
    corrected = store.known()
    known = Known(dict(corrected))
    with reporter.stage("correct kernels", len(selection.kept), "kernels") as stage:
        stage.advance(len(known))
        try:
            for kernel, item in _items(prepared, plan, base, tuned, selection, known):
                corrected[kernel] = store.keep(kernel, item)
                stage.advance()
        except jax.errors.JaxRuntimeError as error:
            raise RunError(device_message(error)) from error
        finally:
            store.work.settle()
    return {kernel: corrected[kernel] for kernel in selection.kept}


def _items(
    prepared: Prepared,
    plan: Plan,
    base: Params | StreamedParams,
    tuned: Params | StreamedParams,
    selection: Selection,
    known: Mapping[Kernel, jax.Array],
) -> Iterator[tuple[Kernel, Corrected]]:
    config, layout, names = prepared.config, prepared.layout, kernel_names(prepared.spec)
    if not config.objective.solves:
        yield from plain_kernels(prepared, base, tuned, selection, known)
        return
    settings = settings_of(config)
    model = sweep_model(prepared.spec, settings, plan.dtype, layout)
    honesty, task = ([place_batch(layout, batch) for batch in rows] for rows in batches_of(prepared, plan))
    waiting: list[Result] = []
    sweep = Sweep(model, settings, keep_inputs=plan.keep_inputs)
    for result in sweep.run(base, tuned, selection.masks, honesty, task, known):
        # Looked at a block late, so that the device has the next block's work before the host waits for this one's.
        while waiting and waiting[0].kernel.index < result.kernel.index:
            yield checked(config, waiting.pop(0), selection, names)
        waiting.append(result)
    for result in waiting:
        yield checked(config, result, selection, names)


def device_message(error: Exception) -> str:
    """What to do about a device that failed while kernels were corrected."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return "device memory does not hold one block's moments: take fewer --samples, or use --stream or --solver cg"
    return f"the device failed while kernels were corrected: {' '.join(str(error).split())[:500]}"


def batches_of(prepared: Prepared, plan: Plan) -> tuple[list[Batch], list[Batch]]:
    """The honesty and the task microbatches that corrections are solved for."""
    honesty, task = ([p.batch for p in microbatches(rows, plan.shapes)] for rows in (prepared.honesty, prepared.task))
    return honesty, task


def sweep_model(spec: ModelSpec, settings: Settings, dtype: str, layout: Layout | None = None) -> BlockModel:
    """The model whose inputs the corrections are solved for, wherever settings are compared or written.

    dtype: `Plan.dtype`, of the forward pass behind local inputs. Propagated ones are always computed in float32: what
    is solved for are the differences of two models, which 16 bits would drown.
    """
    return block_model(spec, jnp.dtype(dtype if settings.inputs == "local" else "float32"), layout=layout)


def settings_of(config: RestoreConfig) -> Settings:
    """The configuration's part that says how to compensate."""
    return Settings(
        config.compensation, config.inputs, config.solver, config.damping, config.task_weight, config.moments_at
    )


def plain_kernels(
    prepared: Prepared,
    base: Params | StreamedParams,
    tuned: Params | StreamedParams,
    selection: Selection,
    known: Collection[Kernel] = (),
) -> Iterator[tuple[Kernel, Corrected]]:
    """Base where the mask is True, a block at a time."""
    model, kept = block_model(prepared.spec, layout=prepared.layout), set(selection.kept) - set(known)
    for index in range(model.num_blocks):
        kernels = {path: model.kernel(index, path) for path in model.paths if model.kernel(index, path) in kept}
        if not kernels:
            continue
        old, new = (get_leaves(model.block_params(params, index), kernels) for params in (base, tuned))
        for path, kernel in kernels.items():
            mask = np.asarray(selection.masks[kernel.path][kernel.index])
            pair = model.to_solver(kernel, (old[path], new[path]))
            yield kernel, Corrected(_restore(*pair, mask, prepared.config.granularity), "none", None)


_restore = jax.jit(restore_kernel, static_argnums=3)


def restored_params(tuned: Params, corrected: Mapping[Kernel, Corrected]) -> Params:
    """The tuned params with the corrected kernels in place: what `write_output` would write, on the device."""
    leaves: Leaves = get_leaves(tuned, dict.fromkeys(kernel.path for kernel in corrected))
    for path in leaves:
        layers = [kernel.index[0] for kernel in corrected if kernel.path == path]
        rows = jnp.stack([jnp.asarray(corrected[Kernel(path, (layer,))].weights) for layer in layers])
        leaves[path] = leaves[path].at[np.asarray(layers)].set(rows)
    return put_leaves(tuned, leaves)


def checked(
    config: RestoreConfig, result: Result, selection: Selection, names: dict[Kernel, str]
) -> tuple[Kernel, Corrected]:
    """A result whose solve went well, its info on the host."""
    mask = np.asarray(selection.masks[result.kernel.path][result.kernel.index])
    _check_rank(config, result, mask, names[result.kernel])
    info, finite = jax.device_get((result.info, result.finite))
    _check_solve(info, bool(finite), result.weights.dtype, names[result.kernel])
    return result.kernel, Corrected(result.weights, result.form, info)


def _check_rank(config: RestoreConfig, result: Result, mask: np.ndarray, tensor: str) -> None:
    """Without damping, fewer tokens than unknowns leave the moments singular; a Cholesky factor can miss it, because
    rounding may make the pivots that should be 0 positive."""
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
