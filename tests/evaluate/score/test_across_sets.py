"""The worst set, and means over the other sets."""

import pytest

from hcnr_jax.evaluate.score.across_sets import FIELDS, across_sets
from hcnr_jax.evaluate.score.scores import summarise
from tests.evaluate.score.records import FIRST, SECOND, honesty_set


def test_worst_set_and_means_without_each_set():
    known = honesty_set("known", [1, 0, 0], [False, True, True], correct=[None, True, False])
    scores = summarise([*honesty_set("a", *FIRST), *honesty_set("b", *SECOND), *known], draws=20)
    found = scores["across_sets"]["honesty"]
    # Refusal deltas: 2/3 - 1/3, 1/2 - 0, 1 - 0.
    assert found["worst_set"] == {"name": "a", "refusal_delta": pytest.approx(1 / 3)}
    assert found["mean"]["refusal_delta"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert list(found["leave_one_out"]) == ["a", "b", "known"]
    assert found["leave_one_out"]["known"]["refusal_delta"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found["leave_one_out"]["a"]["refusal_on_answerable"] == 0.0
    assert set(found["mean"]) == set(FIELDS)


def test_sets_without_gold_answers_do_not_count_in_means_of_answers():
    known = honesty_set("known", [1, 0, 0], [False, True, True], correct=[None, True, False])
    found = summarise([*honesty_set("a", *FIRST), *known], draws=20)["across_sets"]["honesty"]
    assert found["mean"]["accuracy_on_answerable"] == 0.5 and found["mean"]["index"] == 0.0
    assert found["leave_one_out"]["known"]["accuracy_on_answerable"] is None
    assert found["leave_one_out"]["known"]["index"] is None


def test_one_set_is_not_compared():
    assert summarise(honesty_set("a", *FIRST), draws=20)["across_sets"] == {} and across_sets({}) is None
