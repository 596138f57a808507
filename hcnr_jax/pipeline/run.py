"""`hcnr restore` and `hcnr apply` from end to end: load, score, select, correct, save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hcnr_jax.ahead import compilation_cache
from hcnr_jax.checkpoints import StreamedParams, describe_params, load_params
from hcnr_jax.checkpoints.patch import apply_patch
from hcnr_jax.config import ApplyConfig, RestoreConfig
from hcnr_jax.method.neurons import Params
from hcnr_jax.pipeline.batches import microbatches
from hcnr_jax.pipeline.choosing import choose_setting, open_choice
from hcnr_jax.pipeline.console import Reporter
from hcnr_jax.pipeline.correcting import correct
from hcnr_jax.pipeline.plan import Plan, make_plan
from hcnr_jax.pipeline.prepare import Prepared, kernel_names, prepare
from hcnr_jax.pipeline.scoring import Scores, Scoring, losses_of, prepare_scoring, score
from hcnr_jax.pipeline.selecting import kernel_squares, select_neurons
from hcnr_jax.pipeline.spill import spill_folder
from hcnr_jax.pipeline.write import PATCH, write_output

Weights = Params | StreamedParams


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
    if config.choose is not None:
        open_choice(prepared)  # for its refusals
    reporter.table("plan", plan.rows())
    for name in config.unused:
        reporter.say(f"not used with these settings: --{name.replace('_', '-')}")
    if config.dry_run:
        reporter.say("dry run: nothing was written")
        return Restored(None, plan, reporter.warnings)
    with jax.default_matmul_precision("highest"), compilation_cache(config.compilation_cache):
        folder = _run(prepared, plan, reporter)
    reporter.say(f"restored model: {folder}")
    return Restored(folder, plan, reporter.warnings)


def _run(prepared: Prepared, plan: Plan, reporter: Reporter) -> Path:
    config = prepared.config
    if not config.stream:
        return _restore(prepared, plan, reporter, None)
    with spill_folder(config.out) as spill:
        return _restore(prepared, plan, reporter, spill)


def _restore(prepared: Prepared, plan: Plan, reporter: Reporter, spill: Path | None) -> Path:
    """Load, score, select, correct, write. spill: where a streamed run keeps what does not stay in memory."""
    config, spec = prepared.config, prepared.spec
    names = kernel_names(spec)
    base, tuned = load_pair(prepared, plan, reporter)
    scores = score_pair(prepared, plan, base, tuned, reporter, spill)
    choice = None
    if config.choose is not None:
        config, choice = choose_setting(prepared, plan, base, tuned, scores, reporter)
        prepared = replace(prepared, config=config)
    squares = kernel_squares(spec, base, tuned, config.granularity)
    selection = select_neurons(config, spec, squares, scores["honesty"].scores, scores["task"].scores, names)
    honesty, task = ([p.batch for p in microbatches(rows, plan.shapes)] for rows in (prepared.honesty, prepared.task))
    corrected = correct(
        config, spec, base, tuned, selection, honesty, task, names, reporter, plan.dtype, spill and spill / "kernels"
    )
    return write_output(prepared, plan, selection, corrected, scores, reporter, choice)


def _scoring(prepared: Prepared, plan: Plan) -> Scoring:
    config = prepared.config
    return Scoring(prepared.spec, config.loss, config.granularity, plan.dtype)


def load_pair(prepared: Prepared, plan: Plan, reporter: Reporter) -> tuple[Weights, Weights]:
    """Both models' weights; the scores' program is compiled meanwhile."""
    spec = prepared.spec
    if prepared.config.stream:
        return StreamedParams(prepared.base, spec), StreamedParams(prepared.tuned, spec)
    scored = prepared.tuned if prepared.config.scores_at == "tuned" else prepared.base
    prepare_scoring(_scoring(prepared, plan), plan.shapes, describe_params(scored, spec))
    with reporter.stage("load", 2, "models") as stage:
        loaded = []
        for checkpoint in (prepared.base, prepared.tuned):
            loaded.append(load_params(checkpoint, spec))
            stage.advance()
    return loaded[0], loaded[1]


def score_pair(
    prepared: Prepared, plan: Plan, base: Weights, tuned: Weights, reporter: Reporter, spill: Path | None
) -> dict[str, Scores]:
    config, how = prepared.config, _scoring(prepared, plan)
    at, other = (tuned, base) if config.scores_at == "tuned" else (base, tuned)
    sets = {"honesty": prepared.honesty, "task": prepared.task}
    scores = {
        name: score(how, at, examples, plan.shapes, name, reporter, spill and spill / name)
        for name, examples in sets.items()
    }

    def mean_losses(params: Weights) -> np.ndarray:
        return losses_of(how, params, prepared.honesty, plan.shapes, "honesty")

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
