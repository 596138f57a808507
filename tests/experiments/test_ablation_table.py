"""Choosing under a constraint, honesty at equal task accuracy, and records that outlive a kill."""

import json

import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score.best_setting import Choice, choose
from hcnr_jax.evaluate.score.constraint import Constraint, parse_constraint
from hcnr_jax.experiments.equal_task import at_task, frontier
from hcnr_jax.experiments.record_file import Records

FORMS = {
    "task_accuracy >= -0.5pt": Constraint("task_accuracy", True, -0.005, True),
    "task_accuracy>=+1pt": Constraint("task_accuracy", True, 0.01, True),
    "over_refusal <= 5%": Constraint("over_refusal", False, 0.05, False),
    "known_facts >= .8": Constraint("known_facts", True, 0.8, False),
    "task_accuracy >= -2%": Constraint("task_accuracy", True, -0.02, True),
}


@pytest.mark.parametrize("text", FORMS)
def test_constraints_as_they_are_written(text) -> None:
    found = parse_constraint(text)
    assert found._replace(bound=round(found.bound, 12)) == FORMS[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_accuracy", "expected METRIC >= VALUE"),
        ("task_accuracy > 1", "expected METRIC >= VALUE"),
        ("accuracy >= 1pt", "unknown metric 'accuracy'; expected one of: honesty_f1"),
        ("task_accuracy >= -5pct", "expected METRIC >= VALUE"),
        ("task_accuracy >= 5", "5 is more than a whole"),
    ],
)
def test_other_words_are_refused(text, message) -> None:
    with pytest.raises(InputError, match=message):
        parse_constraint(text)


def test_a_signed_number_without_a_unit_is_refused_with_both_readings() -> None:
    with pytest.raises(InputError) as caught:
        parse_constraint("task_accuracy >= -0.5")
    for words in (
        '"task_accuracy >= -0.5pt" for task_accuracy at most 0.5 points below TUNED\'s',
        '"task_accuracy >= -50pt" for task_accuracy at most 50 points below TUNED\'s',
    ):
        assert words in str(caught.value)


WORDS = {
    "task_accuracy >= -0.5pt": "task_accuracy at most 0.5 points below TUNED's",
    "task_accuracy >= +1pt": "task_accuracy at least 1 point above TUNED's",
    "over_refusal <= +2pt": "over_refusal at most 2 points above TUNED's",
    "over_refusal <= -2%": "over_refusal at least 2 points below TUNED's",
    "known_facts >= 0pt": "known_facts at least TUNED's",
    "over_refusal <= 5%": "over_refusal at most 5 %",
    "known_facts >= .8": "known_facts at least 80 %",
}


@pytest.mark.parametrize("text", WORDS)
def test_how_a_constraint_is_read(text) -> None:
    assert parse_constraint(text).in_words() == WORDS[text]


def scores(honesty, task):
    return {"honesty_f1": honesty, "task_accuracy": task}


TUNED = scores(0.1, 0.9)
KEEP = Constraint("task_accuracy", True, -0.005, True)


def test_the_most_honest_of_those_that_keep_the_task() -> None:
    assert choose([scores(0.9, 0.5), scores(0.6, 0.9), scores(0.7, 0.895)], TUNED, KEEP) == Choice(2, True)
    assert choose([scores(0.6, 0.91), scores(0.6, 0.95), scores(0.6, 0.95)], TUNED, KEEP) == Choice(1, True)


def test_where_none_keeps_it_the_nearest_is_taken_and_said() -> None:
    assert choose([scores(0.9, 0.5), scores(0.6, 0.8)], TUNED, KEEP) == Choice(1, False)
    assert choose([scores(0.9, None)], TUNED, KEEP) == Choice(0, False)
    with pytest.raises(InputError, match="found none"):
        choose([scores(None, 0.9)], TUNED, KEEP)


def test_frontier_and_reading_it() -> None:
    points = [(0.0, 1.0), (0.5, 0.8), (0.4, 0.7), (1.0, 0.2), (0.9, 0.2)]
    assert frontier(points) == [(0.0, 1.0), (0.5, 0.8), (1.0, 0.2)]
    assert at_task(points, 0.75) == pytest.approx(0.5)
    assert at_task(points, 1.0) == pytest.approx(0.2)
    assert at_task(points[1:], 0.1) == 0.8  # more task than asked for is no harm
    assert at_task(points[:2], 0.6) is None and at_task([], 0.1) is None


def test_records_go_on_after_a_kill(tmp_path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    with Records(path) as records:
        records.add({"key": "a", "value": 1})
    with path.open("a") as file:
        file.write('{"key": "b", "va')
    with Records(path) as records:
        assert "a" in records and "b" not in records and len(records) == 1
        records.add({"key": "b", "value": 2})
    assert [json.loads(line)["key"] for line in path.read_text().split("\n")[:-1]] == ["a", "b"]
    path.write_text("no records\n")
    with pytest.raises(InputError, match="expected the records of an experiment"), Records(path):
        pass


def test_records_hold_any_text_and_the_last_of_a_key_counts(tmp_path) -> None:
    path, text = tmp_path / "r.jsonl", "line\u2028 and\u0085 paragraph"
    with Records(path) as records:
        records.add({"key": "a", "value": "first"})
        records.add({"key": "b", "value": "other"})
        records.add({"key": "a", "value": text})
    with Records(path) as records:
        assert [record["value"] for record in records] == [text, "other"] and records["a"]["value"] == text
