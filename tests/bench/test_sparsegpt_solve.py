"""The SparseGPT-style solve against the dense oracle, and against the recurrence written out in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.bench.sparsegpt_solve import inverse_factor, sequential
from hcnr_jax.method.compensate import Pair
from tests.method import oracle

FAN_IN, FAN_OUT, DAMPING = 11, 5, 0.01


def problem(seed: int = 0):
    """base, tuned (in, out) and correlated second moments (in, in), float32."""
    rng = np.random.default_rng(seed)
    base, tuned = rng.standard_normal((2, FAN_IN, FAN_OUT)).astype(np.float32)
    x = rng.standard_normal((40, 4)) @ rng.standard_normal((4, FAN_IN)) + 0.3 * rng.standard_normal((40, FAN_IN))
    return base, tuned, oracle.moment(x).astype(np.float32)


def solve(base, tuned, second, mask, lazy):
    pair = Pair(jnp.asarray(base), jnp.asarray(tuned), np.flatnonzero(mask), np.flatnonzero(~mask))
    return np.asarray(sequential(pair, jnp.asarray(second), DAMPING, lazy=lazy))


def one_by_one(base, tuned, second, mask):
    """Each step from its definition: the best change of all later columns that makes E_k = D_k."""
    matrix, change = oracle.damped(oracle.f64(second), DAMPING), np.zeros((FAN_IN, FAN_OUT))
    for k in np.flatnonzero(~mask):
        inverse = np.linalg.inv(matrix[k:, k:])
        change[k:] += np.outer(inverse[:, 0] / inverse[0, 0], tuned[k] - base[k] - change[k])
    return base + change


@pytest.mark.parametrize("lazy", [1, 4, 128])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_recurrence_whatever_the_block(seed, lazy) -> None:
    base, tuned, second = problem(seed)
    mask = np.random.default_rng(seed).permutation(FAN_IN) < FAN_IN // 2
    found = solve(base, tuned, second, mask, lazy)
    np.testing.assert_allclose(found, one_by_one(base, tuned, second, mask), atol=2e-4)
    np.testing.assert_allclose(found[~mask], tuned[~mask], atol=1e-5)


@pytest.mark.parametrize("method", ["paper", "exact"])
def test_one_task_neuron_that_comes_first_is_the_joint_solution(method) -> None:
    base, tuned, second = problem()
    mask = np.arange(FAN_IN) > 0
    expected = oracle.compensate(base.T, tuned.T, mask, oracle.f64(second), method, DAMPING).T
    np.testing.assert_allclose(solve(base, tuned, second, mask, 4), expected, atol=2e-4)


def test_the_ends() -> None:
    base, tuned, second = problem()
    np.testing.assert_allclose(solve(base, tuned, second, np.zeros(FAN_IN, bool), 4), tuned, atol=1e-5)
    np.testing.assert_array_equal(solve(base, tuned, second, np.ones(FAN_IN, bool), 4), base)


def test_it_never_beats_the_joint_minimiser() -> None:
    base, tuned, second = problem()
    mask = np.arange(FAN_IN) % 2 == 0
    matrix = oracle.damped(oracle.f64(second), DAMPING)
    best = oracle.compensate(base.T, tuned.T, mask, oracle.f64(second), "exact", DAMPING) - base.T
    found = solve(base, tuned, second, mask, 4).T - base.T
    assert oracle.distance(found, matrix) > oracle.distance(best, matrix)


def test_the_factor_is_that_of_the_inverse() -> None:
    matrix = oracle.damped(oracle.f64(problem()[2]), DAMPING).astype(np.float32)
    upper = np.asarray(inverse_factor(jnp.asarray(matrix)))
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(upper.T @ upper @ matrix, np.eye(FAN_IN), atol=2e-3)
