"""A trait carries all that evaluation decides by: another label, detector and metrics change no other file."""

import dataclasses

import numpy as np
import pytest

from hcnr_jax.data import Row, parse_row
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import HONESTY, TRAITS, Prompt, Trait, check_labels, judge, sample_rows, summarise
from hcnr_jax.evaluate.ask.prompts import is_answerable
from hcnr_jax.evaluate.ask.runner import AnswerSettings, Outputs, counts
from hcnr_jax.evaluate.judge.refusal import Detection, Verdict
from hcnr_jax.evaluate.score.best_setting import choose
from hcnr_jax.evaluate.score.constraint import Constraint
from hcnr_jax.evaluate.score.measurement import METRICS, NEED_ANSWERABLE, measure
from hcnr_jax.evaluate.trait import refusal_metrics, trait_of
from hcnr_jax.experiments.pair_bootstrap import mean_interval
from hcnr_jax.report.markdown import markdown, points_table, results_table
from hcnr_jax.report.terminal_tables import scores_table


@dataclasses.dataclass(frozen=True)
class LabelledRow(Row):
    """A row as it would be with a further label field."""

    harmless: bool | None = None


def no(completion, question=None):
    return Detection(Verdict.REFUSED if completion == "no" else Verdict.ANSWERED)


SAFETY = Trait("safety", "harmless", "harmful", no, refusal_metrics("safety_", "harmful"))


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setitem(TRAITS, "safety", SAFETY)
    return [LabelledRow("s.jsonl", line, f"q{line}", harmless=line > 2) for line in range(1, 5)]


def answers_of(rows, completions):
    prompts = [Prompt("safety", "s", row, row.prompt, ()) for row in rows]
    said = {prompt.key: text for prompt, text in zip(prompts, completions, strict=True)}
    return judge(prompts, Outputs(completions=said))


def test_names_of_honesty_are_those_of_the_records():
    assert METRICS == ("honesty_f1", "refusal_delta", "over_refusal", "task_accuracy", "known_facts")
    assert NEED_ANSWERABLE == ("refusal_delta", "over_refusal", "known_facts")
    assert [metric.name for metric in HONESTY.lost] == ["honesty_f1", "refusal_delta"]
    assert trait_of("honesty") is HONESTY and trait_of("task") is HONESTY


def test_labels_and_messages_are_the_traits(rows):
    check_labels("safety", "s", rows)
    with pytest.raises(InputError, match="line 1: field `harmless` is missing; every row of --safety s needs"):
        check_labels("safety", "s", [dataclasses.replace(rows[0], harmless=None)])
    with pytest.raises(InputError, match="expected harmless and harmful questions, found 0 harmless of 2"):
        check_labels("safety", "s", rows[:2])
    assert {row.harmless for row in sample_rows(rows, 2, 0, trait=SAFETY)} == {True, False}
    assert [is_answerable(row, SAFETY) for row in rows] == [False, False, True, True]
    unlabelled = dataclasses.replace(rows[0], harmless=None, completion="no")
    assert not is_answerable(unlabelled, SAFETY) and is_answerable(unlabelled)


def test_detector_and_metrics_are_the_traits(rows):
    # "I don't know" is a refusal for honesty alone.
    answers = answers_of(rows, ["no", "I don't know", "no", "yes"])
    assert [answer.verdict for answer in answers] == ["refused", "answered", "refused", "answered"]
    assert [answer.answerable for answer in answers] == [False, False, True, True]
    found = summarise(answers, draws=10)
    assert found["honesty"] == {} and found["safety"]["s"]["f1"] == 0.5
    assert found["summary"]["safety_f1"] == 0.5 and found["summary"]["safety_over_refusal"] == 0.5
    assert found["summary"]["honesty_f1"] is None
    measured = measure(answers, SAFETY)
    assert measured["safety_f1"] == 0.5 and measured["bits"]["refused"] == "1010"
    low, high = mean_interval([measured], "safety_over_refusal", 200, trait=SAFETY)
    assert 0 <= low < 0.5 < high <= 1
    assert (
        counts([Prompt("safety", "s", row, "", ()) for row in rows], AnswerSettings(calibration=True))["refusals"] == 4
    )


def test_settings_are_chosen_by_the_traits_main_metric():
    settings = [{"safety_f1": 0.2, "task_accuracy": 1.0}, {"safety_f1": 0.8, "task_accuracy": 1.0}]
    keep = Constraint("task_accuracy", True, 0.0, False)
    assert choose(settings, settings[0], keep, trait=SAFETY).place == 1
    with pytest.raises(InputError, match="whose honesty was measured"):
        choose(settings, settings[0], keep)


def test_tables_have_the_traits_columns(rows):
    table = scores_table("scores", summarise(answers_of(rows, ["no", "yes", "no", "yes"]), draws=10))
    assert list(table.columns[0].cells) == ["s"]
    names = ["method", "F1", "delta", "over-refusal", "task", "known facts", "F1 recovered", "delta recovered"]
    header = markdown([*names, "rows", "weights changed", "seconds"], [])
    assert results_table([], SAFETY) == header
    metrics = {name: {"mean": 0.5, "sd": None} for name in SAFETY.headings}
    assert "| rait | 4 | 50.0 |" in points_table([{"method": "rait", "steps": 4, "metrics": metrics}], SAFETY)


def test_scores_of_one_class():
    refused, none = np.array([True, False]), np.zeros(2, bool)
    assert HONESTY.scores(refused, none) == {"honesty_f1": 0.5, "refusal_delta": None, "over_refusal": None}
    assert HONESTY.scores(none[:0], none[:0])["honesty_f1"] is None
    assert HONESTY.label_of(parse_row({"prompt": "a", "answerable": True}, "f", 1, need_completion=False)) is True
