"""Probes against a scikit-learn pipeline, on states whose answer is known by construction."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import probe


def states(seed: int, n: int = 80, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Four layers: noise, a clear direction, a weaker one, and a clear one in a constant-padded space."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2 == 0
    direction = np.random.default_rng(99).normal(size=width)
    signal = np.where(labels, 1.0, -1.0)[:, None] * direction[None]
    layers = np.stack([generator.normal(size=(n, width)) * 2 + strength * signal for strength in (0.0, 1.5, 0.4, 1.0)])
    layers[3, :, 0] = 5.0
    return (layers * 7 + 3).astype(np.float32), labels


@pytest.mark.parametrize("width", [12, 150])
def test_probe_equals_a_scikit_learn_pipeline(width: int) -> None:
    hidden, labels = states(0, width=width)
    test, _ = states(1, width=width)
    probes = probe.fit_probes(hidden, labels, folds=2, penalty=0.5)
    logits = probe.apply_probes(probes, test)
    for layer in range(4):
        oracle = make_pipeline(StandardScaler(), LogisticRegression(C=2.0, tol=1e-8, max_iter=10_000))
        oracle.fit(hidden[layer].astype(np.float64), labels)
        expected = oracle.decision_function(test[layer].astype(np.float64))
        np.testing.assert_allclose(logits[layer], expected, atol=2e-3 * np.abs(expected).max())


def test_best_layer_is_chosen_on_the_training_split() -> None:
    hidden, labels = states(0)
    probes = probe.fit_probes(hidden, labels)
    assert probes.best_layer == int(np.argmax(probes.cross_validated))
    assert probes.best_layer in (1, 3)
    assert probes.cross_validated[0] < 0.75
    tuned, test_labels = states(3)
    assert (
        probe.evaluate_probes(probes, {"base": tuned[::-1].copy()}, test_labels, draws=50).best_layer
        == probes.best_layer
    )


def test_base_probes_are_applied_unchanged() -> None:
    hidden, labels = states(0)
    base, test_labels = states(1)
    probes = probe.fit_probes(hidden, labels)
    result = probe.evaluate_probes(probes, {"base": base, "tuned": -base}, test_labels, draws=200)
    for layer in range(4):
        logits = base[layer].astype(np.float64) @ probes.weight[layer] + probes.bias[layer]
        interval = result.auroc["base"][layer]
        assert interval.value == pytest.approx(roc_auc_score(test_labels, logits))
        assert interval.low <= interval.value <= interval.high
        assert result.auroc["tuned"][layer].value == pytest.approx(1 - interval.value)
    assert result.best("base") == result.auroc["base"][probes.best_layer]
    assert result.best("base").value > 0.95
    with pytest.raises(InputError, match="expected one of base, tuned, found 'other'"):
        result.best("other")


def test_result_is_json() -> None:
    hidden, labels = states(0)
    result = probe.evaluate_probes(probe.fit_probes(hidden, labels), {"base": hidden}, labels, draws=20)
    found = json.loads(json.dumps(result.to_json()))
    assert found["train_questions"] == found["test_questions"] == 80
    assert len(found["auroc"]["base"]) == len(found["cross_validated"]) == 4
    assert found["auroc_best_layer"]["base"]["value"] == found["auroc"]["base"][found["best_layer"]]["value"]


def test_constant_states_probe_to_chance() -> None:
    _, labels = states(0)
    probes = probe.fit_probes(np.ones((1, 80, 3), np.float32), labels)
    result = probe.evaluate_probes(probes, {"base": np.ones((1, 80, 3), np.float32)}, labels, draws=20)
    assert (probes.cross_validated[0], result.best("base").value) == (0.5, 0.5)


def test_bad_states_are_refused() -> None:
    hidden, labels = states(0)
    broken = hidden.copy()
    broken[2, 4, 1] = np.nan
    with pytest.raises(InputError, match=r"training split: .*NaN or Inf in layer 2, question 5"):
        probe.fit_probes(broken, labels)
    with pytest.raises(InputError, match="found 80 unanswerable of 80"):
        probe.fit_probes(hidden, np.ones(80, dtype=bool))
    with pytest.raises(InputError, match="found 80 states and 79 labels"):
        probe.fit_probes(hidden, labels[:79])
    with pytest.raises(InputError, match=r"folds: expected 2 to 40 .*, found 41"):
        probe.fit_probes(hidden, labels, folds=41)
    with pytest.raises(InputError, match=r"penalty: expected a positive number, found 0\.0"):
        probe.fit_probes(hidden, labels, penalty=0.0)
    probes = probe.fit_probes(hidden, labels, folds=2)
    with pytest.raises(InputError, match=r"\(layers, width\) \(4, 12\) as in base, found \(3, 12\)"):
        probe.apply_probes(probes, hidden[:3])
    with pytest.raises(InputError, match=r"tuned, test split: .*layer 2"):
        probe.evaluate_probes(probes, {"base": hidden, "tuned": broken}, labels, draws=10)
    with pytest.raises(InputError, match="found none"):
        probe.evaluate_probes(probes, {}, labels)
