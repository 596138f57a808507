"""Programs lowered ahead: the same values, traced and compiled once."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.method.program import Program, lowering


def test_a_lowered_program_is_the_one_that_runs():
    traces = []

    def scaled(factor, x, tree):
        traces.append(x.shape)
        return factor * x + tree["y"]

    run, y = Program(scaled, static_argnums=(0,), donate_argnums=(1,)), {"y": np.ones(3, np.float32)}
    found, row = [], jax.ShapeDtypeStruct((3,), np.float32)
    with ThreadPoolExecutor(1) as pool, lowering(lambda one: found.append(pool.submit(one.compile)) or found[-1]):
        assert run(2.0, row, y) == row
        assert run(2.0, row, y) == row
    assert traces == [(3,)]
    assert len(found) == 1
    np.testing.assert_array_equal(run(2.0, jnp.arange(3.0), y), [1, 3, 5])
    assert traces == [(3,)], "nothing is traced again"
    np.testing.assert_array_equal(run(3.0, jnp.arange(3.0), y), [1, 4, 7])
    np.testing.assert_array_equal(run(2.0, jnp.arange(2.0), {"y": np.ones(2, np.float32)}), [1, 3])
    assert len(traces) == 3, "other values and shapes are programs of their own"


def test_a_call_waits_for_its_program_alone():
    class Waiting:
        count = 0

        def result(self):
            self.count += 1

    waiting, run = Waiting(), Program(lambda x, count: x * count)
    with lowering(lambda one: waiting):
        run(jax.ShapeDtypeStruct((2,), np.float32), 3)
    run(jnp.ones(3), 3)
    assert waiting.count == 0
    for factor in (3, 5):
        np.testing.assert_array_equal(run(jnp.ones(2), factor), factor * np.ones(2))
    assert waiting.count == 1


def test_numbers_do_not_decide_the_program():
    lowered, run = [], Program(lambda x, index: x[index])
    with lowering(lowered.append):
        for index in range(3):
            run(jax.ShapeDtypeStruct((4,), np.float32), index)
    assert len(lowered) == 1
