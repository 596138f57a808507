"""`hcnr compare` runs every method on every pair, from the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hcnr_jax.baselines import BASELINES
from hcnr_jax.checkpoints import output_lock
from hcnr_jax.config.experiments import CompareConfig
from hcnr_jax.evaluate.score.constraint import Constraint
from hcnr_jax.evaluate.trait import TASK_ACCURACY
from hcnr_jax.experiments.engine import Job, Outcome, run_experiment
from hcnr_jax.experiments.kernel_map import map_picture
from hcnr_jax.experiments.pair_session import Lab
from hcnr_jax.experiments.record_file import Record
from hcnr_jax.experiments.result_folder import Results, write_results
from hcnr_jax.experiments.run_methods import Rivals, made_of, samples_of, settings_of
from hcnr_jax.experiments.summary import summarise
from hcnr_jax.report.console import Reporter

NOTES = (
    "Every method reads the same honesty and task rows, or fewer. Knobs are chosen on validation questions: the "
    "highest F1 among the settings whose task accuracy there is within the allowed loss of TUNED's. Where no setting "
    "is within it, the setting that misses it by least is chosen, and a star marks the method. All numbers are on test "
    "questions.",
    "Mean and standard deviation are over pairs; brackets are 95 % intervals of the mean over pairs and questions "
    "(two-level bootstrap). Differences are the method less the reference on the same questions.",
    "F1 at equal task: what the method's settings reach on test questions at the reference's task accuracy there, by "
    "straight lines between its best points. This is an upper bound for methods with many settings. The brackets "
    "say on how many pairs the method reaches that accuracy at all.",
)


def compare(config: CompareConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run `hcnr compare` and return the content of summary.json.

    A stopped run goes on in its --out when the same command is given again. Raises InputError for what the user can
    correct, RunError for a fault during the run.
    """
    reporter = reporter or Reporter()
    jobs = [
        Job(name, setting, samples_of(name, config), made_of(name, setting, config), BASELINES[name].kind == "restore")
        for name in config.chosen
        for setting in settings_of(name, config)
    ]
    shown = ["paper", config.reference]
    with output_lock(config.out):
        records, answers = run_experiment(config, jobs, _make(config), shown=shown, reporter=reporter)
        rows = summarise(records, constraint_of(config.max_task_loss), config.reference, draws=config.draws)
        drawn = map_picture(config.out, chosen_of(records, rows), shown)
        title = f"Methods compared with {config.reference}"
        said = chosen_of(answers, rows)
        results = Results("compare", title, records, {"": rows}, NOTES, pictures=drawn, answers=said)
        return write_results(config, results, reporter)


def chosen_of(found: Sequence[Record], rows: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Select the records or answers of the setting that was chosen for each method on each pair."""
    taken = {(row["method"], pair): label for row in rows for pair, label in row["settings"].items()}
    return [item for item in found if taken.get((item["method"], item["pair"])) == item["label"]]


def constraint_of(max_task_loss: float) -> Constraint:
    """Build the constraint that task accuracy stays within `max_task_loss` of TUNED's."""
    return Constraint(TASK_ACCURACY, True, -max_task_loss, True)


def _make(config: CompareConfig) -> Any:
    def make(lab: Lab, jobs: Sequence[Job]) -> Iterator[Outcome]:
        rivals = Rivals(lab, config)
        for name in dict.fromkeys(job.method for job in jobs):
            places = [place for place, job in enumerate(jobs) if job.method == name]
            for outcome in rivals.run(name, [jobs[place].setting for place in places]):
                yield outcome._replace(place=places[outcome.place])

    return make
