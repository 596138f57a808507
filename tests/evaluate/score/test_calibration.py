"""Calibration against scikit-learn and hand-computed cases."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score import calibration


def sample(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = np.round(generator.random(n), 2)
    return probabilities, generator.random(n) < probabilities**2


@pytest.mark.parametrize("seed", range(4))
def test_brier_and_auroc_equal_scikit_learn(seed: int) -> None:
    probabilities, outcomes = sample(seed)
    assert calibration.brier(probabilities, outcomes) == pytest.approx(brier_score_loss(outcomes, probabilities))
    assert calibration.auroc(probabilities, outcomes) == pytest.approx(
        roc_auc_score(outcomes, probabilities), abs=1e-12
    )
    assert calibration.auroc(-probabilities, outcomes) == pytest.approx(1 - roc_auc_score(outcomes, probabilities))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_reliability_equals_scikit_learn(seed: int, kind: str, strategy: str) -> None:
    probabilities, outcomes = sample(seed)
    found = calibration.reliability(probabilities, outcomes, bins=7, kind=kind)
    frequency, said = calibration_curve(outcomes, probabilities, n_bins=7, strategy=strategy)
    np.testing.assert_allclose(found.frequency, frequency, atol=1e-12)
    np.testing.assert_allclose(found.mean_probability, said, atol=1e-12)
    assert found.count.sum() == len(outcomes)


def test_expected_calibration_error_by_hand() -> None:
    probabilities, outcomes = np.array([0.1, 0.2, 0.9, 0.7]), np.array([False, True, True, True])
    assert calibration.expected_calibration_error(probabilities, outcomes, bins=2) == pytest.approx(
        0.5 * 0.35 + 0.5 * 0.2
    )
    assert calibration.expected_calibration_error(probabilities, outcomes, bins=1) == pytest.approx(0.75 - 0.475)
    mass = calibration.expected_calibration_error(probabilities, outcomes, bins=2, kind="mass")
    assert mass == pytest.approx(0.5 * 0.35 + 0.5 * 0.2)


def test_edges_of_the_bins() -> None:
    found = calibration.reliability(np.array([0.0, 0.5, 1.0, 1.0]), np.array([False, True, True, True]), bins=2)
    assert found.count.tolist() == [2, 2]
    assert found.to_json()["low"] == [0.0, 0.5]
    tied = calibration.reliability(np.full(6, 0.3), np.array([True, False] * 3), bins=3, kind="mass")
    assert tied.count.tolist() == [6]
    perfect = calibration.expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True]))
    assert perfect == 0.0


def test_order_of_the_questions_does_not_matter() -> None:
    probabilities, outcomes = sample(9)
    order = np.random.default_rng(1).permutation(len(outcomes))
    for kind in ("width", "mass"):
        one = calibration.expected_calibration_error(probabilities, outcomes, kind=kind)
        other = calibration.expected_calibration_error(probabilities[order], outcomes[order], kind=kind)
        assert one == pytest.approx(other, abs=1e-12)


def test_refusal_probability_by_hand() -> None:
    refusals = np.log(np.array([[0.2, 0.1], [0.05, 0.05]]))
    answers = np.log(np.array([[0.1], [0.3]]))
    assert calibration.refusal_probability(refusals, answers) == pytest.approx([0.75, 0.25])
    mean = calibration.refusal_probability(refusals, answers, wordings="mean")
    assert mean == pytest.approx([0.15 / 0.25, 0.05 / 0.35])
    largest = calibration.refusal_probability(refusals, answers, wordings="max")
    assert largest == pytest.approx([0.2 / 0.3, 0.05 / 0.35])


def test_an_answer_that_is_a_refusal_counts_for_refusing() -> None:
    refusals, answers = np.log(np.array([[0.2], [0.2]])), np.log(np.array([[0.5, 0.1], [0.5, 0.1]]))
    flags = np.array([[True, False], [True, True]])
    found = calibration.refusal_probability(refusals, answers, answer_refuses=flags)
    assert found == pytest.approx([0.7 / 0.8, 1.0])


def test_refusal_probability_is_stable_far_from_zero() -> None:
    found = calibration.refusal_probability(
        np.array([[-5000.0], [-np.inf], [-3.0]]), np.array([[-5001.0], [-4.0], [-np.inf]])
    )
    assert found == pytest.approx([1 / (1 + np.exp(-1.0)), 0.0, 1.0])


def test_bad_likelihoods_are_refused() -> None:
    good = np.array([[-1.0], [-1.0]])
    with pytest.raises(InputError, match=r"refusals: .* first in question 2"):
        calibration.refusal_probability(np.array([[-1.0], [np.nan]]), good)
    with pytest.raises(InputError, match=r"answers: .* 1 values that are NaN or positive"):
        calibration.refusal_probability(good, np.array([[-1.0], [0.5]]))
    with pytest.raises(InputError, match="0 columns"):
        calibration.refusal_probability(good[:, :0], good)
    with pytest.raises(InputError, match="question 1: every completion has likelihood 0"):
        calibration.refusal_probability(np.array([[-np.inf]]), np.array([[-np.inf]]))


def test_bad_probabilities_and_one_class_are_refused() -> None:
    two = np.array([True, False])
    with pytest.raises(InputError, match=r"question 2: expected a probability in 0\.\.1, found 1\.5"):
        calibration.brier(np.array([0.5, 1.5]), two)
    with pytest.raises(InputError, match="found nan"):
        calibration.reliability(np.array([0.5, np.nan]), two)
    with pytest.raises(InputError, match="found 0 and 0"):
        calibration.brier(np.array([]), np.array([], dtype=bool))
    with pytest.raises(InputError, match="expected 1 bin or more, found 0"):
        calibration.reliability(np.array([0.5, 0.5]), two, bins=0)
    with pytest.raises(InputError, match="both classes, found 2 positive of 2"):
        calibration.auroc(np.array([0.5, 0.4]), np.array([True, True]))
    with pytest.raises(InputError, match="question 1: expected a number, found NaN"):
        calibration.auroc(np.array([np.nan, 0.4]), two)


def test_auroc_of_infinite_scores_and_ties() -> None:
    assert calibration.auroc(np.array([np.inf, -np.inf]), np.array([True, False])) == 1.0
    assert calibration.auroc(np.array([0.5, 0.5, 0.5]), np.array([True, False, False])) == 0.5


def test_unequal_questions_are_refused() -> None:
    with pytest.raises(InputError, match="found 2 rows of refusals and 1 of answers"):
        calibration.refusal_probability(np.full((2, 1), -1.0), np.full((1, 1), -1.0))
    with pytest.raises(InputError, match="found 2 and 1"):
        calibration.auroc(np.array([0.1, 0.2]), np.array([True]))
