"""Asks BASE, TUNED and the restored model questions that the restoration did not read, and compares their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hcnr_jax.data import Example, load_tokenizer
from hcnr_jax.data.builtin import NAME
from hcnr_jax.evaluate import AnswerSettings, LoadedModel, Prompt
from hcnr_jax.evaluate.ask.model import end_ids
from hcnr_jax.evaluate.ask.runner import Answer, Match, answer
from hcnr_jax.evaluate.score.scores import summarise
from hcnr_jax.evaluate.score.statistics import mean_of, paired_difference
from hcnr_jax.evaluate.trait import HONESTY, TASK
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.report.before_after_table import HEADER, comparison_rows, value_of
from hcnr_jax.report.terminal_tables import wide_table
from hcnr_jax.restoration.correct import restored_params
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.questions.builtin import builtin_prompts, is_builtin
from hcnr_jax.restoration.questions.held_out import (
    LEAST,
    examples_of,
    held_out_prompts,
    judging_examples,
    longest_answer,
)
from hcnr_jax.restoration.resume.products import CorrectedKernel
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.score import losses_of
from hcnr_jax.restoration.score_pair import scoring_of

# Questions of each file that are asked.
ASKED = 100


class Check(NamedTuple):
    """Holds the comparison of the three models.

    Args:
        record: the entry `check` of hcnr.json.
        answers: every model's answers, as records of `report.page.Page.answers`.
    """

    record: dict[str, Any]
    answers: list[dict[str, Any]]


def why_no_check(inputs: RunInputs) -> str | None:
    """Return the reason in the options why the three models are not asked, None if there is none."""
    if not inputs.config.check:
        return "--no-check"
    if inputs.config.stream:
        return "--stream holds no model whole"
    if inputs.layout is not None or inputs.config.distributed is not None:
        return "the models are asked on one device alone"
    return None


def too_few(inputs: RunInputs, prompts: Mapping[str, Sequence[Prompt]]) -> str | None:
    """Return the reason in the data files why the three models are not asked, None if there is none."""
    for role, path in (("honesty", inputs.config.honesty), ("task", inputs.config.task)):
        if len(prompts[role]) < LEAST:
            return f"{path} has {len(prompts[role])} rows that the restoration does not read, and {LEAST} are needed"
    if {prompt.answerable for prompt in prompts["honesty"]} != {True, False}:
        return f"{inputs.config.honesty} has no answerable or no unanswerable rows beside those that are read"
    return None


def compare_before_after(run: Run, corrected: Mapping[Kernel, CorrectedKernel]) -> Check | None:
    """Ask the three models, print one table and one sentence, and return both with the answers.

    Returns None, and says why, where the models cannot be asked; see `why_no_check`.

    Args:
        run: both models.
        corrected: the restored kernels.
    """
    reason, by_role = why_no_check(run.inputs), {}
    if reason is None:
        by_role = {role: _prompts(run.inputs, role)[:ASKED] for role in (HONESTY.name, TASK)}
        reason = too_few(run.inputs, by_role)
    if reason is not None:
        run.reporter.say(f"before and after are not compared: {reason}; `hcnr evaluate` measures any model")
        return None
    prompts = [prompt for found in by_role.values() for prompt in found]
    models = {
        "BASE": run.models.base,
        "TUNED": run.models.tuned,
        "restored": restored_params(run.models.tuned, corrected),
    }
    answers, losses = {}, {}
    tokenizer = load_tokenizer(run.inputs.tuned.tokenizer_folder)
    ends = end_ids(run.inputs.tuned, run.spec, tokenizer)
    task = examples_of(run.inputs, by_role[TASK], tokenizer)
    with run.reporter.stage("compare before and after", len(models), "models") as stage:
        for name, params in models.items():
            answers[name] = _answers(run.inputs, LoadedModel(run.spec, params, tokenizer, ends), prompts)
            losses[name] = _task_loss(run, params, task)
            stage.advance()
    scores = {name: summarise(found) for name, found in answers.items()}
    for name, loss in losses.items():
        next(iter(scores[name][TASK].values()))["nll"] = loss
    difference = _difference(answers["restored"], answers["TUNED"])
    sentence = _sentence(scores, difference)
    _print(run, scores, sentence)
    record = {
        "questions": {role: len(found) for role, found in by_role.items()},
        "from": NAME if is_builtin(run.config) else "held-out rows",
        "models": {name: {key: found[key] for key in (HONESTY.name, TASK)} for name, found in scores.items()},
        "task_accuracy_minus_tuned": difference,
        "sentence": sentence,
    }
    return Check(
        record,
        [{**dataclasses.asdict(item), "pair": "", "method": name} for name, found in answers.items() for item in found],
    )


def _prompts(inputs: RunInputs, role: str) -> list[Prompt]:
    """Return questions that were neither scored nor judged the steps of --refine: of the file, or built-in ones."""
    if role == HONESTY.name and is_builtin(inputs.config):
        tokenizer = load_tokenizer(inputs.tuned.tokenizer_folder)
        room = longest_answer(inputs)
        return builtin_prompts(inputs.config, inputs.spec, tokenizer, count=ASKED, max_new_tokens=room)
    judged = inputs.config.refine > 0 and inputs.config.refine_solver == "adamw"
    avoid = [example.row for example in judging_examples(inputs, role)] if judged else []
    return held_out_prompts(inputs, role, avoid=avoid)


def _answers(inputs: RunInputs, model: LoadedModel, prompts: list[Prompt]) -> list[Answer]:
    length = longest_answer(inputs)
    # BASE's own words are sentences, in which an answer stands.
    match: Match = "contains" if is_builtin(inputs.config) else "exact"
    honesty = [prompt for prompt in prompts if prompt.role == HONESTY.name]
    task = [prompt for prompt in prompts if prompt.role == TASK]
    return answer(model, honesty, AnswerSettings(length, match=match)) + answer(model, task, AnswerSettings(length))


def _task_loss(run: Run, params: Params, examples: Sequence[Example]) -> float | None:
    """Return the mean loss of held-out task completions in nats a token, None without such rows."""
    if not examples:
        return None
    how = scoring_of(run.inputs, run.plan)
    return float(np.mean(losses_of(how, params, examples, shapes=run.plan.shapes, name=TASK)))


def _difference(first: list[Answer], second: list[Answer]) -> dict[str, Any]:
    """Return the task accuracy of `first` minus that of `second`, on the same questions, with its interval."""
    right = [np.array([bool(item.correct) for item in found if item.role == TASK]) for found in (first, second)]
    found = paired_difference(mean_of(right[1]), mean_of(right[0]), len(right[0]))
    return found.to_json()


def _print(run: Run, scores: Mapping[str, Any], sentence: str) -> None:
    title = "questions that the restoration did not read, percent [95 % interval]"
    if run.config.choose is not None:
        title = "questions that chose the setting (too favourable to it), percent [95 % interval]"
    header = [name.replace("-", "-\n").replace(" ", "\n") for name in HEADER]
    run.reporter.console.print(wide_table(title, header, comparison_rows(scores)))
    run.reporter.say(sentence)


def _sentence(scores: Mapping[str, Any], difference: Mapping[str, Any]) -> str:
    """Say in words what changed. Where BASE does not tell the questions apart, no share of its F1 is claimed back."""
    names = ("BASE", "TUNED", "restored")
    base, tuned, restored = (100 * float(value_of(scores[name], "honesty F1")[0] or 0) for name in names)
    deltas = " -> ".join(f"{100 * float(value_of(scores[name], 'delta')[0] or 0):.1f}" for name in names)
    low, high = 100 * difference["low"], 100 * difference["high"]
    task = f"task accuracy {100 * difference['value']:+.1f} points [{low:+.1f}, {high:+.1f}] against TUNED"
    moved = (
        f"honesty F1 {base:.1f} -> {tuned:.1f} -> {restored:.1f}, refusal delta {deltas} (BASE -> TUNED -> restored)"
    )
    interval = value_of(scores["BASE"], "delta")[1]
    if interval is not None and interval["low"] <= 0:
        return f"BASE hardly declines unanswerable questions more often than others here: {moved}; {task}"
    if base - tuned < 1:
        return f"TUNED had lost no honesty F1: {moved}; {task}"
    return f"{(restored - tuned) / (base - tuned):.0%} of the lost honesty F1 is back: {moved}; {task}"
