"""Bootstrap and McNemar against scipy and hand-computed cases."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score import statistics


def skewed(n: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=n)


@pytest.mark.parametrize(("method", "theirs"), [("percentile", "percentile"), ("bca", "BCa")])
def test_interval_equals_scipy_on_the_same_draws(method: str, theirs: str) -> None:
    values = skewed()
    draws = statistics.mean_of(values)(np.random.default_rng(3).integers(0, len(values), (1500, len(values))))
    mine = statistics.bootstrap(statistics.mean_of(values), len(values), draws=1500, method=method, seed=3)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=0,
        method=theirs,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=draws),
    ).confidence_interval
    assert (mine.low, mine.high) == (pytest.approx(expected.low, abs=1e-10), pytest.approx(expected.high, abs=1e-10))
    assert mine.value == pytest.approx(values.mean())
    assert mine.standard_error == pytest.approx(draws.std(ddof=1))


def test_stratified_bca_equals_scipys_two_sample_bca() -> None:
    first, second = skewed(25, 1), skewed(35, 2) + 0.5
    both, label = np.concatenate([first, second]), np.repeat([0, 1], [25, 35])

    def difference(indices: np.ndarray) -> np.ndarray:
        low = label[indices] == 0
        picked = both[indices]
        return (picked * ~low).sum(axis=1) / (~low).sum(axis=1) - (picked * low).sum(axis=1) / low.sum(axis=1)

    mine = statistics.bootstrap(difference, 60, draws=3000, method="bca", strata=label, seed=5)
    generator = np.random.default_rng(5)
    parts = [part[generator.integers(0, len(part), (3000, len(part)))].mean(axis=1) for part in (first, second)]
    expected = stats.bootstrap(
        (first, second),
        lambda x, y, axis: np.mean(y, axis=axis) - np.mean(x, axis=axis),
        vectorized=True,
        n_resamples=0,
        method="BCa",
        bootstrap_result=SimpleNamespace(bootstrap_distribution=parts[1] - parts[0]),
    ).confidence_interval
    assert (mine.low, mine.high) == (pytest.approx(expected.low, abs=1e-10), pytest.approx(expected.high, abs=1e-10))


def test_statistics_equal_scikit_learn_on_every_draw() -> None:
    generator = np.random.default_rng(0)
    refused, answerable = generator.random(30) < 0.5, generator.random(30) < 0.4
    scores = np.round(generator.random(30), 1)
    indices = generator.integers(0, 30, (40, 30))
    f1 = statistics.f1_of(refused, answerable)(indices)
    delta = statistics.refusal_delta_of(refused, answerable)(indices)
    area = statistics.auroc_of(scores, answerable)(indices)
    for draw, row in enumerate(indices):
        said, known = refused[row], answerable[row]
        assert f1[draw] == pytest.approx(f1_score(~known, said))
        assert delta[draw] == pytest.approx(said[~known].mean() - said[known].mean())
        assert area[draw] == pytest.approx(roc_auc_score(known, scores[row]), abs=1e-12)


def test_per_draw_serves_any_function() -> None:
    values = skewed()
    slow = statistics.bootstrap(statistics.per_draw(lambda row: values[row].mean()), 40, draws=200, seed=1)
    fast = statistics.bootstrap(statistics.mean_of(values), 40, draws=200, seed=1)
    assert slow.low == pytest.approx(fast.low) and slow.high == pytest.approx(fast.high)


def test_seed_decides_the_draws() -> None:
    statistic = statistics.mean_of(skewed())
    same = [statistics.bootstrap(statistic, 40, draws=300, seed=7) for _ in range(2)]
    assert same[0] == same[1]
    assert statistics.bootstrap(statistic, 40, draws=300, seed=8) != same[0]


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = statistics.mean_of(skewed())
    whole = statistics.bootstrap(statistic, 40, draws=300)
    monkeypatch.setattr(statistics, "_CELLS", 97)
    assert statistics.bootstrap(statistic, 40, draws=300) == whole


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_constant_scores_give_an_interval_of_no_width(method: str) -> None:
    found = statistics.bootstrap(statistics.mean_of(np.ones(10)), 10, draws=100, method=method)
    assert (found.value, found.low, found.high, found.standard_error) == (1.0, 1.0, 1.0, 0.0)
    assert found.to_json()["method"] == method


def test_coverage_is_about_the_nominal_one() -> None:
    truth, hits = 1.0, 0
    for seed in range(200):
        found = statistics.bootstrap(statistics.mean_of(skewed(60, seed)), 60, draws=400, confidence=0.9, seed=seed)
        hits += found.low <= truth <= found.high
    assert 0.82 <= hits / 200 <= 0.96


def test_paired_difference_is_narrower_than_unpaired() -> None:
    generator = np.random.default_rng(0)
    first = generator.random(200) < 0.6
    second = first ^ (generator.random(200) < 0.05)
    found = statistics.paired_difference(statistics.mean_of(first), statistics.mean_of(second), 200)
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.low <= found.value <= found.high
    alone = statistics.bootstrap(statistics.mean_of(first), 200)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)
    same = statistics.paired_difference(statistics.mean_of(first), statistics.mean_of(first), 200)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 5), (2, 9), (30, 11), (700, 650)])
def test_mcnemar_equals_the_binomial_test(only_first: int, only_second: int) -> None:
    first = np.repeat([True, False, True, False], [only_first, only_second, 7, 3])
    second = np.repeat([False, True, True, False], [only_first, only_second, 7, 3])
    found = statistics.mcnemar(first, second)
    total = only_first + only_second
    expected = stats.binomtest(only_first, total, 0.5).pvalue if total else 1.0
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    assert statistics.mcnemar(np.array([True] * 5), np.array([False] * 5)).p_value == 2 / 32


def test_bad_input_is_refused() -> None:
    statistic = statistics.mean_of(np.arange(5.0))
    with pytest.raises(InputError, match="2 questions or more, found 1"):
        statistics.bootstrap(statistic, 1)
    with pytest.raises(InputError, match=r"found 1, 0\.95"):
        statistics.bootstrap(statistic, 5, draws=1)
    with pytest.raises(InputError, match=r"found 2000, 1\.0"):
        statistics.bootstrap(statistic, 5, confidence=1.0)
    with pytest.raises(InputError, match="found 3 labels for 5 questions"):
        statistics.bootstrap(statistic, 5, strata=np.array([0, 1, 1]))
    with pytest.raises(InputError, match="BCa needs 2 questions or more in every stratum"):
        statistics.bootstrap(statistic, 5, strata=np.array([0, 1, 1, 1, 1]))
    with pytest.raises(InputError, match="NaN on 1 of 1 resamples"):
        statistics.bootstrap(statistics.mean_of(np.array([1.0, np.nan])), 2)
    delta = statistics.refusal_delta_of(np.array([True, False, True]), np.array([True, False, False]))
    with pytest.raises(InputError, match="resample within classes"):
        statistics.bootstrap(delta, 3)
    with pytest.raises(InputError, match="one side of the estimate"):
        statistics.bca_levels(2.0, np.array([0.0, 1.0]), 0.0, 0.95)
    with pytest.raises(InputError, match="both classes"):
        statistics.auroc_of(np.array([0.1, 0.2]), np.array([True, True]))
    with pytest.raises(InputError, match="found 2 and 1 answers"):
        statistics.mcnemar(np.array([True, False]), np.array([True]))
