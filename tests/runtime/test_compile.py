"""Programs compiled ahead: the same values, compiled once, and jit for everything else."""

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.runtime.compile import PrecompiledFunction, compilation_cache


def test_a_prepared_program_is_the_one_that_runs():
    traces = []

    def scaled(factor, x, tree):
        traces.append(x.shape)
        return factor * x + tree["y"]

    ahead = PrecompiledFunction(scaled, static=(0,), donate=(1,))
    y = {"y": np.ones(3, np.float32)}
    ahead.prepare(2.0, jax.ShapeDtypeStruct((3,), np.float32), y)
    ahead.prepare(2.0, jax.ShapeDtypeStruct((3,), np.float32), y)
    assert traces == [(3,)]
    np.testing.assert_array_equal(ahead(2.0, jnp.arange(3.0), y), [1, 3, 5])
    assert traces == [(3,)], "nothing is traced again"
    np.testing.assert_array_equal(ahead(3.0, jnp.arange(3.0), y), [1, 4, 7])
    np.testing.assert_array_equal(ahead(2.0, jnp.arange(2.0), {"y": np.ones(2, np.float32)}), [1, 3])
    assert len(traces) == 3, "other values and shapes go through jit"


def test_the_cache_is_filled_and_the_settings_come_back(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with compilation_cache(tmp_path / "programs"):
        jax.jit(lambda x: jnp.sin(x) * 1.2345)(jnp.ones(7)).block_until_ready()
    assert list((tmp_path / "programs").iterdir())
    assert jax.config.jax_compilation_cache_dir == before
    with compilation_cache(None):
        assert jax.config.jax_compilation_cache_dir == before
