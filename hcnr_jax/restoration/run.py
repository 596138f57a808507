"""`hcnr restore` and `hcnr apply` from end to end: load, score, select, correct, save."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hcnr_jax.checkpoints import StreamedParams, describe_params, load_params
from hcnr_jax.checkpoints.checkpoint import PATCH
from hcnr_jax.checkpoints.patch import apply_patch
from hcnr_jax.config import ApplyConfig, RestoreConfig
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.choose import choose_setting, open_choice
from hcnr_jax.restoration.correct import correct
from hcnr_jax.restoration.inputs import Prepared, kernel_names, prepare
from hcnr_jax.restoration.microbatches import Shape
from hcnr_jax.restoration.plan import Plan, make_plan
from hcnr_jax.restoration.refine import refined
from hcnr_jax.restoration.resume.corrected_kernels import Corrected, Store
from hcnr_jax.restoration.resume.fingerprint import Fingerprint, fingerprints
from hcnr_jax.restoration.resume.folder import Work
from hcnr_jax.restoration.resume.offload import spill_folder
from hcnr_jax.restoration.resume.products import (
    has_scores,
    keep_scores,
    keep_selection,
    recall_scores,
    recall_selection,
)
from hcnr_jax.restoration.resume.session import check_leftover, clear_leftovers, is_finished, session
from hcnr_jax.restoration.resume.signals import Stopping
from hcnr_jax.restoration.score import Scores, Scoring, losses_of, prepare_scoring, score
from hcnr_jax.restoration.select import Selection, kernel_squares, select_neurons
from hcnr_jax.restoration.write import write_output
from hcnr_jax.runtime import distributed
from hcnr_jax.runtime.compile import compilation_cache
from hcnr_jax.runtime.heartbeat import propagate_failure

Weights = Params | StreamedParams


class Restored(NamedTuple):
    """What `restore` leaves: the folder (None after --dry-run), the plan, and the warnings given."""

    folder: Path | None
    plan: Plan
    warnings: list[str]


class Made(NamedTuple):
    """What a run writes: the configuration it settled on; what was selected, corrected, scored. notes: what hcnr.json
    says of `choice` (--choose) and `refine`, where there is any."""

    config: RestoreConfig
    selection: Selection
    corrected: dict[Kernel, Corrected]
    scores: dict[str, Scores]
    notes: dict[str, Any]


def restore(config: RestoreConfig, reporter: Reporter | None = None) -> Restored:
    """Restore a tuned model's honesty: the whole of `hcnr restore`.

    Raises InputError for what the user can mend (nothing is written), RunError for a fault during the run, Stopped
    where a signal ended it.
    """
    distributed.start(config.distributed)
    reporter = reporter or Reporter.of_process()
    with propagate_failure(), Stopping(reporter.say).listening() as stopping:
        check_leftover(config)
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
        stages = fingerprints(prepared, plan.dtype)
        if is_finished(config, stages):
            clear_leftovers(config)
            reporter.say(f"already there: {config.out} is complete")
            return Restored(config.out, plan, reporter.warnings)
        with jax.default_matmul_precision("highest"), compilation_cache(config.compilation_cache):
            folder = _run(prepared, plan, stages, stopping, reporter)
    reporter.say(f"restored model: {folder}")
    return Restored(folder, plan, reporter.warnings)


def _run(
    prepared: Prepared, plan: Plan, stages: dict[str, Fingerprint], stopping: Stopping, reporter: Reporter
) -> Path:
    config = prepared.config
    with session(config, stages, plan.shapes, reporter) as work, contextlib.ExitStack() as stack:
        distributed.agree("run", json.dumps([stages, work.describe()]))
        # Chosen by the memory that is free, which is every process's own; programs must be alike.
        first = distributed.from_first(np.asarray(work.shapes))
        keep_inputs = bool(distributed.from_first(np.asarray(plan.keep_inputs)))
        shapes = tuple(Shape(*map(int, shape)) for shape in first)
        plan = dataclasses.replace(plan, shapes=shapes, keep_inputs=keep_inputs)
        spill = stack.enter_context(spill_folder(config.out)) if config.stream else None
        with stopping.held():
            reporter.clean_point = stopping.check
            made = _make(prepared, plan, reporter, work, spill)
            reporter.clean_point = lambda: None
        chosen = dataclasses.replace(prepared, config=made.config)
        write_output(chosen, plan, made.selection, made.corrected, made.scores, reporter, stages["kernels"], made.notes)
        distributed.barrier("written")
        return config.out


def _make(prepared: Prepared, plan: Plan, reporter: Reporter, work: Work, spill: Path | None) -> Made:
    """Load, score, select, correct. spill: where a streamed run keeps what does not stay in memory."""
    config, spec = prepared.config, prepared.spec
    names = kernel_names(spec)
    base, tuned = load_pair(prepared, plan, reporter, work)
    scores = score_pair(prepared, plan, base, tuned, reporter, spill, work)
    notes: dict[str, Any] = {}
    if config.choose is not None:
        config, notes["choice"] = choose_setting(prepared, plan, base, tuned, scores, reporter, work)
        prepared = dataclasses.replace(prepared, config=config)
    selection = recall_selection(work, spec)
    if selection is None:
        squares = kernel_squares(spec, base, tuned, config.granularity)
        selection = select_neurons(config, spec, squares, scores["honesty"].scores, scores["task"].scores, names)
        keep_selection(work, selection)
    # On a mesh corrected kernels are whole, and go to the disk rather than stay on one device each.
    release = config.stream or prepared.layout is not None
    store = Store(work, prepared.tuned, spec, selection, config.granularity, release)
    corrected = correct(prepared, plan, base, tuned, selection, reporter, store)
    if config.refine:
        corrected, notes["refine"] = refined(config, prepared, plan, base, tuned, selection, corrected, reporter)
    return Made(config, selection, corrected, scores, notes)


def scoring_of(prepared: Prepared, plan: Plan) -> Scoring:
    """How this run scores its rows."""
    config = prepared.config
    return Scoring(prepared.spec, config.loss, config.granularity, plan.dtype, prepared.layout, plan.window)


def load_pair(
    prepared: Prepared, plan: Plan, reporter: Reporter, work: Work | None = None, scoring: bool = True
) -> tuple[Weights, Weights]:
    """Both models' weights; the scores' program is compiled meanwhile, unless no row will be scored (`scoring`)."""
    spec = prepared.spec
    if prepared.config.stream:
        return StreamedParams(prepared.base, spec), StreamedParams(prepared.tuned, spec)
    scored = prepared.tuned if prepared.config.scores_at == "tuned" else prepared.base
    if scoring and (work is None or not all(has_scores(work, name) for name in ("honesty", "task"))):
        prepare_scoring(scoring_of(prepared, plan), plan.shapes, describe_params(scored, spec))
    shardings = unflatten_dict(prepared.layout.params(), sep="/") if prepared.layout else None
    with reporter.stage("load", 2, "models") as stage:
        loaded = []
        for checkpoint in (prepared.base, prepared.tuned):
            loaded.append(load_params(checkpoint, spec, shardings))
            stage.advance()
    return loaded[0], loaded[1]


def score_pair(
    prepared: Prepared,
    plan: Plan,
    base: Weights,
    tuned: Weights,
    reporter: Reporter,
    spill: Path | None,
    work: Work | None = None,
) -> dict[str, Scores]:
    """Both sets' scores, those kept from before or made now; warns where the models look swapped."""
    config, how = prepared.config, scoring_of(prepared, plan)
    at = tuned if config.scores_at == "tuned" else base
    scores: dict[str, Scores] = {}
    for name, examples in {"honesty": prepared.honesty, "task": prepared.task}.items():
        found = recall_scores(work, name, prepared.spec) if work else None
        if found is None:
            # Of one set alone: rounding is the program's, hardly the rows'.
            measured = name == "honesty" and spill is None and work is not None
            found = score(how, at, examples, plan.shapes, name, reporter, spill and spill / name, measured)
            if work:
                keep_scores(work, name, found)
        scores[name] = found
    known: dict[str, np.ndarray] = (
        {config.scores_at: scores["honesty"].losses[:SWAP_ROWS]} if config.loss == "mean" else {}
    )
    _check_swap(prepared, plan, {"base": base, "tuned": tuned}, known, reporter, work)
    return scores


# Rows that tell whether BASE and TUNED were given in the wrong order: their losses differ by much, or by nothing.
SWAP_ROWS = 32


def _check_swap(
    prepared: Prepared,
    plan: Plan,
    models: Mapping[str, Weights],
    known: Mapping[str, np.ndarray],
    reporter: Reporter,
    work: Work | None,
) -> None:
    """Warn where TUNED fits the honesty rows better than BASE. known: losses of those rows that the scores gave; what
    is found besides is kept, so that a resumed run says the same."""
    kept = dict(known)
    rows, how = prepared.honesty[:SWAP_ROWS], scoring_of(prepared, plan)
    for name in {"base", "tuned"} - set(known):
        tree = work.tree(f"losses-{name}") if work else None
        kept[name] = losses_of(how, models[name], rows, plan.shapes, "honesty") if tree is None else tree["losses"]
        if work and tree is None:
            work.keep_tree(f"losses-{name}", {"losses": kept[name]})
    before, after = (float(np.mean(kept[name])) for name in ("base", "tuned"))
    if after < before:
        reporter.warn(
            f"TUNED fits the honesty rows better than BASE (loss {after:.3f} against {before:.3f} per token, "
            f"{len(kept['base'])} rows): are BASE and TUNED swapped, or was TUNED trained on such rows?"
        )


def apply(config: ApplyConfig, reporter: Reporter | None = None) -> Path:
    """Apply or revert a patch: the whole of `hcnr apply`. Raises InputError for a model the patch was not made for."""
    reporter = reporter or Reporter()
    patch = config.patch / PATCH if config.patch.is_dir() else config.patch
    folder = apply_patch(patch, config.model, config.out, config.revert)
    reporter.say(f"{'reverted' if config.revert else 'patched'} model: {folder}")
    return folder
