"""The last step, `--refine`: restored neurons moved until the whole model says what BASE and TUNED say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hcnr_jax.config import RestoreConfig
from hcnr_jax.errors import RunError
from hcnr_jax.method.neurons import Kernel, Params, get_leaves, spread
from hcnr_jax.method.refine.gauss_newton import COPIES, PRODUCTS, Side, Step, refine
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.correct import batches_of, restored_params
from hcnr_jax.restoration.decoder_blocks import completion_outputs
from hcnr_jax.restoration.inputs import Prepared
from hcnr_jax.restoration.plan import Plan
from hcnr_jax.restoration.resume.corrected_kernels import Corrected
from hcnr_jax.restoration.select import Selection


class Refined(NamedTuple):
    """The kept kernels after the step, and what hcnr.json says of it: the sides' mean KL in nats before and after."""

    corrected: dict[Kernel, Corrected]
    record: list[dict[str, float]]


def refined(
    config: RestoreConfig,
    prepared: Prepared,
    plan: Plan,
    base: Params,
    tuned: Params,
    selection: Selection,
    corrected: Mapping[Kernel, Corrected],
    reporter: Reporter,
) -> Refined:
    """`config.refine` steps from the corrected kernels, whose infos stay those of their solves.

    RunError where memory does not hold them, NumericalError where logits overflow.
    """
    start = restored_params(tuned, corrected)
    kept = {kernel.path for kernel in corrected}
    leaves = get_leaves(start, [path for path in prepared.spec.kernels if path in kept])
    masks = {path: _mask(selection, path, leaf, config.granularity) for path, leaf in leaves.items()}
    honesty, task = batches_of(prepared, plan)
    sides = [
        Side(base, honesty, len(prepared.honesty), 1.0),
        Side(tuned, task, len(prepared.task), config.task_weight),
    ]
    outputs = completion_outputs(prepared.spec, jnp.dtype(plan.dtype), plan.window)
    record: list[dict[str, float]] = []
    passes = config.refine * (PRODUCTS + 2) + 1
    with reporter.stage("refine", passes, "passes") as stage:
        try:
            for step in refine(outputs, start, masks, sides, config.refine, on_pass=stage.advance):
                record.append(_said(step))
                leaves = step.leaves
        except jax.errors.JaxRuntimeError as error:
            raise RunError(
                f"device memory does not hold what --refine needs beside both models ({COPIES} float32 copies of the "
                f"kernels, and one microbatch): use a smaller --microbatch, or --refine 0 ({str(error)[:200]})"
            ) from error
    found = {
        kernel: dataclasses.replace(item, weights=leaves[kernel.path][kernel.index])
        for kernel, item in corrected.items()
    }
    return Refined(found, record)


def _said(step: Step) -> dict[str, float]:
    honesty, task = step.distances
    return {"honesty_kl": honesty, "task_kl": task, "length": step.length}


def _mask(selection: Selection, path: str, leaf: Any, granularity: Any) -> Any:
    """True where entries of a stacked leaf may move."""
    return spread(jnp.asarray(selection.masks[path]), leaf, granularity)
