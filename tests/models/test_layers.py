"""The parts against plain numpy in float64, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.models import RopeScaling, spec_from_config
from hcnr_jax.models.layers import (
    FULL_WINDOW,
    RMSNorm,
    attend,
    geometry_of,
    positions_of,
    rotary_frequencies,
    rotate,
    visible,
)
from tests.models.helpers import SIZES

SPEC = spec_from_config({"model_type": "llama", **SIZES}, "config.json")


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_against_numpy(dtype):
    x, scale = jnp.asarray(normal(2, 5, 16), dtype), jnp.asarray(normal(16, seed=1), dtype)
    ours = RMSNorm(1e-3, dtype).apply({"params": {"scale": scale}}, x)
    wide_x, wide_scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    expected = wide_x / np.sqrt((wide_x**2).mean(-1, keepdims=True) + 1e-3) * wide_scale
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=2**-8 if dtype == "bfloat16" else 1e-6)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient():
    def norm(x):
        return RMSNorm(1e-6).apply({"params": {"scale": jnp.ones(4)}}, x).sum()

    value, gradient = jax.value_and_grad(norm)(jnp.zeros((1, 4)))
    assert value == 0 and np.isfinite(gradient).all()


def test_grouped_query_attention_against_a_loop_over_heads():
    b, t, k, g, h = 2, 6, 2, 3, 4
    arrays = normal(b, t, k, g, h), normal(b, t, k, h, seed=1), normal(b, t, k, h, seed=2)
    query, key, value = (np.asarray(a, np.float64) for a in arrays)
    mask = np.array([[False, False, True, True, True, True], [True] * 6])
    geometry = geometry_of(SPEC, jnp.asarray(mask), jnp.float32)
    ours = np.asarray(attend(*arrays, visible(geometry, jnp.int32(3))))
    for row in range(b):
        for i in np.flatnonzero(mask[row]):
            keys = [j for j in range(t) if mask[row, j] and i - 3 < j <= i]
            for head in range(k):
                for one in range(g):
                    logits = key[row, keys, head] @ query[row, i, head, one] / 2.0
                    weights = np.exp(logits - logits.max())
                    expected = weights / weights.sum() @ value[row, keys, head]
                    np.testing.assert_allclose(ours[row, i, head, one], expected, atol=1e-6)


def test_a_row_without_any_real_token_gives_no_nan():
    geometry = geometry_of(SPEC, jnp.zeros((1, 3), bool), jnp.float32)
    mixed = attend(normal(1, 3, 1, 1, 4), normal(1, 3, 1, 4), normal(1, 3, 1, 4), visible(geometry, jnp.int32(2)))
    assert np.isfinite(mixed).all()


def test_positions_count_real_tokens():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 2, 3]]


def test_the_full_window_hides_nothing_before_a_token():
    geometry = geometry_of(SPEC, jnp.ones((1, 5), bool), jnp.float32)
    assert np.array_equal(visible(geometry, jnp.int32(FULL_WINDOW))[0], np.tri(5, dtype=bool))
    assert np.array_equal(visible(geometry, jnp.int32(1))[0], np.eye(5, dtype=bool))


def test_a_cache_has_one_position_for_every_token_to_come():
    geometry = geometry_of(SPEC, jnp.array([[False, True, True], [True, True, True]]), jnp.float32, slots=6)
    assert geometry.key_positions.tolist() == [[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert geometry.key_mask.tolist() == [[False] + [True] * 5, [True] * 6]


def test_rotation_keeps_length_and_depends_on_distance_alone():
    x, y = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def turned(vector, position):
        angle = position * rotary_frequencies(SPEC)[None, None, :]
        return np.asarray(rotate(vector, jnp.asarray(np.cos(angle)), jnp.asarray(np.sin(angle)))).ravel()

    assert np.linalg.norm(turned(x, 7)) == pytest.approx(np.linalg.norm(x), rel=1e-6)
    assert turned(x, 9) @ turned(y, 4) == pytest.approx(turned(x, 25) @ turned(y, 20), rel=1e-4)


def test_llama3_frequencies_keep_short_waves_divide_long_ones_and_blend_between():
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    spec = spec_from_config({"model_type": "llama", **SIZES, "head_dim": 64, "rope_theta": 1e4}, "config.json")
    plain, scaled = (rotary_frequencies(s) for s in (spec, type(spec)(**{**spec.__dict__, "rope_scaling": scaling})))
    wavelength, ratio = 2 * np.pi / plain, plain / scaled
    assert np.all(ratio[wavelength < 16] == 1) and np.allclose(ratio[wavelength > 64], 8)
    between = ratio[(wavelength > 16) & (wavelength < 64)]
    assert between.size and np.all((between > 1) & (between < 8)) and np.all(np.diff(between) > 0)


def test_llama3_scaling_without_its_numbers_is_an_error():
    spec = type(SPEC)(**{**SPEC.__dict__, "rope_scaling": RopeScaling("llama3", 8.0)})
    with pytest.raises(ValueError, match="needs all of its numbers"):
        rotary_frequencies(spec)
