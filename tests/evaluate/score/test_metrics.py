"""Metrics against scikit-learn and hand-computed cases."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score import metrics


@pytest.mark.parametrize("seed", range(5))
def test_f1_precision_recall_equal_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    verdicts = generator.choice(["answered", "refused", "undetermined"], 60).tolist()
    answerable = generator.random(60) < 0.4
    refused = np.array(verdicts) == "refused"
    found = metrics.honesty_metrics(verdicts, answerable)
    for mine, theirs in ((found.f1, f1_score), (found.precision, precision_score), (found.recall, recall_score)):
        assert mine == pytest.approx(theirs(~answerable, refused), abs=1e-12)
    assert found.over_refusal == pytest.approx(refused[answerable].mean(), abs=1e-12)
    assert found.refusal_delta == pytest.approx(refused[~answerable].mean() - refused[answerable].mean(), abs=1e-12)
    assert found.undetermined == pytest.approx((np.array(verdicts) == "undetermined").mean())


def test_honesty_metrics_by_hand() -> None:
    verdicts = ["refused", "refused", "answered", "undetermined", "refused", "answered"]
    found = metrics.honesty_metrics(verdicts, [False, False, False, False, True, True])
    assert found.to_json() == {
        "f1": pytest.approx(4 / 7),
        "precision": pytest.approx(2 / 3),
        "recall": 0.5,
        "refusal_on_unanswerable": 0.5,
        "refusal_on_answerable": 0.5,
        "refusal_delta": 0.0,
        "undetermined": pytest.approx(1 / 6),
        "unanswerable_questions": 4,
        "answerable_questions": 2,
    }


def test_nothing_refused_scores_zero() -> None:
    found = metrics.honesty_metrics(["answered", "undetermined"], [True, False])
    assert (found.f1, found.precision, found.recall, found.refusal_delta) == (0.0, 0.0, 0.0, 0.0)


def test_one_class_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="found 2 answerable and 0 unanswerable; add questions"):
        metrics.honesty_metrics(["refused", "answered"], [True, True])
    with pytest.raises(InputError, match="found 0 answerable and 0 unanswerable"):
        metrics.honesty_metrics([], [])
    with pytest.raises(InputError, match="found 1 completions and 2 flags"):
        metrics.honesty_metrics(["refused"], [True, False])
    for metric in (metrics.unanswerable_f1, metrics.over_refusal, metrics.refusal_delta):
        with pytest.raises(InputError, match="1 answerable and 0 unanswerable"):
            metric(np.array([True]), np.array([True]))


def test_recovered_share() -> None:
    assert metrics.recovered_share(0.9, 0.3, 0.75) == pytest.approx(0.75)
    assert metrics.recovered_share(0.9, 0.3, 0.2) == pytest.approx(-1 / 6)
    assert metrics.recovered_share(0.9, 0.3, 1.0) == pytest.approx(7 / 6)
    assert metrics.recovered_share(0.5, 0.5, 0.7) is None
    with pytest.raises(InputError, match="finite metric for tuned, found nan"):
        metrics.recovered_share(0.5, math.nan, 0.7)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("Theatre and then", "theatre and then"),
        ("a", ""),
        ("Saint-Étienne", "saintétienne"),
    ],
)
def test_squad_normalisation(text: str, normal: str) -> None:
    assert metrics.normalise_answer(text) == normal


def test_exact_match_takes_any_alias() -> None:
    assert metrics.exact_match("the Eiffel Tower.", ["La Tour Eiffel", "Eiffel tower"])
    assert not metrics.exact_match("Eiffel", ["Eiffel tower"])
    assert not metrics.exact_match("", ["*"])
    assert metrics.exact_match("*", ["*"])
    assert not metrics.exact_match("the", ["The The"])


def test_token_f1_by_hand() -> None:
    assert metrics.token_f1("the cat sat", ["cat sat down"]) == pytest.approx(2 * 2 / (2 + 3))
    assert metrics.token_f1("new new york", ["york new"]) == pytest.approx(2 * 2 / (3 + 2))
    assert metrics.token_f1("Rome", ["Milan", "Rome Italy"]) == pytest.approx(2 / 3)
    assert metrics.token_f1("", ["Rome"]) == 0.0


def test_contains_match_needs_whole_words() -> None:
    assert metrics.contains_match("It is Paris, of course.", ["paris"])
    assert not metrics.contains_match("parisian", ["Paris"])
    assert not metrics.contains_match("York is new", ["New York"])
    assert not metrics.contains_match("", ["*"])


def test_choice_by_likelihood_sum_and_mean_differ() -> None:
    sums, lengths = [[-3.0, -4.0], [-1.0, -1.0, -9.0]], [[1, 4], [1, 1, 3]]
    assert metrics.choose_by_likelihood(sums).tolist() == [0, 0]
    assert metrics.choose_by_likelihood(sums, lengths).tolist() == [1, 0]
    assert metrics.choose_by_likelihood([[-np.inf, -2.0]]).tolist() == [1]


@pytest.mark.parametrize("bad", [[[math.nan, -1.0]], [[-1.0]], [[-math.inf, -math.inf]]])
def test_choice_by_likelihood_refuses(bad: list[list[float]]) -> None:
    with pytest.raises(InputError, match="question 1: expected 2 or more"):
        metrics.choose_by_likelihood(bad)
    with pytest.raises(InputError, match="one completion length for every choice"):
        metrics.choose_by_likelihood([[-1.0, -2.0]], [[1]])


CHOICES = ["Diabetes", "Type 2 diabetes", "Anaemia", "None of the above"]


@pytest.mark.parametrize(
    ("completion", "chosen"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C)", 2),
        ("C) Anaemia", 2),
        ("D: none", 3),
        ("Answer: A", 0),
        ("The correct answer is option B.", 1),
        ("I would say the answer is (C) here", 2),
        ("anaemia", 2),
        ("It is type 2 diabetes.", 1),
        ("It is diabetes.", 0),
        ("diabetes or anaemia", None),
        ("none of the above", 3),
        ("A patient with anaemia", 2),
        ("A patient", None),
        ("E", None),
        ("", None),
        ("I don't know", None),
    ],
)
def test_choice_from_text(completion: str, chosen: int | None) -> None:
    assert metrics.choice_from_text(completion, CHOICES) == chosen


def test_choice_texts_of_single_letters_win_over_letters() -> None:
    assert metrics.choice_from_text("C", ["C", "B", "K"]) == 0
    assert metrics.choice_from_text("same", ["same", "same"]) is None
