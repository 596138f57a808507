"""Every solver against numpy in float64, at the edges where factorisations break, under jit and vmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.method import solve
from hcnr_jax.method.solve import Outcome
from tests.method import oracle

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    """Seed anew for each test, so that a test does not depend on those before it."""
    global RNG
    RNG = np.random.default_rng(0)


dense, dual = jax.jit(solve.cholesky_solve), jax.jit(solve.dual_solve)


@partial(jax.jit, static_argnums=(2, 3))
def iterate(matrix, rhs, tolerance=1e-6, max_steps=500):
    """Conjugate gradients on a matrix that happens to be known."""
    return solve.conjugate_gradients(
        lambda e: jnp.matmul(matrix, e), rhs, jnp.diagonal(matrix), tolerance=tolerance, max_steps=max_steps
    )


def single(x):
    return jnp.asarray(x, jnp.float32)


def inputs(tokens, fan_in, outliers=0, seed=0):
    """Correlated inputs (tokens, in), `outliers` of the channels 1e4 times the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, fan_in)) @ (np.eye(fan_in) + 0.3 * rng.normal(size=(fan_in, fan_in)))
    x[:, :outliers] *= 1e4
    return x.astype(np.float32).astype(np.float64)


def relative_error(found, expected):
    return np.linalg.norm(oracle.f64(found) - expected) / np.linalg.norm(expected)


def ridge(y, q, p, damping=0.01):
    """(matrix, ridge, rhs, solution) in float64 of the regression of q on y, pulled to p."""
    ridge = damping * np.trace(y.T @ y) / y.shape[1]
    matrix = y.T @ y + ridge * np.eye(y.shape[1])
    rhs = y.T @ q + ridge * p
    return matrix, ridge, rhs, np.linalg.solve(matrix, rhs)


@pytest.mark.parametrize("outliers", [0, 2])
@pytest.mark.parametrize(("tokens", "fan_in"), [(60, 20), (12, 20), (1, 20), (5, 1)])
def test_dense_dual_and_conjugate_gradients_are_numpys(tokens, fan_in, outliers):
    y = inputs(tokens, fan_in, min(outliers, fan_in - 1))
    y /= np.sqrt((y**2).mean())
    q, p = RNG.normal(size=(tokens, 6)), 0.1 * RNG.normal(size=(fan_in, 6))
    matrix, ridged, rhs, expected = ridge(y, q, p)
    y32, error = single(y), single(q) - jnp.matmul(single(y), single(p))
    steps, iterated = solve.conjugate_gradients(
        lambda e: jnp.matmul(y32.T, jnp.matmul(y32, e)) + single(ridged) * e,
        jnp.matmul(y32.T, error),
        jnp.diagonal(single(matrix)),
        tolerance=1e-7,
        max_steps=500,
    )
    found = {
        "dense": dense(single(matrix), single(rhs)),
        "dual": dual(single(y), single(ridged), single(q), single(p)),
        "cg": (steps + single(p), iterated),
    }
    for name, (solution, info) in found.items():
        assert int(info.outcome) == Outcome.OK, name
        assert relative_error(solution, expected) < 1e-4, name
        # The dual is meant for fewer tokens than rows. Beyond, some eigenvalues of its Gram matrix are the damping
        # alone, and the residual is 8e-5 to 2e-4, depending on the draw and on the machine's order of summation.
        beyond = name == "dual" and tokens > fan_in
        assert float(info.residual) < (solve.RESIDUAL_LIMIT if beyond else 1e-4)
    assert int(found["dense"][1].steps) == int(found["dual"][1].steps) == 0
    assert int(found["cg"][1].steps) >= 1 and np.isnan(float(found["cg"][1].condition))
    d = np.sqrt(np.diag(matrix))
    true = np.linalg.cond(matrix / np.outer(d, d))
    assert 1 <= float(found["dense"][1].condition) <= true * 1.001


def test_channels_ten_thousand_times_the_others_do_not_spoil_the_small_ones():
    """Scaling to unit diagonal: the small channels' rows are as exact as without outliers, with next to no damping."""
    y = inputs(400, 30, 3)
    q = RNG.normal(size=(400, 4))
    matrix = y.T @ y + 1e-3 * np.eye(30)
    rhs = y.T @ q
    expected = np.linalg.solve(matrix, rhs)
    solution, info = dense(single(matrix), single(rhs))
    assert int(info.outcome) == Outcome.OK
    for row in range(30):
        assert relative_error(solution[row], expected[row]) < 1e-3
    assert relative_error(solution[3:], expected[3:]) < 1e-4


SINGULAR = {
    "fewer tokens than inputs": inputs(6, 20),
    "one token too few": inputs(19, 20),
    "one channel twice": np.concatenate([inputs(80, 19), inputs(80, 19)[:, :1]], axis=1),
    "one channel the sum of three": np.concatenate([inputs(80, 19), inputs(80, 19)[:, :3].sum(1)[:, None]], axis=1),
    "a dead channel": inputs(80, 20) * (np.arange(20) != 7),
    "the last channel dead": inputs(80, 20) * (np.arange(20) != 19),
    "all channels dead": np.zeros((80, 20)),
}


@pytest.mark.parametrize("case", SINGULAR)
@pytest.mark.parametrize("consistent", [True, False])
def test_a_singular_matrix_without_damping_is_reported(case, consistent):
    """Also where rounding lets the factorisation through: then the pivots or the residual tell."""
    if consistent and case == "one token too few":
        pytest.skip("the pivots cannot tell it for sure; compensate counts the tokens")
    y = SINGULAR[case]
    matrix = y.T @ y
    rhs = matrix @ RNG.normal(size=(20, 4)) if consistent else RNG.normal(size=(20, 4))
    _, info = dense(single(matrix), single(rhs))
    assert int(info.outcome) == Outcome.NOT_POSITIVE_DEFINITE


@pytest.mark.parametrize("case", SINGULAR)
def test_damping_heals_it(case):
    y = SINGULAR[case]
    if not y.any():
        pytest.skip("a share of nothing is nothing: dead inputs stay singular")
    matrix, _, rhs, expected = ridge(y, RNG.normal(size=(len(y), 4)), np.zeros((20, 4)))
    solution, info = dense(single(matrix), single(rhs))
    assert int(info.outcome) == Outcome.OK
    assert relative_error(solution, expected) < 1e-4


def test_singularity_near_rounding_is_caught_over_many_draws():
    for seed in range(40):
        y = inputs(31, 32, seed=seed)
        _, info = dense(single(y.T @ y), single(np.random.default_rng(seed).normal(size=(32, 2))))
        assert int(info.outcome) == Outcome.NOT_POSITIVE_DEFINITE, seed


def test_an_indefinite_matrix_is_reported():
    matrix = np.diag([1.0, 1.0, -1.0])
    _, info = dense(single(matrix), single(np.ones((3, 1))))
    assert int(info.outcome) == Outcome.NOT_POSITIVE_DEFINITE


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["matrix", "rhs"])
def test_nan_and_inf_are_told_from_indefiniteness(bad, where):
    y, q = inputs(30, 8), RNG.normal(size=(30, 2))
    matrix, ridged, rhs, _ = ridge(y, q, np.zeros((8, 2)))
    spoilt = {"matrix": (matrix.copy(), y.copy()), "rhs": (rhs.copy(), q.copy())}
    for array in spoilt[where]:
        array[0, 0] = bad
    matrix, y = spoilt["matrix"]
    rhs, q = spoilt["rhs"]
    _, direct = dense(single(matrix), single(rhs))
    _, woodbury = dual(single(y), single(ridged), single(q), single(np.zeros((8, 2))))
    _, cg = iterate(single(matrix), single(rhs), 1e-6, 50)
    assert int(direct.outcome) == int(woodbury.outcome) == int(cg.outcome) == Outcome.NOT_FINITE


def test_too_few_steps_are_not_converged():
    y = inputs(60, 20)
    matrix, _, rhs, _ = ridge(y, RNG.normal(size=(60, 3)), np.zeros((20, 3)), damping=1e-4)
    _, info = iterate(single(matrix), single(rhs), 1e-6, 2)
    assert int(info.outcome) == Outcome.NOT_CONVERGED
    assert int(info.steps) == 2 and float(info.residual) > 1e-3


def test_nothing_to_correct_is_solved_by_zero():
    matrix, rhs = np.eye(5) + 0.1, np.zeros((5, 3))
    for solution, info in (
        dense(single(matrix), single(rhs)),
        iterate(single(matrix), single(rhs), 1e-6, 50),
        dual(single(np.ones((2, 5))), single(0.1), single(np.zeros((2, 3))), single(rhs)),
    ):
        assert int(info.outcome) == Outcome.OK and float(info.residual) == 0
        assert not np.any(solution)


def test_an_empty_system_is_solved():
    solution, info = solve.cholesky_solve(jnp.zeros((0, 0)), jnp.zeros((0, 3)))
    assert solution.shape == (0, 3) and int(info.outcome) == Outcome.OK


def test_float64_is_solved_in_float64():
    with jax.enable_x64(True):
        y = inputs(60, 20)
        matrix, _, rhs, expected = ridge(y, RNG.normal(size=(60, 3)), np.zeros((20, 3)))
        solution, info = solve.cholesky_solve(jnp.asarray(matrix), jnp.asarray(rhs))
        assert solution.dtype == jnp.float64 and float(info.residual) < 1e-14
        assert relative_error(solution, expected) < 1e-12


def test_under_vmap_each_system_has_its_own_outcome():
    y = inputs(60, 12)
    good, _, rhs, expected = ridge(y, RNG.normal(size=(60, 3)), np.zeros((12, 3)))
    matrices = single(np.stack([good, -good, good * np.nan]))
    rhs = single(np.stack([rhs] * 3))
    solution, info = jax.jit(jax.vmap(solve.cholesky_solve))(matrices, rhs)
    assert info.outcome.tolist() == [Outcome.OK, Outcome.NOT_POSITIVE_DEFINITE, Outcome.NOT_FINITE]
    assert relative_error(solution[0], expected) < 1e-5
    alone, _ = solve.cholesky_solve(matrices[0], rhs[0])
    assert relative_error(solution[0], oracle.f64(alone)) < 1e-5


def test_one_trace_serves_all_systems_of_a_shape():
    traces = []

    def counted(matrix, rhs):
        traces.append(1)
        return solve.conjugate_gradients(
            lambda e: jnp.matmul(matrix, e), rhs, jnp.diagonal(matrix), tolerance=1e-6, max_steps=50
        )

    run = jax.jit(counted)
    for seed in range(3):
        y = inputs(30, 10, seed=seed)
        run(single(y.T @ y + np.eye(10)), single(np.ones((10, 2))))
    assert len(traces) == 1


@pytest.mark.parametrize("size", [256, 400])
def test_conjugate_gradients_solve_kernels_of_real_width(size):
    """A guard scaled by the number of unknowns made every step of a kernel of 256 x 256 NaN."""
    y = inputs(size, size) / 10
    matrix, _, rhs, expected = ridge(y, RNG.normal(size=(size, size)), np.zeros((size, size)))
    solution, info = iterate(single(matrix), single(rhs), 1e-6, 2000)
    assert int(info.outcome) == Outcome.OK
    assert relative_error(solution, expected) < 1e-4


def test_a_finished_column_waits_for_the_others():
    """One column is an eigenvector, done in one step exactly; another needs them all; a third is 0."""
    matrix = np.diag([1.0, 2.0, 3.0, 4.0]) + 0.0
    matrix[1:, 1:] += 0.5
    rhs = np.stack([np.eye(4)[0], np.ones(4), np.zeros(4)], axis=1)
    solution, info = iterate(single(matrix), single(rhs), 1e-6, 50)
    assert int(info.outcome) == Outcome.OK and int(info.steps) > 1
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, rhs), atol=1e-6)
