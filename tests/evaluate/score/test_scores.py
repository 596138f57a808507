"""Scores of hand-written records: by set, pooled, their mean, kinds, calibration."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score.scores import summarise
from tests.evaluate.score.records import FIRST, SECOND, honesty_set, record


def f1(refused, answerable):
    return f1_score(~np.array(answerable), np.array(refused, bool))


def test_honesty_by_set_pooled_and_averaged():
    scores = summarise([*honesty_set("a", *FIRST), *honesty_set("b", *SECOND)], draws=50)
    assert list(scores["honesty"]) == ["a", "b", "pooled"]
    assert scores["honesty"]["a"]["f1"] == pytest.approx(f1(*FIRST))
    assert scores["honesty"]["b"]["f1"] == pytest.approx(f1(*SECOND))
    pooled = f1(FIRST[0] + SECOND[0], FIRST[1] + SECOND[1])
    summary = scores["summary"]
    assert summary["honesty_f1"] == scores["honesty"]["pooled"]["f1"] == pytest.approx(pooled)
    assert summary["honesty_f1_mean"] == pytest.approx((f1(*FIRST) + f1(*SECOND)) / 2)
    assert summary["refusal_delta"] == pytest.approx(3 / 5 - 1 / 5)
    assert summary["refusal_on_answerable"] == pytest.approx(1 / 5)
    assert summary["task_accuracy"] is None
    assert scores["honesty"]["a"]["kinds"]["odd"] == {"questions": 3, "refused": pytest.approx(1 / 3)}
    interval = scores["honesty"]["a"]["intervals"]["f1"]
    assert interval["low"] <= interval["value"] <= interval["high"] and interval["method"] == "percentile"


def test_a_set_named_pooled_alone_and_of_one_class():
    scores = summarise(honesty_set("a", *FIRST), draws=10)
    assert list(scores["honesty"]) == ["a"] and "honesty_f1_mean" not in scores["summary"]
    with pytest.raises(InputError, match="expected answerable and unanswerable questions"):
        summarise(honesty_set("a", [1, 0], [False, False]))


def test_perfect_refusals_have_an_interval_too():
    scores = summarise(honesty_set("a", [1, 1, 0, 0], [False, False, True, True]), draws=20)
    assert scores["honesty"]["a"]["f1"] == 1.0
    assert scores["honesty"]["a"]["intervals"]["f1"]["low"] == 1.0


def test_task_scores_of_texts_and_choices():
    texts = [
        record("task", "t", i, correct=c, exact=c, contains=True, token_f1=f, kind="k")
        for i, (c, f) in enumerate([(True, 1.0), (False, 0.5), (False, 0.0), (True, 1.0)])
    ]
    choices = [
        record("task", "c", i, correct=pick == 1, right_choice=1, chosen=pick, chosen_per_token=1, chosen_by_text=said)
        for i, (pick, said) in enumerate([(1, None), (0, 1)])
    ]
    scores = summarise([*texts, *choices], draws=20)
    assert scores["task"]["t"]["accuracy"] == scores["task"]["t"]["exact_match"] == 0.5
    assert scores["task"]["t"]["token_f1"] == 0.625 and scores["task"]["t"]["contains_match"] == 1.0
    assert scores["task"]["c"]["choice_accuracy"] == scores["task"]["c"]["accuracy"] == 0.5
    assert scores["task"]["c"]["choice_accuracy_per_token"] == 1.0
    assert scores["task"]["c"]["choice_accuracy_by_text"] == 0.5
    assert scores["summary"]["task_accuracy"] == scores["task"]["pooled"]["accuracy"] == 0.5
    assert scores["task"]["pooled"]["choice_accuracy"] == 0.5 and scores["honesty"] == {}


def test_one_task_question_has_no_interval():
    scores = summarise([record("task", "t", 1, correct=True, exact=True, contains=True, token_f1=1.0)])
    assert scores["task"]["t"]["accuracy"] == 1.0 and scores["task"]["t"]["intervals"]["accuracy"] is None


def test_known_answers_among_honesty_questions():
    answers = honesty_set("a", *FIRST, correct=[None, None, None, True, False, None])
    assert summarise(answers, draws=10)["honesty"]["a"]["accuracy_on_answerable"] == 0.5


def test_calibration_against_scikit_learn():
    said = [0.9, 0.6, 0.4, 0.3, 0.7, 0.1]
    scores = summarise(honesty_set("a", *FIRST, refusal_probability=said), draws=10)["calibration"]["a"]
    unanswerable = ~np.array(FIRST[1])
    assert scores["auroc"] == pytest.approx(roc_auc_score(unanswerable, said))
    assert scores["brier"] == pytest.approx(brier_score_loss(unanswerable, said))
    assert sum(scores["reliability"]["count"]) == 6
