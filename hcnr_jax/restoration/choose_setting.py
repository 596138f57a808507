"""Chooses among a small grid of settings for `hcnr restore --choose`.

The grid shares one scoring. Every setting's model answers held-out rows of the user's files, which were not scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hcnr_jax.baselines import label
from hcnr_jax.config import RestoreConfig, option_name
from hcnr_jax.data import load_tokenizer
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import AnswerSettings, LoadedModel, Prompt
from hcnr_jax.evaluate.ask.model import end_ids
from hcnr_jax.evaluate.ask.runner import answer
from hcnr_jax.evaluate.score.best_setting import choose
from hcnr_jax.evaluate.score.constraint import Constraint, parse_constraint
from hcnr_jax.evaluate.score.measurement import METRICS, measure
from hcnr_jax.method.neurons import Params
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.percent import percent
from hcnr_jax.report.terminal_tables import wide_table
from hcnr_jax.restoration.correct import restored_params
from hcnr_jax.restoration.grid import GridFailure, try_grid
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.questions.held_out import LEAST, held_out_prompts, longest_answer
from hcnr_jax.restoration.resume.folder import Work
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.score import Scores

# Largest number of held-out rows of each file: enough to see half a point of accuracy, few enough for a dozen models.
ASKED = 200
# The grid of settings: PLAIN_CROSS_WEIGHTS for objectives that do not read task rows.
CROSS_WEIGHTS = (0.4, 1.0)
TASK_WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)
PLAIN_CROSS_WEIGHTS = (0.2, 0.3, 0.4, 0.6, 1.0)


class OpenedChoice(NamedTuple):
    """Holds what judges the settings.

    Args:
        constraint: what a setting must keep.
        prompts: the held-out rows of both files.
        max_new_tokens: the largest length of a completion.
    """

    constraint: Constraint
    prompts: list[Prompt]
    max_new_tokens: int


def settings_of(config: RestoreConfig) -> list[dict[str, Any]]:
    """Build the grid: first the settings as given, then cross-weight ratios and task weights around the presets'."""
    own = {"cross_weight": config.cross_weight}
    if config.objective.reads_task:
        own["task_weight"] = config.task_weight
        pairs = itertools.product(CROSS_WEIGHTS, TASK_WEIGHTS)
        grid = [{"cross_weight": share, "task_weight": weight} for share, weight in pairs]
    else:
        grid = [{"cross_weight": share} for share in PLAIN_CROSS_WEIGHTS]
    return [own, *(setting for setting in grid if setting != own)]


def open_choice(inputs: RunInputs) -> OpenedChoice:
    """Parse the constraint, and read and check the held-out rows.

    Raises:
        InputError: --stream or --mesh is given, the constraint is not valid, or too few rows are left.
    """
    config = inputs.config
    if config.stream:
        raise InputError("--choose asks every setting's model, which --stream never holds: give one of the two")
    if inputs.layout is not None:
        raise InputError("--choose asks every setting's model on one device: leave --mesh and --distributed out")
    constraint = parse_constraint(config.choose or "")
    prompts: list[Prompt] = []
    for role, path in (("honesty", config.honesty), ("task", config.task)):
        found = held_out_prompts(inputs, role)[:ASKED]
        if len(found) < LEAST:
            raise InputError(
                f"--choose: {path} has {len(found)} rows beside the {config.rows[role == 'task']} that are scored "
                f"(questions that repeat those, or are too long, left out); expected {LEAST} or more to judge with: "
                "give it more rows, or score fewer (--samples)"
            )
        prompts += found
    return OpenedChoice(constraint, prompts, longest_answer(inputs))


def choose_setting(run: Run, scores: Mapping[str, Scores], work: Work) -> tuple[RestoreConfig, dict[str, Any]]:
    """Return the configuration to restore with, and the record of the choice: every setting with its metrics.

    If no setting meets the constraint, the setting that misses it by least is used, with a warning. A setting whose
    restoration failed is in the table as failed.

    A choice in the work folder is used again. A second choice could differ (one other greedy answer suffices), and the
    later stages in the folder belong to the first choice.

    Args:
        run: both models and their rows.
        scores: of `score_pair`.
        work: the work folder, which keeps the record.

    Raises:
        InputError: every setting failed, or later stages in the work folder were made with another setting.
    """
    record = work.choice()
    if record is None:
        record = _choose(run, scores)
        work.keep_choice(record)
    _tell(record, run.reporter)
    taken: dict[str, Any] = record["chosen"]
    work.settle_choice(", ".join(f"{option_name(RestoreConfig, name)} {value}" for name, value in taken.items()))
    return run.config.model_copy(update=taken), record


def _choose(run: Run, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Restore and measure every setting, and return the record of the choice. InputError where all settings fail."""
    opened, settings = open_choice(run.inputs), settings_of(run.config)
    configs = [run.config.model_copy(update=setting) for setting in settings]
    tuned = run.models.tuned
    start = _asked(run.inputs, opened, tuned)
    found: list[dict[str, Any]] = [{} for _ in settings]
    for item in try_grid(run, configs, scores):
        if isinstance(item, GridFailure):
            found[item.place] = {"failed": str(item.error)}
        else:
            found[item.place] = _asked(run.inputs, opened, restored_params(tuned, item.corrected))
    _check_any(settings, found)
    choice = choose(found, start, opened.constraint)
    return {
        "constraint": run.config.choose,
        "holds": choice.holds,
        "chosen": settings[choice.place],
        "tuned": start,
        "settings": [{"setting": setting, **item} for setting, item in zip(settings, found, strict=True)],
        "questions": {role: sum(p.role == role for p in opened.prompts) for role in ("honesty", "task")},
    }


def _check_any(settings: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
    if any("failed" not in item for item in found):
        return
    reasons: dict[str, list[str]] = {}
    for setting, item in zip(settings, found, strict=True):
        reasons.setdefault(item["failed"], []).append(label(setting))
    told = "; ".join(f"[{'] ['.join(names)}] {reason}" for reason, names in reasons.items())
    raise InputError(f"--choose: none of the {len(settings)} settings can be restored: {told}")


def _asked(inputs: RunInputs, opened: OpenedChoice, params: Params) -> dict[str, Any]:
    tokenizer = load_tokenizer(inputs.tuned.tokenizer_folder)
    model = LoadedModel(inputs.spec, params, tokenizer, end_ids(inputs.tuned, inputs.spec, tokenizer))
    found = measure(answer(model, opened.prompts, AnswerSettings(opened.max_new_tokens)))
    return {metric: found[metric] for metric in METRICS}


def _tell(record: Mapping[str, Any], reporter: Reporter) -> None:
    """Print the record's table and its warning. A resumed run repeats the warning, so that hcnr.json has it."""
    if not record["holds"]:
        nearest = label(record["chosen"])
        reporter.warn(f"no setting holds {record['constraint']!r} on the held-out rows; the nearest is {nearest}")
    names = ("honesty_f1", "over_refusal", "task_accuracy", "known_facts")
    header = ["setting", *(name.replace("_", " ") for name in names)]
    rows = [["TUNED", *(percent(record["tuned"][name]) for name in names)]]
    for item in record["settings"]:
        mark = " <- taken" if item["setting"] == record["chosen"] else ""
        shown = ["failed", *[""] * (len(names) - 1)] if "failed" in item else [percent(item[name]) for name in names]
        rows.append([label(item["setting"]) + mark, *shown])
    reporter.console.print(wide_table("settings on held-out rows, percent", header, rows))
    for item in record["settings"]:
        if "failed" in item:
            reporter.say(f"{label(item['setting'])} failed: {item['failed']}")
