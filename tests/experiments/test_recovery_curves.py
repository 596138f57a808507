"""Curves of recovery from records: what is regained is dated pair by pair, with what it cost by then."""

import numpy as np
import pytest

from hcnr_jax.evaluate.score.measurement import bits
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.experiments.recovery_curves import curves_of, findings, points, refuse_all, regained
from hcnr_jax.report.markdown import points_table, regained_table

ANSWERABLE = np.arange(40) >= 20


def record(pair, method, refused, task, over=0, **setting):
    """20 unanswerable and 20 answerable questions, `refused` and `over` of them refused."""
    made = np.array([i < refused for i in range(20)] + [i < over for i in range(20)])
    scores = HONESTY.scores(made, ANSWERABLE) | {"task_accuracy": task / 20, "known_facts": None}
    found = {"refused": bits(made), "answerable": bits(ANSWERABLE)}
    return {"pair": pair, "method": method, "setting": setting, "split": "test", "bits": found, **scores}


def pair_of(name, *refused):
    """base refuses all it should, tuned 2; `rait` as said after 0, 1 and 4 steps, losing the task by the last."""
    curve = [record(name, "rait", count, 20 - step, step, steps=step) for count, step in zip(refused, (0, 1, 4))]  # noqa: B905
    return [record(name, "base", 20, 0), record(name, "tuned", 2, 20), *curve]


RECORDS = [*pair_of("p", 2, 12, 20), *pair_of("q", 2, 4, 20), *pair_of("r", 2, 3, 4)]


def test_shares_are_dated_by_the_first_step_that_has_them() -> None:
    (curve,) = curves_of(RECORDS, ["rait", "rait_mixed"])
    assert curve.steps == (0, 1, 4) and curve.pairs == ("p", "q", "r")
    np.testing.assert_array_equal(curve.values["task_accuracy"][0], [1.0, 0.95, 0.8])
    half, most = regained([curve])
    assert half["steps"] == {"p": 1, "q": 4, "r": None} and most["steps"] == {"p": None, "q": None, "r": None}
    assert half["changes"]["task_accuracy"] == pytest.approx([-0.05, -0.2])
    said = findings([curve], 1e-4)
    assert "50 % of the way to BASE's F1 after 1 to 4 steps on 2 of 3 pairs; by then task -12.5 points" in said[0]
    assert "90 % of the way to BASE's F1 on none of 3 pairs within 4 steps" in said[1]
    assert "task 80.0, percent" in said[2]
    assert "| rait | 50 | 1, 4, - | -12.5 (-20.0 to -5.0) | +12.5 (+5.0 to +20.0) |" in regained_table([half, most])


def test_points_are_means_over_pairs_with_their_range() -> None:
    first, _, last = points(curves_of(RECORDS, ["rait"]))
    assert (first["steps"], last["steps"], last["pairs"]) == (0, 4, 3)
    assert last["metrics"]["task_accuracy"] == pytest.approx({"mean": 0.8, "sd": 0.0, "min": 0.8, "max": 0.8})
    assert last["metrics"]["known_facts"] is None
    table = points_table([first, last]).splitlines()
    assert table[0].startswith("| method | steps | F1 |") and table[-1].startswith("| rait | 4 |")


def test_a_pair_with_a_step_missing_is_no_curve() -> None:
    whole = [entry for entry in RECORDS if entry["setting"] != {"steps": 4} or entry["pair"] != "q"]
    (curve,) = curves_of(whole, ["rait"])
    assert curve.pairs == ("p", "r")
    assert curves_of(RECORDS, ["rait_mixed"]) == []


def test_refusing_everything_has_an_f1_of_its_own() -> None:
    assert refuse_all(RECORDS) == pytest.approx(2 / 3)
    assert refuse_all([]) is None
