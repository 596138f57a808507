"""Differences of two models' metrics on the same questions."""

import numpy as np
import pytest

from hcnr_jax.evaluate.score.paired_scores import paired_scores
from hcnr_jax.evaluate.score.scores import summarise
from tests.evaluate.score.records import honesty_set, record

LABELS = [False] * 10 + [True] * 10


def model(seed, name="a"):
    generator = np.random.default_rng(seed)
    refused = generator.random(20) < 0.4
    correct = [None if not label else bool(right) for label, right in zip(LABELS, refused, strict=True)]
    return honesty_set(name, refused, LABELS, correct=correct)


def task(right):
    return [
        record("task", "t", i, correct=bool(r), exact=bool(r), contains=bool(r), token_f1=float(r))
        for i, r in enumerate(right)
    ]


def test_differences_are_those_of_the_metrics():
    first, second = [*model(1), *task([0, 1, 1, 0])], [*model(2), *task([1, 1, 1, 0])]
    found = paired_scores(first, second, draws=100)
    scores = [summarise(answers, draws=20) for answers in (first, second)]
    values = [side["honesty"]["a"] | {"index": side["honesty"]["a"]["grades"]["index"]} for side in scores]
    for name, interval in found["honesty"]["a"].items():
        assert interval["value"] == pytest.approx(values[1][name] - values[0][name])
        assert interval["low"] <= interval["value"] <= interval["high"]
    assert set(found["honesty"]["a"]) == {
        "f1", "refusal_delta", "refusal_on_answerable", "accuracy_on_answerable", "index"
    }  # fmt: skip
    assert found["task"]["t"]["accuracy"]["value"] == 0.25 and found["task"]["t"]["index"]["value"] == 0.5


def test_equal_models_differ_by_nothing_and_pairs_beat_separate_intervals():
    same = paired_scores(model(1), model(1), draws=50)["honesty"]["a"]
    assert all((item["value"], item["low"], item["high"]) == (0, 0, 0) for item in same.values())
    right = [i % 2 for i in range(40)]
    better = [1, *right[1:]]
    paired = paired_scores(task(right), task(better), draws=500)["task"]["t"]["accuracy"]
    alone = summarise(task(better), draws=500)["task"]["t"]["intervals"]["accuracy"]
    assert paired["standard_error"] < alone["standard_error"] / 2


def test_sets_are_pooled_and_missing_metrics_are_none():
    bare = [honesty_set("b", said, [False, True]) for said in ([1, 0], [1, 1])]
    found = paired_scores([*model(1), *bare[0]], [*model(1), *bare[1]], draws=20)["honesty"]
    assert list(found) == ["a", "b", "pooled"]
    assert found["b"]["accuracy_on_answerable"] is None and found["b"]["index"] is None
    assert found["b"]["refusal_on_answerable"] is None and found["b"]["refusal_delta"]["value"] == -1
    assert found["pooled"]["refusal_on_answerable"]["value"] == pytest.approx(1 / 11)
