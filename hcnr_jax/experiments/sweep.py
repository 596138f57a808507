"""`hcnr sweep` tries a grid of restoration settings on every pair, from one scoring of the rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from hcnr_jax.checkpoints import output_lock
from hcnr_jax.config.experiments import SweepConfig
from hcnr_jax.errors import InputError
from hcnr_jax.experiments.cache_keys import restoration_settings
from hcnr_jax.experiments.compare import constraint_of
from hcnr_jax.experiments.engine import Job, Outcome, run_experiment
from hcnr_jax.experiments.pair_session import Lab
from hcnr_jax.experiments.record_file import Record
from hcnr_jax.experiments.result_folder import Results, heat_picture, write_results
from hcnr_jax.experiments.summary import TUNED, averages, best_setting, first_failure
from hcnr_jax.report.console import Reporter

METHOD = "sweep"
NOTES = (
    "Means over pairs. Validation questions choose: the highest F1 among the settings whose mean task accuracy there "
    "is within the allowed loss of TUNED's. The test columns of the other settings are for information, since choosing "
    "by them would be biased.",
)


def sweep(config: SweepConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run `hcnr sweep` and return the content of summary.json.

    A stopped run goes on in its --out when the same command is given again. Raises InputError for what the user can
    correct, RunError for a fault during the run.
    """
    reporter = reporter or Reporter()
    jobs = [
        Job(METHOD, setting, sum(config.rows.values()), restoration_settings(config, config.preset, setting))
        for setting in settings_of(config)
    ]
    with output_lock(config.out):
        records, _ = run_experiment(config, jobs, _make(config), shown=[], reporter=reporter)
        return write_results(config, _results(config, records), reporter)


def _results(config: SweepConfig, records: Sequence[Record]) -> Results:
    found, tuned = averages(records, METHOD), averages(records, TUNED)
    if not found or not tuned:
        why = first_failure(records, METHOD, TUNED)
        raise InputError(f"sweep: no setting was measured on every pair; the first reason: {why}")
    chosen = best_setting(found, tuned, constraint_of(config.max_task_loss))
    setting = next(row["setting"] for row in found if row["label"] == chosen.label)
    drawn = [picture for picture in [heat_picture(config, found, setting)] if picture]
    return Results("sweep", f"A grid around {config.preset}.yaml", records, {}, NOTES, [chosen.text], found, drawn)


def settings_of(config: SweepConfig) -> list[dict[str, Any]]:
    """List every combination of the four option lists."""
    values = itertools.product(config.in_weights, config.cross_weights, config.task_weights, config.dampings)
    names = ("in_weight", "cross_weight", "task_weight", "damping")
    return [dict(zip(names, item, strict=True)) for item in values]


def _make(config: SweepConfig) -> Any:
    def make(lab: Lab, jobs: Sequence[Job]) -> Iterator[Outcome]:
        configs = [lab.restoration(config.preset, job.setting) for job in jobs]
        for place, made in lab.restored(configs):
            yield Outcome(place, made)

    return make
