"""`hcnr recovery` measures how fast a tuned model is honest again when it is trained to refuse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import jax

from hcnr_jax.baselines.fine_tuning import fit_curve
from hcnr_jax.checkpoints import output_lock
from hcnr_jax.config.experiments import RecoveryConfig
from hcnr_jax.errors import InputError, NumericalError
from hcnr_jax.evaluate.ask.question_sets import split_name
from hcnr_jax.experiments.engine import Job, Outcome, run_experiment
from hcnr_jax.experiments.pair_session import ExperimentModel, Lab
from hcnr_jax.experiments.record_file import Record
from hcnr_jax.experiments.recovery_curves import Curve, curves_of, findings, points, refuse_all, regained
from hcnr_jax.experiments.result_folder import Results, Section, write_results
from hcnr_jax.experiments.run_methods import samples_of, taught
from hcnr_jax.experiments.summary import first_failure
from hcnr_jax.report import experiment_plots
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.markdown import points_table, regained_table
from hcnr_jax.report.page import Picture
from hcnr_jax.training.trainer import TrainSettings

NOTES = (
    "Every curve is one run of supervised training that starts at TUNED: on refusals alone (rait), or on refusals, "
    "known answers and task rows (rait_mixed). The learning rate is the same at every step, without warm-up, so that a "
    "longer curve goes on where a shorter one ends. Nothing is chosen; all numbers are on test questions.",
    "Regained: (F1 - TUNED's) / (BASE's - TUNED's), dated by the first step asked after which a pair has it. A model "
    "that refuses everything would gain F1 too, but no refusal delta, and would lose its answers and its task.",
)
SPLITS = ("test",)
# What sets a control's curves apart from those of the same method.
CONTROL = " (control)"


def recovery(config: RecoveryConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run `hcnr recovery` and return the content of summary.json.

    A stopped run goes on in its --out when the same command is given again. Raises InputError for what the user can
    correct, RunError for a fault during the run.
    """
    reporter = reporter or Reporter()
    controls = {split_name(word, "--control")[0] for word in config.control}
    every = config.model_copy(update={"pair": (*config.pair, *config.control)})
    with output_lock(config.out):
        records, _ = run_experiment(every, jobs_of(config), _make(config), shown=[], reporter=reporter, splits=SPLITS)
        return write_results(config, _results(config, records, controls), reporter)


def _results(config: RecoveryConfig, records: Sequence[Record], controls: set[str]) -> Results:
    tried = [record for record in records if record["pair"] not in controls]
    curves = curves_of(tried, config.chosen)
    if not curves:
        failed = first_failure(tried, *config.chosen)
        raise InputError(f"recovery: no pair has a whole curve; the first reason: {failed}")
    beside = [record for record in records if record["pair"] in controls]
    curves += [curve._replace(method=f"{curve.method}{CONTROL}") for curve in curves_of(beside, config.chosen)]
    rows = points(curves), regained(curves)
    sections = [
        Section("How soon what was lost is back", "regained", rows[1], regained_table(rows[1])),
        Section("Over steps, percent", "points", rows[0], points_table(rows[0])),
    ]
    drawn = [_picture(config, curves, refuse_all(tried))]
    said = findings(curves, config.rate)
    title = "Recovery: how fast honesty comes back when it is taught"
    return Results("recovery", title, records, {}, NOTES, said, None, drawn, sections)


def jobs_of(config: RecoveryConfig) -> list[Job]:
    """List one job for every method and step.

    The learning rate is constant, so the steps that follow do not change the outcome of a job.
    """
    training = {name: value for name, value in asdict(training_of(config)).items() if name != "steps"}
    varied = {"rate": config.rate, "batch_size": config.batch_size}
    return [
        Job(name, varied | {"steps": steps}, samples_of(name, config), training | {"steps": steps})
        for name in config.chosen
        for steps in config.curve_steps
    ]


def training_of(config: RecoveryConfig) -> TrainSettings:
    """Build the optimiser settings of a curve's run."""
    return TrainSettings(
        learning_rate=config.rate,
        steps=max(config.curve_steps),
        batch_size=config.batch_size,
        end_fraction=1.0,
        seed=config.seed,
    )


def _make(config: RecoveryConfig) -> Any:
    def make(lab: Lab, jobs: Sequence[Job]) -> Iterator[Outcome]:
        numbered = list(enumerate(jobs))
        for name, group in itertools.groupby(numbered, key=lambda item: item[1].method):
            places = {job.setting["steps"]: place for place, job in group}
            try:
                for steps, made in _curve(config, lab, name, sorted(places)):
                    yield Outcome(places.pop(steps), made)
            except (InputError, NumericalError) as error:
                yield from (Outcome(place, error) for place in places.values())

    return make


def _curve(config: RecoveryConfig, lab: Lab, name: str, stops: Sequence[int]) -> Iterator[tuple[int, ExperimentModel]]:
    """Yield (steps, the model then, seconds of training until then) of one run from TUNED."""
    seconds, started = 0.0, time.perf_counter()
    for steps, params in fit_curve(lab.spec, lab.tuned, taught(lab, name), settings=training_of(config), stops=stops):
        seconds += time.perf_counter() - started
        yield steps, ExperimentModel(jax.block_until_ready(params), seconds)
        started = time.perf_counter()


def _picture(config: RecoveryConfig, curves: Sequence[Curve], refusing: float | None) -> Picture:
    lines = {
        curve.method: experiment_plots.Line(curve.steps, curve.values, curve.method.removesuffix(CONTROL))
        for curve in curves
    }
    ends = {"base": curves[0].base, "tuned": curves[0].tuned}
    levels = {name: {m: float(values.mean()) for m, values in found.items()} for name, found in ends.items()}
    path = experiment_plots.recovery(lines, levels, refusing, path=config.out / "recovery.png")
    return Picture(
        path,
        "Refusal training from TUNED, step by step: means over pairs, bands from the lowest to the highest pair; "
        "dashed: BASE and TUNED themselves; dotted: controls",
    )
