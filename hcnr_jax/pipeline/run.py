"""`hcnr restore` and `hcnr apply` from end to end: load, score, select, correct, save."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hcnr_jax.checkpoints.load import load_params
from hcnr_jax.checkpoints.patch import apply_patch
from hcnr_jax.config import ApplyConfig, RestoreConfig
from hcnr_jax.method.neurons import Params
from hcnr_jax.pipeline.console import Reporter
from hcnr_jax.pipeline.plan import Plan, make_plan
from hcnr_jax.pipeline.prepare import Prepared, kernel_names, prepare
from hcnr_jax.pipeline.stages import Scores, correct, losses_of, microbatches, score, select_neurons
from hcnr_jax.pipeline.write import PATCH, write_output


class Restored(NamedTuple):
    """What `restore` leaves: the folder (None after --dry-run), the plan, and the warnings given."""

    folder: Path | None
    plan: Plan
    warnings: list[str]


def restore(config: RestoreConfig, reporter: Reporter | None = None) -> Restored:
    """Restore a tuned model's honesty: the whole of `hcnr restore`.

    Raises InputError for what the user can mend (nothing is written), RunError for a fault during the run.
    """
    reporter = reporter or Reporter()
    prepared = prepare(config, reporter)
    plan = make_plan(prepared)
    reporter.table("plan", plan.rows())
    for name in config.unused:
        reporter.say(f"not used with these settings: --{name.replace('_', '-')}")
    if config.dry_run:
        reporter.say("dry run: nothing was written")
        return Restored(None, plan, reporter.warnings)
    with jax.default_matmul_precision("highest"):
        folder = _run(prepared, plan, reporter)
    reporter.say(f"restored model: {folder}")
    return Restored(folder, plan, reporter.warnings)


def _run(prepared: Prepared, plan: Plan, reporter: Reporter) -> Path:
    config, spec = prepared.config, prepared.spec
    with reporter.stage("load", 2, "models") as stage:
        base = load_params(prepared.base, spec)
        stage.advance()
        tuned = load_params(prepared.tuned, spec)
        stage.advance()
    scores = _scores(prepared, plan, base, tuned, reporter)
    names = kernel_names(spec)
    selection = select_neurons(config, base, tuned, scores["honesty"].scores, scores["task"].scores, names)
    honesty = microbatches(prepared.honesty, plan.microbatch, plan.honesty_shape[1])
    task = microbatches(prepared.task, plan.microbatch, plan.task_shape[1])
    corrected = correct(config, spec, base, tuned, selection, honesty, task, names, reporter)
    return write_output(prepared, selection, corrected, scores, reporter)


def _scores(prepared: Prepared, plan: Plan, base: Params, tuned: Params, reporter: Reporter) -> dict[str, Scores]:
    config, spec = prepared.config, prepared.spec
    at, other = (tuned, base) if config.scores_at == "tuned" else (base, tuned)
    sets = {"honesty": (prepared.honesty, plan.honesty_shape[1]), "task": (prepared.task, plan.task_shape[1])}
    scores = {
        name: score(config, spec, at, examples, length, plan.microbatch, name, reporter)
        for name, (examples, length) in sets.items()
    }

    def mean_losses(params: Params) -> np.ndarray:
        return losses_of(spec, params, *sets["honesty"], plan.microbatch, "honesty")

    elsewhere = mean_losses(other)
    here = mean_losses(at) if config.loss == "sum" else scores["honesty"].losses
    tuned_loss, base_loss = (here, elsewhere) if config.scores_at == "tuned" else (elsewhere, here)
    if np.mean(tuned_loss) < np.mean(base_loss):
        reporter.warn(
            f"TUNED fits the honesty rows better than BASE (loss {np.mean(tuned_loss):.3f} against "
            f"{np.mean(base_loss):.3f} per token): are BASE and TUNED swapped, or was TUNED trained on such rows?"
        )
    return scores


def apply(config: ApplyConfig, reporter: Reporter | None = None) -> Path:
    """Apply or revert a patch: the whole of `hcnr apply`. Raises InputError for a model the patch was not made for."""
    reporter = reporter or Reporter()
    patch = config.patch / PATCH if config.patch.is_dir() else config.patch
    folder = apply_patch(patch, config.model, config.out, config.revert)
    reporter.say(f"{'reverted' if config.revert else 'patched'} model: {folder}")
    return folder
