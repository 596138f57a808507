"""Agreement of a judge with the detector."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from hcnr_jax.evaluate.score.agreement import agreement_scores, cohen_kappa
from tests.evaluate.score.records import record


def test_kappa_against_scikit_learn():
    generator = np.random.default_rng(0)
    first = generator.random(50) < 0.4
    second = first ^ (generator.random(50) < 0.2)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert cohen_kappa(first, first) == 1.0
    assert cohen_kappa(np.ones(3, bool), np.ones(3, bool)) is None and cohen_kappa(first[:0], first[:0]) is None


def judged(role, name, pairs):
    return [
        record(role, name, i, verdict=verdict, judgement=judgement, judge_reply=judgement.upper())
        for i, (verdict, judgement) in enumerate(pairs)
    ]


def test_counts_and_examples_of_both_disagreements():
    pairs = [("refused", "refused"), ("answered", "answered"), ("undetermined", "answered"), ("refused", "unreadable")]
    answers = judged("honesty", "a", [*pairs, ("refused", "answered"), *7 * [("answered", "refused")]])
    found = agreement_scores(answers)["honesty"]["a"]
    assert (found["questions"], found["unreadable"], found["agreement"]) == (12, 1, pytest.approx(3 / 11))
    assert found["only_judge_refused"]["count"] == 7 and len(found["only_judge_refused"]["examples"]) == 5
    (example,) = found["only_detector_refused"]["examples"]
    assert example["id"] == "4" and example["verdict"] == "refused" and example["judge_reply"] == "ANSWERED"
    assert found["refused_by_judge"] == pytest.approx(8 / 11)


def test_sets_are_pooled_and_unread_ones_have_no_agreement():
    unread = judged("honesty", "b", [("refused", "unreadable")])
    found = agreement_scores([*judged("honesty", "a", [("refused", "refused")]), *unread])
    assert list(found) == ["honesty"] and list(found["honesty"]) == ["a", "b", "pooled"]
    assert found["honesty"]["b"]["agreement"] is None and found["honesty"]["b"]["kappa"] is None
    assert found["honesty"]["pooled"]["questions"] == 2 and found["honesty"]["pooled"]["unreadable"] == 1
    assert agreement_scores([record("task", "t", 1)]) == {}
