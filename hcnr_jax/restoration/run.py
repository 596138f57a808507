"""Runs `hcnr restore` and `hcnr apply` from end to end.

`restore` opens, plans, loads, scores, selects, corrects and writes, in this order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hcnr_jax.checkpoints.checkpoint import PATCH
from hcnr_jax.checkpoints.digest import BackgroundDigests
from hcnr_jax.checkpoints.patch import apply_patch
from hcnr_jax.config import ApplyConfig, RestoreConfig
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.choose_setting import choose_setting, open_choice
from hcnr_jax.restoration.correct import correct
from hcnr_jax.restoration.inputs import RunInputs, open_inputs
from hcnr_jax.restoration.load import load_run
from hcnr_jax.restoration.microbatches import Shape
from hcnr_jax.restoration.plan import Plan, make_plan
from hcnr_jax.restoration.questions.before_after import compare_before_after
from hcnr_jax.restoration.questions.builtin import is_builtin, with_honesty_rows
from hcnr_jax.restoration.refine import refine_kernels
from hcnr_jax.restoration.resume.fingerprint import Fingerprint, fingerprints
from hcnr_jax.restoration.resume.folder import Work
from hcnr_jax.restoration.resume.products import KernelStore, has_scores, keep_selection, recall_selection
from hcnr_jax.restoration.resume.run_folder import check_leftover, clear_leftovers, fix_date, is_finished, session
from hcnr_jax.restoration.resume.signals import Stopping
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.score_pair import score_pair
from hcnr_jax.restoration.select import kernel_squares, select_neurons
from hcnr_jax.restoration.write import Result, start_digests, write_output
from hcnr_jax.runtime import distributed
from hcnr_jax.runtime.compile import compilation_cache
from hcnr_jax.runtime.heartbeat import propagate_failure
from hcnr_jax.runtime.push import check_push, push
from hcnr_jax.runtime.spill import spill_folder


class RestoreResult(NamedTuple):
    """Holds what `restore` returns.

    Args:
        folder: the restored model; None after --dry-run.
        plan: counts and costs.
        warnings: the warnings given.
    """

    folder: Path | None
    plan: Plan
    warnings: list[str]


def restore(config: RestoreConfig, reporter: Reporter | None = None) -> RestoreResult:
    """Restore a tuned model's honesty, as `hcnr restore` does.

    Args:
        config: the options of `hcnr restore`; `config.out` is the folder to write.
        reporter: prints progress; None prints to the terminal.

    Raises:
        InputError: the inputs or options cannot be used; nothing is written.
        RunError: a fault stopped the run.
        Stopped: a signal ended the run.
    """
    distributed.start(config.distributed)
    reporter = reporter or Reporter.of_process()
    with propagate_failure(), Stopping(reporter.say).listening() as stopping:
        check_leftover(config)
        if config.push is not None:
            check_push(config.push)
        fix_date(config)
        with compilation_cache(config.compilation_cache):
            config = with_honesty_rows(config, reporter)
        inputs = open_inputs(config, reporter)
        plan = make_plan(inputs)
        if config.choose is not None:
            open_choice(inputs)  # raises InputError now rather than after the scoring
        reporter.table("plan", plan.rows())
        for name in config.unused_and_set:
            reporter.say(f"not used with these settings: --{name.replace('_', '-')}")
        if config.dry_run:
            written = "nothing but the honesty rows" if is_builtin(config) else "nothing"
            reporter.say(f"dry run: {written} was written")
            return RestoreResult(None, plan, reporter.warnings)
        stages = fingerprints(inputs, plan.dtype)
        if is_finished(config, stages):
            clear_leftovers(config)
            reporter.say(f"already there: {config.out} is complete")
            _push(config, reporter)
            return RestoreResult(config.out, plan, reporter.warnings)
        with jax.default_matmul_precision("highest"), compilation_cache(config.compilation_cache):
            _run(inputs, plan, stages, stopping=stopping, reporter=reporter)
    reporter.say(f"restored model: {config.out}")
    _push(config, reporter)
    return RestoreResult(config.out, plan, reporter.warnings)


def _push(config: RestoreConfig, reporter: Reporter) -> None:
    """Upload the output where --push asks for it. One process of several does."""
    if config.push is not None and distributed.is_first():
        with reporter.stage("push", 1, "folders") as stage:
            address = push(config.out, config.push)
            stage.advance()
        reporter.say(f"uploaded: {address}")


def _run(
    inputs: RunInputs, plan: Plan, stages: dict[str, Fingerprint], *, stopping: Stopping, reporter: Reporter
) -> None:
    """Make and write the restored model, with the output folder locked meanwhile."""
    config = inputs.config
    with session(config, stages, plan.shapes, reporter=reporter) as work, contextlib.ExitStack() as stack:
        distributed.agree("run", json.dumps([stages, work.describe()]))
        # Every process planned with its own free memory, but all processes must compile the same programs.
        first = distributed.from_first(np.asarray(work.shapes))
        keep_inputs = bool(distributed.from_first(np.asarray(plan.keep_inputs)))
        shapes = tuple(Shape(*map(int, shape)) for shape in first)
        plan = dataclasses.replace(plan, shapes=shapes, keep_inputs=keep_inputs)
        spill = stack.enter_context(spill_folder(config.out)) if config.stream else None
        digests = stack.enter_context(BackgroundDigests())
        if distributed.is_first():
            start_digests(inputs, digests)
        with stopping.held():
            reporter.clean_point = stopping.check
            scored = all(has_scores(work, name) for name in ("honesty", "task"))
            run, result = _compute(load_run(inputs, plan, reporter, scoring=not scored), work, spill)
            reporter.clean_point = lambda: None
        write_output(run, result, stages["kernels"], digests)
        distributed.barrier("written")


def _compute(run: Run, work: Work, spill: Path | None) -> tuple[Run, Result]:
    """Score, select and correct. Return the run with the settings that --choose found, and the result to write.

    `spill` is the folder to which a streamed run offloads arrays.
    """
    scores = score_pair(run, work, spill)
    notes: dict[str, Any] = {}
    if run.config.choose is not None:
        config, notes["choice"] = choose_setting(run, scores, work)
        run = run.with_config(config)
    config, spec = run.config, run.spec
    selection = recall_selection(work, spec)
    if selection is None:
        squares = kernel_squares(spec, run.models.base, run.models.tuned, granularity=config.granularity)
        selection = select_neurons(
            config,
            spec,
            squares,
            honesty=scores["honesty"].scores,
            task=scores["task"].scores,
            moved=run.inputs.coordinates,
        )
        keep_selection(work, selection)
    # On a mesh every corrected kernel lies whole on one device, and is offloaded to the disk to free that memory.
    release = config.stream or run.inputs.layout is not None
    corrected = correct(
        run, selection, KernelStore(work, run.inputs.tuned, spec, selection, config.granularity, release)
    )
    factors = None
    if config.refine:
        corrected, notes["refine"], factors = refine_kernels(run, selection, corrected)
    checked = compare_before_after(run, corrected)
    if checked is not None:
        notes["check"] = checked.record
    return run, Result(selection, corrected, scores, notes, factors, checked.answers if checked else [])


def apply(config: ApplyConfig, reporter: Reporter | None = None) -> Path:
    """Run `hcnr apply` and return the written folder.

    Raises:
        InputError: the patch was made for another model.
    """
    reporter = reporter or Reporter()
    patch = config.patch / PATCH if config.patch.is_dir() else config.patch
    folder = apply_patch(patch, config.model, config.out, config.revert)
    reporter.say(f"{'reverted' if config.revert else 'patched'} model: {folder}")
    return folder
