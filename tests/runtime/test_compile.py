"""The persistent compilation cache: filled, limited, and without effect on the settings afterwards."""

import jax
import jax.numpy as jnp
import pytest

from hcnr_jax.runtime.compile import AUTO, MAX_BYTES, compilation_cache, default_cache_folder


def compile_something(constant):
    jax.jit(lambda x: jnp.linalg.eigh(x @ x.T + constant)[1])(jnp.ones((7, 7))).block_until_ready()


@pytest.fixture
def no_cache():
    """Leave the cache of the test suite for a while."""
    with compilation_cache(None):
        yield


def test_the_cache_is_filled_and_the_settings_come_back(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with compilation_cache(tmp_path / "programs"):
        jax.jit(lambda x: jnp.sin(x) * 1.2345)(jnp.ones(7)).block_until_ready()
    assert list((tmp_path / "programs").iterdir())
    assert jax.config.jax_compilation_cache_dir == before


def test_without_a_cache_nothing_is_kept():
    before = jax.config.jax_compilation_cache_dir
    with compilation_cache(None):
        assert jax.config.jax_compilation_cache_dir is None
        compile_something(0.321)
    assert jax.config.jax_compilation_cache_dir == before


def test_a_cache_that_jax_is_set_to_stays(tmp_path):
    with compilation_cache(tmp_path), compilation_cache(AUTO):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_the_default_cache_lies_in_the_users_cache_and_is_limited(tmp_path, monkeypatch, no_cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with compilation_cache(AUTO):
        assert jax.config.jax_compilation_cache_max_size == MAX_BYTES
        compile_something(0.654)
    folder = default_cache_folder()
    assert folder.is_relative_to(tmp_path / "hcnr_jax" / "programs")
    assert list(folder.glob("*-cache"))
    assert jax.config.jax_compilation_cache_dir is None


def test_without_a_cache_folder_that_can_be_written_nothing_is_kept(monkeypatch, no_cache):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with compilation_cache(AUTO):
        assert jax.config.jax_compilation_cache_dir is None
