"""Contenders: what is timed, how often, and what a compiled program says of itself."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.bench import timing
from hcnr_jax.bench.timing import compile_program, free_bytes, race


def test_each_contender_is_called_once_more_than_timed_and_in_turns() -> None:
    called = []
    found = race({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=3)
    assert called == ["a", "b", *"ab", *"ba", *"ab"]
    assert found["a"].count == found["b"].count == 3


def test_the_median_counts_and_not_the_outlier() -> None:
    naps = iter([0.0, 0.002, 0.002, 0.1, 0.002, 0.002])
    found = race({"sleeper": lambda: time.sleep(next(naps))}, repeats=5)["sleeper"]
    assert 0.002 <= found.low <= found.median < 0.05 and found.high >= 0.1


def test_a_slow_race_ends_after_a_round() -> None:
    found = race({"slow": lambda: time.sleep(0.01)}, repeats=1000, budget=0.05)["slow"]
    assert 1 <= found.count < 20


def test_a_program_knows_its_flops_and_memory() -> None:
    left, right = jnp.ones((64, 32)), jnp.ones((32, 48))
    program = compile_program(lambda a, b: a @ b, left, right)
    np.testing.assert_array_equal(np.asarray(program.call()), np.full((64, 48), 32.0))
    assert program.flops == pytest.approx(2 * 64 * 32 * 48, rel=0.05)
    assert 64 * 48 * 4 <= program.peak_bytes < 10 * 64 * 48 * 4
    assert program.compile_seconds > 0 and program.fits


def test_calls_of_one_shape_share_a_program() -> None:
    traced = []

    def double(x):
        traced.append(x.shape)
        return 2 * x

    calls = {"a": (jnp.ones(3),), "b": (2 * jnp.ones(3),), "c": (jnp.ones(4),)}
    found = timing.compile_each(double, calls).call()
    assert traced == [(3,), (4,)]
    assert [float(found[name][0]) for name in calls] == [2.0, 4.0, 2.0] and found["c"].shape == (4,)


def test_a_program_too_large_does_not_fit(monkeypatch) -> None:
    program = compile_program(lambda a: a + 1, jnp.ones(1000))
    monkeypatch.setattr(timing, "free_bytes", lambda: 7000)
    assert not program.fits
    monkeypatch.setattr(timing, "free_bytes", lambda: 9000)
    assert program.fits


def test_memory_is_there() -> None:
    assert free_bytes() > 1e6
