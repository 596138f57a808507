"""What is said of a cut: by hand, and against scores that were really moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.method import priority, select
from hcnr_jax.method.tie_margin import DRAWS, cut_of, kernel_cut, relative_rounding

ROUNDING = 1e-3


def scores(seed, count=400):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.lognormal(0, 1, count), jnp.float32) for _ in range(2))


def ranked(name, honesty, task):
    return np.asarray(priority.PRIORITIES[name].rank(honesty, task, jax.random.key(0), 1), np.float64)


def test_by_hand():
    honesty = jnp.asarray([8.0, 4.0, 3.9999, 1.0])
    cut = cut_of("honesty", honesty, honesty, 2, 1e-5)
    assert float(cut.gap) == pytest.approx(1e-4, rel=1e-2)
    assert float(cut.rounding) == pytest.approx(DRAWS * 1e-5 * 8, rel=1e-1)
    assert np.asarray(cut.near).tolist() == [False, True, True, False]
    assert np.asarray(cut_of("honesty", honesty, honesty, 2, 1e-6).near).tolist() == [False] * 4
    assert np.asarray(cut_of("honesty", honesty, honesty, 1, 1e-5).near).tolist() == [False] * 4


@pytest.mark.parametrize("name", ["kl", "raw", "honesty"])
def test_only_near_ties_change_places_when_scores_move_within_rounding(name):
    moved = 0
    for seed in range(20):
        honesty, task = scores(seed)
        cut = cut_of(name, honesty, task, 200, ROUNDING)
        rng = np.random.default_rng(100 + seed)
        before = np.asarray(select.top_mask(jnp.asarray(ranked(name, honesty, task)), 200))
        for _ in range(10):
            other = [
                x * (1 + ROUNDING * rng.normal(size=x.shape).clip(-3, 3).astype(np.float32)) for x in (honesty, task)
            ]
            after = np.asarray(select.top_mask(jnp.asarray(ranked(name, *other)), 200))
            assert not np.any((before != after) & ~np.asarray(cut.near))
            moved += int(np.sum(before != after))
        assert (float(cut.gap) > float(cut.rounding)) == (not np.any(np.asarray(cut.near)))
    assert moved > 0, "the scores were moved too little to test anything"


def test_equal_neurons_at_the_cut_are_ties_and_a_whole_kernel_has_no_cut():
    dead = jnp.asarray([0.0, 2.0, 0.0, 0.0])
    cut = cut_of("honesty", dead, dead, 2, 1e-5)
    assert float(cut.gap) == 0 and np.asarray(cut.near).tolist() == [True, False, True, True]
    whole = cut_of("kl", *scores(0, 7), 7, 1e-3)
    assert np.isinf(float(whole.gap)) and not np.any(np.asarray(whole.near))


def test_relative_rounding_is_a_root_mean_square_with_a_floor():
    first = np.asarray([[1.0, 2.0, 0.0, 4.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    second = np.asarray([[1.001, 2.002, 0.0, 4.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    found = relative_rounding(first, second)
    assert found[0] == pytest.approx(np.sqrt(2e-6 / 4), rel=1e-3)
    assert found[1] == np.finfo(np.float32).eps / 2


def test_kernels():
    cut = kernel_cut([4.0, 2.0, 2.0, 1.0], [1 << 20] * 4, 2)
    assert cut.gap == 0 and cut.rounding > 0 and cut.near == [1, 2]
    cut = kernel_cut([4.0, 2.0, 1.0], [64] * 3, 2)
    assert cut.gap == 0.5 and cut.near == []
    assert cut.rounding == pytest.approx(1.5 * 8 * 2**-24, rel=1e-6)
    assert kernel_cut([1.0, 0.5], [4, 4], 2).gap == float("inf")
