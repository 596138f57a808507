"""Streamed sums: any split is one batch, padding does not count, the division comes last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.method import sums as streaming

VALUES = {
    "a": np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32),
    "b": {"c": np.random.default_rng(1).normal(size=(12,)).astype(np.float32) + 5},
}
WEIGHTS = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1], np.float32)
KEPT = WEIGHTS > 0


def _empty():
    return streaming.init(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), VALUES))


def _part(start, stop):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[start:stop]), VALUES), jnp.asarray(WEIGHTS[start:stop])


def _stream(cuts):
    sums = _empty()
    for start, stop in cuts:
        sums = streaming.update(sums, *_part(start, stop))
    return sums


def _close(left, right, tolerance=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), left, right)


def test_mean_and_standard_error_are_numpys():
    sums = _stream([(0, 12)])
    assert float(sums.weight) == 10
    _close(streaming.mean(sums), jax.tree.map(lambda leaf: leaf[KEPT].mean(0), VALUES))
    expected = jax.tree.map(lambda leaf: leaf[KEPT].astype(np.float64).std(0, ddof=1) / np.sqrt(10), VALUES)
    _close(streaming.standard_error(sums), expected, 1e-5)


@pytest.mark.parametrize("cuts", [[(0, 1), (1, 12)], [(0, 5), (5, 6), (6, 12)], [(6, 12), (0, 6)]])
def test_any_split_in_any_order_is_one_batch(cuts):
    """A mean of the parts' means would differ: they have different sizes."""
    _close(_stream(cuts), _stream([(0, 12)]))


def test_merge_is_the_concatenation_and_commutes():
    left, right = _stream([(0, 5)]), _stream([(5, 12)])
    _close(streaming.merge(left, right), _stream([(0, 12)]))
    _close(streaming.merge(left, right), streaming.merge(right, left), 0)
    _close(streaming.merge(_empty(), left), left, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_of_weight_zero_does_not_count_whatever_it_holds(bad):
    spoilt = jax.tree.map(lambda leaf: np.where(KEPT.reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf, bad), VALUES)
    sums = streaming.update(_empty(), jax.tree.map(jnp.asarray, spoilt), jnp.asarray(WEIGHTS))
    _close(sums, _stream([(0, 12)]), 0)


def test_a_row_of_weight_two_counts_twice():
    weights = jnp.asarray([2.0, 1.0, 0.5])
    sums = streaming.update(streaming.init(jnp.zeros(())), jnp.asarray([1.0, 4.0, 8.0]), weights)
    np.testing.assert_allclose(float(streaming.mean(sums)), (2 * 1 + 4 + 0.5 * 8) / 3.5, rtol=1e-6)


def test_one_row_has_no_spread_and_no_row_no_mean():
    sums = streaming.update(streaming.init(jnp.zeros(())), jnp.asarray([3.0]), jnp.ones(1))
    assert float(streaming.standard_error(sums)) == 0
    assert np.isnan(float(streaming.mean(streaming.init(jnp.zeros(())))))


def test_under_jit_in_a_scan_and_over_eight_devices():
    whole = _stream([(0, 12)])
    _close(jax.jit(streaming.update)(_empty(), *_part(0, 12)), whole)

    def step(sums, row):
        values, weight = row
        return streaming.update(sums, jax.tree.map(lambda leaf: leaf[None], values), weight[None]), None

    _close(jax.jit(lambda: jax.lax.scan(step, _empty(), _part(0, 12))[0])(), whole)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    _close(jax.jit(streaming.update)(_empty(), *jax.device_put(_part(0, 12), rows)), whole)


def test_float64_is_kept():
    with jax.enable_x64(True):
        sums = streaming.update(streaming.init(jnp.zeros((), jnp.float64)), jnp.asarray([1e-30, 1.0]), jnp.ones(2))
        assert sums.total.dtype == sums.weight.dtype == jnp.float64
