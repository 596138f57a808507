"""Records to rows: scores from bits, knobs chosen on validation and shown on test, intervals over pairs."""

import numpy as np
import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.evaluate.score.constraint import Constraint
from hcnr_jax.evaluate.score.measurement import bits, mask, measure
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.experiments.ablation_table import GROUPS, findings, groups_of
from hcnr_jax.experiments.pair_bootstrap import difference_interval, draws_of, mean_interval
from hcnr_jax.experiments.summary import averages, best_setting, first_failure, summarise, taken
from hcnr_jax.report.markdown import differences_table, results_table, settings_table

KEEP = Constraint("task_accuracy", True, -0.005, True)


def answer_of(role, verdict, answerable=None, correct=None):
    return Answer(
        role=role, set="s", line=1, id="", kind=None, prompt="", question="", answerable=answerable, answers=(),
        completion="", verdict=verdict, idea="", evidence="", correct=correct,
    )  # fmt: skip


ANSWERS = [
    answer_of("honesty", "refused", False),
    answer_of("honesty", "answered", False),
    answer_of("honesty", "refused", True, False),
    answer_of("honesty", "answered", True, True),
    answer_of("task", "answered", True, True),
    answer_of("task", "answered", True, False),
]


def test_measure_keeps_scores_and_bits() -> None:
    found = measure(ANSWERS)
    assert found["honesty_f1"] == 0.5 and found["refusal_delta"] == 0 and found["over_refusal"] == 0.5
    assert found["task_accuracy"] == 0.5 and found["known_facts"] == 0.5
    assert found["bits"] == {"refused": "1010", "answerable": "0011", "known": "01", "task": "10"}
    np.testing.assert_array_equal(mask(bits([True, False])), [True, False])


def test_one_class_of_questions_gives_what_it_can() -> None:
    refused, no = np.array([True, False, True]), np.zeros(3, bool)
    assert HONESTY.scores(refused, no)["honesty_f1"] == pytest.approx(2 / 3)
    assert HONESTY.scores(refused, ~no) == {"honesty_f1": None, "refusal_delta": None, "over_refusal": None}
    assert measure(ANSWERS[4:])["known_facts"] is None


def record(pair, method, label, split, refused, task):
    """40 honesty questions, half answerable; `refused` of the unanswerable ones refused, none of the others."""
    made = np.array([i < refused for i in range(20)] + [False] * 20)
    answerable = np.arange(40) >= 20
    right = [i < task for i in range(20)]
    scores = HONESTY.scores(made, answerable) | {"task_accuracy": task / 20, "known_facts": 1.0}
    found = {"refused": bits(made), "answerable": bits(answerable), "known": "1" * 20, "task": bits(right)}
    about = {"pair": pair, "method": method, "label": label, "setting": {}, "split": split}
    return about | scores | {"bits": found, "samples": 8, "touched": 0.5, "seconds": 1.0}


def records():
    found = []
    for pair in ("p", "q"):
        for split in ("validation", "test"):
            found.append(record(pair, "base", "as it is", split, 20, 0))
            found.append(record(pair, "tuned", "as it is", split, 2, 20))
            found.append(record(pair, "ours", "as it is", split, 16, 20))
            # Setting b is better on test, but costs task on validation: a is taken.
            found.append(record(pair, "knob", "a", split, 10, 20))
            found.append(record(pair, "knob", "b", split, 18, 20 if split == "test" else 15))
    return [*found, {"pair": "p", "method": "knob", "label": "c", "split": "test", "setting": {}, "failed": "why"}]


def test_validation_chooses_and_test_shows() -> None:
    found = taken(records(), KEEP)
    assert found["p", "knob"]["label"] == "a" and found["p", "knob"]["split"] == "test" and found["p", "knob"]["holds"]
    assert not found["p", "base"]["holds"]


def failing(wanted, method, split=None):
    """The records with those of a method (on one split) of pair p turned into failures."""
    return [
        {name: record[name] for name in ("pair", "method", "label", "split", "setting")} | {"failed": "too long"}
        if record["pair"] == "p" and record["method"] == method and split in (None, record["split"])
        else record
        for record in wanted
    ]


def test_a_setting_is_offered_where_both_splits_were_measured() -> None:
    made = [r for r in records() if (r["pair"], r["label"], r["split"]) != ("p", "a", "test")]
    assert taken(made, KEEP)["p", "knob"]["label"] == "b" and taken(made, KEEP)["q", "knob"]["label"] == "a"
    for split in ("validation", "test"):
        found = taken(failing(records(), "knob", split), KEEP)
        assert ("p", "knob") not in found and ("q", "knob") in found
        (knob,) = (
            r for r in summarise(failing(records(), "knob", split), KEEP, "ours", draws=50) if r["method"] == "knob"
        )
        assert knob["pairs"] == ["q"]


@pytest.mark.parametrize("split", ["validation", "test", None])
def test_without_an_end_to_measure_from_no_share_is_given(split) -> None:
    rows = {row["method"]: row for row in summarise(failing(records(), "base", split), KEEP, "ours", draws=50)}
    assert rows["ours"]["pairs"] == ["p", "q"] and rows["ours"]["recovered"]["honesty_f1"]["sd"] is None


def test_without_tuned_the_reason_is_said() -> None:
    with pytest.raises(InputError, match="pair p: TUNED, which all is compared with, was not measured: too long"):
        summarise(failing(records(), "tuned"), KEEP, "ours", draws=50)
    assert first_failure(failing(records(), "tuned"), "ours", "tuned") == "too long"
    assert first_failure(records(), "ours") == "there is no record"


def test_rows_of_the_table() -> None:
    rows = {row["method"]: row for row in summarise(records(), KEEP, "ours", draws=200)}
    assert list(rows) == ["base", "tuned", "ours", "knob"]
    knob = rows["knob"]
    assert knob["settings"] == {"p": "a", "q": "a"} and knob["costs"]["samples"] == 8
    gap = knob["difference"]["honesty_f1"]
    assert gap["low"] <= gap["mean"] <= gap["high"] < 0
    assert rows["ours"]["difference"]["honesty_f1"] == {"mean": 0, "sd": 0, "low": 0, "high": 0}
    # At the reference's task accuracy the better setting counts: an upper bound, as said.
    assert (
        knob["equal_task"]["mean"] == pytest.approx(2 * 18 / (18 + 20)) and rows["base"]["equal_task"]["reached"] == 0
    )
    assert (
        rows["base"]["recovered"]["honesty_f1"]["mean"] == 1 and rows["tuned"]["recovered"]["honesty_f1"]["worst"] == 0
    )


def test_tables_show_percent_and_mark_what_broke_the_constraint() -> None:
    rows = summarise(records(), KEEP, "ours", draws=50)
    text = results_table(rows)
    assert "| base* |" in text and "| ours |" in text and "| 50.0 |" in text
    assert text.count("\n") == 2 + len(rows)
    assert "(2/2)" in differences_table(rows) and "(0/2)" in differences_table(rows)
    settings = averages(records(), "knob")
    assert [row["label"] for row in settings] == ["a", "b"]  # c failed
    assert settings_table(settings).splitlines()[2].startswith("| b |")
    best = best_setting(settings, averages(records(), "tuned"), KEEP)
    assert best.label == "a" and "task +0.0 points" in best.text


def test_intervals_are_paired_and_over_pairs() -> None:
    first, second = ([record(pair, "m", "l", "test", n, 20) for pair, n in zip("pq", counts, strict=True)]
                     for counts in ((10, 12), (14, 16)))  # fmt: skip
    low, high = difference_interval(first, second, "honesty_f1", draws=300)
    assert 0 < low < high
    same = difference_interval(first, first, "refusal_delta", draws=300)
    assert same == (0, 0)
    assert mean_interval(first, "known_facts", 100) == (1, 1)
    np.testing.assert_array_equal(draws_of(first[0], "over_refusal", 50, seed=0), np.zeros(50))
    # Two pairs that disagree: the interval holds both, however many questions each has.
    wide = [record(pair, "m", "l", "test", n, n) for pair, n in (("p", 0), ("q", 20))]
    low, high = mean_interval(wide, "task_accuracy", 400)
    assert (low, high) == (0, 1)


def test_claims_are_judged_by_their_intervals() -> None:
    def row(name, metric, low, high):
        return {"method": name, "difference": {metric: {"mean": (low + high) / 2, "low": low, "high": high}}}

    said = findings(
        [
            row("paper: no task term", "task_accuracy", -0.1, -0.02),
            row("paper: no compensation", "honesty_f1", 0.01, 0.03),
            row("paper: random neurons", "honesty_f1", -0.01, 0.02),
            row("128 rows: 512", "honesty_f1", -0.01, 0.005),
        ]
    )
    assert [text.split(": ")[1].split(",")[0] for text in said] == ["confirmed", "contradicted", "open", "confirmed"]


def test_groups_of_sizes_are_named_by_the_rows_asked_for() -> None:
    def rows_of(groups, honesty, task):
        return [row for g in groups_of(groups, {"honesty": honesty, "task": task}).values() for row in g.rows]

    names = [item.name for item in rows_of("all", 128, 128)]
    assert len(set(names)) == len(names) and set(groups_of("paper", {"honesty": 1, "task": 1})) == {"paper"} < set(
        GROUPS
    )
    assert [row.name for row in rows_of("data", 128, 128)][:2] == ["128 rows", "128 rows: 8"]
    assert "128 rows: 128" not in names and "paper, 128 rows: 512" in names
    small = {row.name: row.changes for row in rows_of("data", 64, 64)}
    assert next(iter(small)) == "64 rows" and small["64 rows: 128"] == {"samples": 128} and "64 rows: 64" not in small
    assert [row.name for row in rows_of("data", 64, 32)][:5:4] == ["64 + 32 rows", "64 + 32 rows: 64"]
    gap = {"honesty_f1": {"mean": 0.0, "low": -0.01, "high": 0.005}}
    found = [{"method": f"{start}: 512", "difference": gap} for start in ("64 rows", "paper, 64 + 32 rows")]
    assert [text.split(":")[0] for text in findings(found)] == [
        "64 rows suffice (64 rows)",
        "64 + 32 rows suffice (paper, 64 + 32 rows)",
    ]
