"""`hcnr ablate` measures what each part of the method is worth, with one change at a time on every pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hcnr_jax.checkpoints import output_lock
from hcnr_jax.config import RestoreConfig
from hcnr_jax.config.experiments import AblateConfig
from hcnr_jax.data import read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.trait import HONESTY, TASK
from hcnr_jax.experiments.ablation_table import Group, findings, groups_of
from hcnr_jax.experiments.cache_keys import restoration_settings
from hcnr_jax.experiments.compare import constraint_of
from hcnr_jax.experiments.engine import Job, Outcome, run_experiment
from hcnr_jax.experiments.pair_session import Lab
from hcnr_jax.experiments.pairs import ROLES
from hcnr_jax.experiments.result_folder import Results, write_results
from hcnr_jax.experiments.summary import BASE, TUNED, summarise
from hcnr_jax.report.console import Reporter

NOTES = (
    "Every row changes one thing of its group's first row, and none is tuned: all numbers are on test questions of "
    "settings fixed beforehand.",
    "Mean and standard deviation are over pairs; brackets are 95 % intervals of the mean over pairs and questions "
    "(two-level bootstrap). Differences are the row less its group's first row on the same questions.",
)


def ablate(config: AblateConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run `hcnr ablate` and return the content of summary.json.

    A stopped run goes on in its --out when the same command is given again. Raises InputError for what the user can
    correct, RunError for a fault during the run.
    """
    reporter = reporter or Reporter()
    groups = groups_of(config.groups, config.rows)
    jobs = [
        Job(row.name, dict(row.changes), made_of=restoration_settings(config, group.preset, row.changes))
        for group in groups.values()
        for row in group.rows
    ]
    with output_lock(config.out):
        records, _ = run_experiment(config, jobs, _make(groups), shown=[], reporter=reporter)
        tables = {group.title: _rows(config, group, records) for group in groups.values()}
        said = findings([row for rows in tables.values() for row in rows])
        return write_results(config, Results("ablate", "Ablations", records, tables, NOTES, said), reporter)


def _rows(config: AblateConfig, group: Group, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = [BASE, TUNED, *(row.name for row in group.rows)]
    mine = [record for record in records if record["method"] in names]
    return summarise(mine, constraint_of(config.max_task_loss), group.rows[0].name, draws=config.draws)


def _make(groups: Mapping[str, Group]) -> Any:
    presets = {row.name: group.preset for group in groups.values() for row in group.rows}

    def make(lab: Lab, jobs: Sequence[Job]) -> Iterator[Outcome]:
        available = {role: len(read_rows(lab.pair.rows(role, "train"))) for role in ROLES}
        configs: dict[int, RestoreConfig] = {}
        for place, job in enumerate(jobs):
            values, asked = dict(job.setting), job.setting.get("samples")
            if asked is not None and asked > available[HONESTY.name]:
                yield Outcome(place, _too_few(lab, asked, available[HONESTY.name]))
                continue
            if asked is not None:
                values |= {"honesty_samples": asked, "task_samples": min(asked, available[TASK])}
            configs[place] = lab.restoration(presets[job.method], values)
        places = list(configs)
        for number, made in lab.restored(list(configs.values())):
            yield Outcome(places[number], made, samples=sum(configs[places[number]].rows))

    return make


def _too_few(lab: Lab, asked: int, available: int) -> InputError:
    return InputError(f"{lab.pair.rows(HONESTY.name, 'train')}: {asked} rows are asked for, the file has {available}")
