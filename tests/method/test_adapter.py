"""Restoration in an adapter's own coordinates, against dense least squares in float64 over the columns of A."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.method.adapter import coordinates, restored_columns, thin_pair
from hcnr_jax.method.compensate import Pair, correction_of
from hcnr_jax.method.curvature import Inputs

FAN_IN, OUT, RANK, TOKENS, SCALE, DAMPING, WEIGHT = 12, 9, 3, 40, 1.5, 0.03, 2.0
RESTORED = np.asarray([1, 4, 5, 9])
OTHERS = np.setdiff1d(np.arange(FAN_IN), RESTORED)


@pytest.fixture
def draw():
    rng = np.random.default_rng(3)
    return lambda *shape: rng.normal(size=shape)


def solved(a, b, base, *, honesty, task, shifts):
    """A'_R (r, restored) from the thin solve, in float64."""
    with jax.enable_x64(True):
        own = coordinates(a, b, SCALE)
        pair = Pair(
            jnp.asarray(base), jnp.asarray(base + SCALE * a.T @ b.T), jnp.asarray(RESTORED), jnp.asarray(OTHERS)
        )
        thin, _ = correction_of(
            "two_sided" if task is not None else "exact",
            "free",
            thin_pair(pair, *(jnp.asarray(part, jnp.float64) for part in (own.basis, own.change))),
            honesty=Inputs(jnp.asarray(honesty), None if shifts is None else jnp.asarray(shifts[0])),
            task=None if task is None else Inputs(jnp.asarray(task), jnp.asarray(shifts[1])),
            weight=WEIGHT,
            damping=DAMPING,
        )
        return restored_columns(np.asarray(thin), own.mixing)


def objective(columns, a, b, base, *, honesty, task, shifts):
    """The least-squares objective of docs/method.md as one vector of residuals, linear in A'_R."""
    changed = a.copy()
    changed[:, RESTORED] = columns
    tuned, new = base + SCALE * a.T @ b.T, base + SCALE * changed.T @ b.T
    ridge = np.sqrt(DAMPING * np.mean(np.mean(honesty**2, 0)))
    x = honesty - shifts[0]
    parts = [(honesty @ new - x @ base) / np.sqrt(TOKENS), ridge * (new - base)[RESTORED]]
    if task is not None:
        s = np.sqrt(WEIGHT * np.mean(honesty**2) / np.mean(task**2))
        ridge = np.sqrt(DAMPING * np.mean(np.mean(task**2, 0)))
        z = task - shifts[1]
        parts += [s * (task @ new - z @ tuned) / np.sqrt(TOKENS), s * ridge * (new - tuned)[RESTORED]]
    return np.concatenate([part.ravel() for part in parts])


@pytest.mark.parametrize("two_sided", [False, True])
def test_propagated_inputs_give_the_best_columns_of_a(draw, two_sided) -> None:
    a, b, base = draw(RANK, FAN_IN), draw(OUT, RANK), draw(FAN_IN, OUT)
    honesty, task = draw(TOKENS, FAN_IN), draw(TOKENS, FAN_IN) if two_sided else None
    shifts = 0.3 * draw(TOKENS, FAN_IN), 0.3 * draw(TOKENS, FAN_IN)
    given = {"honesty": honesty, "task": task, "shifts": shifts}

    def residuals(flat):
        return objective(flat.reshape(RANK, -1), a, b, base, **given)

    start = residuals(np.zeros(RANK * RESTORED.size))
    matrix = np.stack([residuals(unit) - start for unit in np.eye(RANK * RESTORED.size)], axis=1)
    best = np.linalg.lstsq(matrix, -start, rcond=None)[0].reshape(RANK, -1)
    np.testing.assert_allclose(solved(a, b, base, **given), best, rtol=2e-5, atol=2e-6)


def test_local_inputs_give_the_solution_of_the_whole_kernel(draw) -> None:
    a, b, base = draw(RANK, FAN_IN), draw(OUT, RANK), draw(FAN_IN, OUT)
    honesty = draw(TOKENS, FAN_IN)
    columns = solved(a, b, base, honesty=honesty, task=None, shifts=None)
    moments = honesty.T @ honesty / TOKENS
    damped = moments + DAMPING * np.mean(np.diag(moments)) * np.eye(FAN_IN)
    change = SCALE * a.T @ b.T
    whole = -np.linalg.solve(damped[np.ix_(RESTORED, RESTORED)], damped[np.ix_(RESTORED, OTHERS)] @ change[OTHERS])
    np.testing.assert_allclose(SCALE * columns.T @ b.T, whole, rtol=1e-5, atol=1e-6)


def test_dependent_columns_of_b(draw) -> None:
    a, b = draw(RANK, FAN_IN), draw(OUT, RANK)
    b[:, 2] = b[:, 0] - 2 * b[:, 1]
    own = coordinates(a, b, SCALE)
    assert own.rank == 2
    np.testing.assert_allclose(own.change @ own.basis.T, SCALE * a.T @ b.T, atol=1e-5)
    columns = restored_columns(own.change[RESTORED], own.mixing)
    np.testing.assert_allclose(columns.T @ b.T, a.T[RESTORED] @ b.T, atol=1e-5)


def test_a_fresh_adapter_moves_nothing(draw) -> None:
    own = coordinates(draw(RANK, FAN_IN), np.zeros((OUT, RANK)), SCALE)
    assert own.rank == 0 and own.change.shape == (FAN_IN, 0)
    assert restored_columns(own.change[RESTORED], own.mixing).shape == (RANK, RESTORED.size)
