"""Streamed sums: any split is one batch, padding does not count, the division comes last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.method.sums import init_sums, mean_sums, update_sums

VALUES = {
    "a": np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32),
    "b": {"c": np.random.default_rng(1).normal(size=(12,)).astype(np.float32) + 5},
}
WEIGHTS = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1], np.float32)
KEPT = WEIGHTS > 0


def _empty():
    return init_sums(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), VALUES))


def _part(start, stop):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[start:stop]), VALUES), jnp.asarray(WEIGHTS[start:stop])


def _stream(cuts):
    sums = _empty()
    for start, stop in cuts:
        sums = update_sums(sums, *_part(start, stop))
    return sums


def _close(left, right, tolerance=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), left, right)


def test_the_mean_is_numpys():
    sums = _stream([(0, 12)])
    assert float(sums.weight) == 10
    _close(mean_sums(sums), jax.tree.map(lambda leaf: leaf[KEPT].mean(0), VALUES))


@pytest.mark.parametrize("cuts", [[(0, 1), (1, 12)], [(0, 5), (5, 6), (6, 12)], [(6, 12), (0, 6)]])
def test_any_split_in_any_order_is_one_batch(cuts):
    """A mean of the parts' means would differ: they have different sizes."""
    _close(_stream(cuts), _stream([(0, 12)]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_of_weight_zero_does_not_count_whatever_it_holds(bad):
    spoilt = jax.tree.map(lambda leaf: np.where(KEPT.reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf, bad), VALUES)
    sums = update_sums(_empty(), jax.tree.map(jnp.asarray, spoilt), jnp.asarray(WEIGHTS))
    _close(sums, _stream([(0, 12)]), 0)


def test_a_row_of_weight_two_counts_twice():
    weights = jnp.asarray([2.0, 1.0, 0.5])
    sums = update_sums(init_sums(jnp.zeros(())), jnp.asarray([1.0, 4.0, 8.0]), weights)
    np.testing.assert_allclose(float(mean_sums(sums)), (2 * 1 + 4 + 0.5 * 8) / 3.5, rtol=1e-6)


def test_no_row_has_no_mean():
    assert np.isnan(float(mean_sums(init_sums(jnp.zeros(())))))


def test_under_jit_in_a_scan_and_over_eight_devices():
    whole = _stream([(0, 12)])
    _close(jax.jit(update_sums)(_empty(), *_part(0, 12)), whole)

    def step(sums, row):
        values, weight = row
        return update_sums(sums, jax.tree.map(lambda leaf: leaf[None], values), weight[None]), None

    _close(jax.jit(lambda: jax.lax.scan(step, _empty(), _part(0, 12))[0])(), whole)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    _close(jax.jit(update_sums)(_empty(), *jax.device_put(_part(0, 12), rows)), whole)


def test_float64_is_kept():
    with jax.enable_x64(True):
        sums = update_sums(init_sums(jnp.zeros((), jnp.float64)), jnp.asarray([1e-30, 1.0]), jnp.ones(2))
        assert sums.total.dtype == sums.weight.dtype == jnp.float64
