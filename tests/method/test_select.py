"""Priorities, exact counts, kernel perturbations and the kept kernels, against the oracle and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.method import priority, select
from hcnr_jax.method.neurons import Kernel
from tests.method import oracle

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def draw(*shape, scale=1.0):
    return (scale * RNG.lognormal(0, 3, shape)).astype(np.float32)


def leaves(array):
    return {"a/kernel": jnp.asarray(array)}


def ranked(kind, honesty, task, key=KEY, axes=1):
    return np.asarray(priority.priorities(kind, leaves(honesty), leaves(task), key=key, neuron_axes=axes)["a/kernel"])


@pytest.mark.parametrize("kind", ["kl", "raw", "honesty"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-9, 1e-3), (1e-30, 1e-33), (1e12, 1e-12)])
def test_priorities_are_the_oracles_at_any_scale(kind, scales):
    honesty, task = draw(2, 40, scale=scales[0]), draw(2, 40, scale=scales[1])
    found = ranked(kind, honesty, task)
    for block in range(2):
        expected = oracle.priority(honesty[block], task[block], kind)
        size = np.abs(expected).max()
        np.testing.assert_allclose(found[block] / size, expected / size, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            np.asarray(select.top_mask(jnp.asarray(found[block]), 20)), oracle.top(expected, 0.5)
        )


def test_kl_sums_to_the_divergence_and_forgets_the_scales():
    honesty, task = draw(1, 30), draw(1, 30)
    p, q = honesty / honesty.sum(), task / task.sum()
    found = ranked("kl", honesty, task)
    np.testing.assert_allclose(found.sum(), (p * np.log(p / q)).sum(), rtol=1e-4)
    np.testing.assert_allclose(ranked("kl", honesty * 1e-6, task * 1e6), found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["kl", "raw", "honesty"])
@pytest.mark.parametrize(
    ("honesty", "task"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [1, 2, 3, 4]),
        ([1, 2, 3, 4], [0, 0, 0, 0]),
        ([1, 0, 3, 0], [0, 0, 3, 4]),
        ([1e-40, 1e-41, 0, 1e-42], [1e-40, 1e-44, 1e-45, 0]),
        ([1e38, 1e-38, 1, 0], [1e-38, 1e38, 1, 0]),
    ],
)
def test_zero_denormal_and_huge_scores_never_give_nan_or_inf(kind, honesty, task):
    for transform in (lambda f: f, jax.jit):
        run = transform(lambda h, t: priority.priorities(kind, leaves(h), leaves(t), key=KEY)["a/kernel"])
        found = run(jnp.asarray([honesty], jnp.float32), jnp.asarray([task], jnp.float32))
        assert np.all(np.isfinite(found)), found
        assert int(select.top_mask(found[0], 2).sum()) == 2


@pytest.mark.parametrize("kind", ["kl", "raw"])
def test_zero_scores_rank_as_they_should(kind):
    """Both 0: priority 0. No honesty score: 0. No task score: above everything alike but for its task score."""
    found = ranked(kind, np.float32([[2, 2, 0, 0, 2]]), np.float32([[0, 1, 1, 0, 9]]))[0]
    assert found[0] > found[1] > found[4]
    assert abs(found[2]) < 1e-9 and abs(found[3]) < 1e-9
    assert np.all(ranked(kind, np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)) == 0)


@pytest.mark.parametrize("kind", ["kl", "raw"])
def test_a_kernel_without_any_task_score_is_ranked_by_its_honesty_scores(kind):
    honesty = draw(1, 20)
    found = ranked(kind, honesty, np.zeros((1, 20), np.float32))[0]
    np.testing.assert_array_equal(np.argsort(found), np.argsort(honesty[0]))


@pytest.mark.parametrize("kind", ["kl", "raw", "honesty"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_score_is_never_selected_and_spoils_no_other(kind, bad):
    honesty, task = draw(1, 20), draw(1, 20)
    spoilt = honesty.copy()
    spoilt[0, 0] = np.nan
    mask = np.asarray(select.top_mask(jnp.asarray(ranked(kind, spoilt, task)[0]), 10))
    assert not mask[0] and mask.sum() == 10
    kept = oracle.top(oracle.priority(honesty[0, 1:], task[0, 1:], kind), 10 / 19)
    np.testing.assert_array_equal(mask[1:], kept)
    task[0, 1] = bad
    mask = np.asarray(select.top_mask(jnp.asarray(ranked(kind, spoilt, task)[0]), 10))
    assert not mask[0] and mask.sum() == 10


def test_random_is_reproducible_differs_between_kernels_and_ignores_scores():
    scores = {name: jnp.asarray(draw(3, 50)) for name in ("b/kernel", "a/kernel")}
    first = priority.priorities("random", scores, scores, key=jax.random.key(1))
    again = priority.priorities("random", dict(reversed(scores.items())), scores, key=jax.random.key(1))
    other = priority.priorities("random", scores, scores, key=jax.random.key(2))
    for name in scores:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])
    flat = np.concatenate([np.asarray(first[name]).reshape(-1) for name in scores])
    assert len(np.unique(flat)) == flat.size
    assert abs(flat.mean() - 0.5) < 0.1


@pytest.mark.parametrize(
    ("ratio", "total", "count"),
    [(0.5, 4, 2), (0.5, 5, 2), (0.5, 7, 4), (0.25, 10, 2), (0.35, 10, 4), (1.0, 3, 3), (0.4, 7 * 32, 90), (0.9, 1, 1)],
)
def test_counts_are_exact_and_half_to_even(ratio, total, count):
    assert select.exact_count(ratio, total) == count == oracle.half_even(ratio * total)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_a_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(InputError, match=r"expected a fraction in \(0, 1\]"):
        select.exact_count(ratio, 10)


def test_a_count_of_zero_is_refused():
    with pytest.raises(InputError, match=r"ratio 0\.01 of 10 rounds to 0: nothing would be selected"):
        select.exact_count(0.01, 10)


@pytest.mark.parametrize("count", [1, 3, 5, 6])
def test_ties_go_to_the_lower_index(count):
    values = jnp.asarray([1.0, 2.0, 2.0, 1.0, 2.0, 1.0])
    expected = [1, 2, 4, 0, 3, 5][:count]
    assert np.flatnonzero(jax.jit(select.top_mask, static_argnums=1)(values, count)).tolist() == sorted(expected)


def test_minus_zero_ties_with_zero_and_nan_comes_last():
    assert np.flatnonzero(select.top_mask(jnp.asarray([-0.0, 0.0, -0.0]), 1)).tolist() == [0]
    mask = select.top_mask(jnp.asarray([jnp.nan, -jnp.inf, 1.0, jnp.nan, -1.0]), 3)
    assert np.flatnonzero(mask).tolist() == [1, 2, 4]


@pytest.mark.parametrize(("granularity", "shape"), [("input", (2, 7)), ("output", (2, 5)), ("weight", (2, 7, 5))])
def test_candidates_are_counted_in_every_kernel(granularity, shape):
    kernel = {"a/kernel": jnp.zeros((2, 7, 5))}
    values = RNG.normal(size=shape).astype(np.float32)
    masks = select.in_weight_mask(leaves(values), kernel, 0.5, granularity=granularity)
    for block in range(2):
        np.testing.assert_array_equal(masks["a/kernel"][block], oracle.top(values[block], 0.5))
    axes = 2 if granularity == "weight" else 1
    honesty, task = draw(*shape), draw(*shape)
    found = ranked("kl", honesty, task, axes=axes)
    np.testing.assert_allclose(found[1], oracle.priority(honesty[1], task[1], "kl"), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("granularity", "shape"), [("input", (2, 7)), ("output", (2, 5)), ("weight", (2, 7, 5))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_perturbations_are_the_oracles(granularity, shape, dtype):
    base, tuned = (jnp.asarray(RNG.normal(size=(2, 7, 5)), dtype) for _ in range(2))
    mask = RNG.random(shape) < 0.5
    found = select.perturbation(base, tuned, jnp.asarray(mask), granularity=granularity)
    for block in range(2):
        wide = {"input": mask[block][..., None], "output": mask[block][None], "weight": mask[block]}[granularity]
        expected = oracle.perturbation(oracle.f64(base[block]), oracle.f64(tuned[block]), wide)
        np.testing.assert_allclose(float(found[block]), expected, rtol=1e-6)


def test_zero_over_zero_is_zero_and_nan_outside_the_mask_does_not_matter():
    base = jnp.zeros((2, 4, 3)).at[1, 3].set(jnp.nan)
    tuned = base.at[1, 0].set(1.0)
    mask = jnp.asarray([[True, True, False, False]] * 2)
    found = np.asarray(select.perturbation(base, tuned, mask, granularity="input"))
    assert found[0] == 0 and np.isposinf(found[1])


def test_x_over_zero_and_nan_are_refused_by_name():
    kernels = {"a/kernel": jnp.zeros((2, 4, 3))}
    with pytest.raises(InputError, match=r"kernel a/kernel\[1\]: the selected neurons are all zero in BASE .* x/0"):
        select.rank_kernels({"a/kernel": jnp.asarray([1.0, jnp.inf])}, kernels)
    with pytest.raises(InputError, match=r"kernel layer one: the perturbation is NaN"):
        names = {Kernel("a/kernel", (1,)): "layer one"}
        select.rank_kernels({"a/kernel": jnp.asarray([1.0, jnp.nan])}, kernels, names)


@pytest.mark.parametrize("ratio", [0.4, 0.5, 1.0])
def test_kept_kernels_are_the_oracles(ratio):
    names = ["b/kernel", "a/kernel"]
    kernels = {name: jnp.zeros((3, 4, 2)) for name in names}
    masks = {name: jnp.asarray(RNG.random((3, 4)) < 0.5) for name in names}
    values = {name: np.round(RNG.random(3), 1) for name in names}
    d = {(block, name): values[name][block] for name in names for block in range(3)}
    found, kept = select.cross_weight_mask(masks, leavesof(values), kernels, ratio=ratio)
    expected = oracle.keep(d, ratio, names)
    assert [(k.index[0], k.path) for k in kept] == sorted(expected, key=lambda key: (key[0], names.index(key[1])))
    for block, name in d:
        want = np.asarray(masks[name][block]) if (block, name) in expected else np.zeros(4, bool)
        np.testing.assert_array_equal(found[name][block], want)


def leavesof(values):
    return {name: jnp.asarray(value) for name, value in values.items()}


def test_ties_between_kernels_go_by_block_and_then_by_name():
    names = ["q/kernel", "k/kernel"]
    kernels = {name: jnp.zeros((2, 4, 2)) for name in names}
    masks = {name: jnp.ones((2, 4), bool) for name in names}
    tied = {name: jnp.ones(2) for name in names}
    _, kept = select.cross_weight_mask(masks, tied, kernels, ratio=0.75)
    assert kept == [Kernel("q/kernel", (0,)), Kernel("k/kernel", (0,)), Kernel("q/kernel", (1,))]
    _, kept = select.cross_weight_mask(masks, tied, kernels, ratio=0.4)
    assert kept == [Kernel("q/kernel", (0,)), Kernel("k/kernel", (0,))]


def test_masks_of_single_weights_and_of_unstacked_kernels():
    kernels = {"x/kernel": jnp.zeros((4, 2)), "y/kernel": jnp.zeros((3, 2))}
    masks = {name: jnp.ones(leaf.shape, bool) for name, leaf in kernels.items()}
    found, kept = select.cross_weight_mask(
        masks, {"x/kernel": jnp.asarray(1.0), "y/kernel": jnp.asarray(2.0)}, kernels, ratio=0.5
    )
    assert kept == [Kernel("y/kernel", ())]
    assert not found["x/kernel"].any() and found["y/kernel"].all()
