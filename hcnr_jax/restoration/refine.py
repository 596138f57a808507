"""Takes the steps of `--refine`, which move restored neurons until the model's outputs match BASE's and TUNED's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hcnr_jax.errors import RunError
from hcnr_jax.method.neurons import Kernel, get_leaves, spread
from hcnr_jax.method.refine.gauss_newton import COPIES, PRODUCTS, Step, refine
from hcnr_jax.method.refine.problem import Side
from hcnr_jax.restoration.correct import batches_of, restored_params
from hcnr_jax.restoration.decoder_blocks import completion_outputs
from hcnr_jax.restoration.resume.products import CorrectedKernel
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.select import Selection
from hcnr_jax.restoration.two_teachers import Factors, learn_from_teachers
from hcnr_jax.training.teachers import LEARNING_COPIES


class RefineResult(NamedTuple):
    """Holds the kept kernels after the steps, and a record of every step.

    Args:
        corrected: the kept kernels.
        record: mean KL in nats on honesty rows and on task rows, and the length of the step; the start comes first.
        factors: as in `TwoTeachersResult`.
    """

    corrected: dict[Kernel, CorrectedKernel]
    record: list[dict[str, float]]
    factors: dict[Kernel, Factors] | None = None


def refine_kernels(run: Run, selection: Selection, corrected: Mapping[Kernel, CorrectedKernel]) -> RefineResult:
    """Take `config.refine` steps from the corrected kernels. The kernels' infos remain those of their solves.

    Raises:
        RunError: device memory does not suffice for the steps.
        NumericalError: logits overflow.
    """
    config, inputs, plan = run.config, run.inputs, run.plan
    if config.refine_solver == "adamw":
        try:
            return RefineResult(*learn_from_teachers(run, selection, corrected))
        except jax.errors.JaxRuntimeError as error:
            raise RunError(
                f"device memory does not hold what --refine needs beside both models ({LEARNING_COPIES} float32 copies "
                "of what learns, and one microbatch's backward pass): use a smaller --microbatch, or --refine 0 "
                f"({str(error)[:200]})"
            ) from error
    base, tuned = run.models
    start = restored_params(tuned, corrected)
    kept = {kernel.path for kernel in corrected}
    leaves = get_leaves(start, [path for path in inputs.spec.kernels if path in kept])
    masks = {path: _mask(selection, path, leaf, config.granularity) for path, leaf in leaves.items()}
    honesty, task = batches_of(inputs, run.plan)
    sides = [
        Side(base, honesty, len(inputs.honesty), 1.0),
        Side(tuned, task, len(inputs.task), config.task_weight),
    ]
    outputs = completion_outputs(inputs.spec, jnp.dtype(plan.dtype), plan.window)
    record: list[dict[str, float]] = []
    passes = config.refine * (PRODUCTS + 2) + 1
    with run.reporter.stage("refine", passes, "passes") as stage:
        try:
            for step in refine(outputs, start, masks, sides=sides, steps=config.refine, on_pass=stage.advance):
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
    return RefineResult(found, record)


def _said(step: Step) -> dict[str, float]:
    honesty, task = step.distances
    return {"honesty_kl": honesty, "task_kl": task, "length": step.length}


def _mask(selection: Selection, path: str, leaf: Any, granularity: Any) -> Any:
    """Return a mask that is True where entries of a stacked leaf may move."""
    return spread(jnp.asarray(selection.masks[path]), leaf, granularity)
