"""The last step through the whole network: against dense matrices and finite differences in float64."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hcnr_jax.method.neurons import get_leaves, put_leaves
from hcnr_jax.method.refine.gauss_newton import refine
from hcnr_jax.method.refine.problem import OutputDivergence, Side
from tests.method import toys

MODEL = toys.Scanned(2)
PATHS = toys.paths_of(MODEL)
BATCHES = {name: [toys.make_rows(seed), toys.make_rows(seed + 1)] for name, seed in (("honesty", 0), ("task", 2))}


def outputs(params, rows):
    """Every real token predicts the next real one."""
    logits = jax.vmap(partial(MODEL.apply, {"params": params}))(jnp.asarray(rows.tokens), jnp.asarray(rows.mask))
    predicts = jnp.pad(jnp.asarray(rows.mask)[:, 1:], ((0, 0), (0, 1))).astype(logits.dtype)
    return logits, predicts / jnp.sum(predicts, axis=1, keepdims=True)


def make(dtype=jnp.float32, weight=2.0):
    base = toys.make_params(MODEL, 1)
    base, tuned = (jax.tree.map(lambda leaf: leaf.astype(dtype), tree) for tree in (base, toys.moved(base, 2)))
    start = jax.tree.map(lambda a, b: (a + b) / 2, base, tuned)
    rng = np.random.default_rng(3)
    masks = {
        path: jnp.asarray(rng.random((2, leaf.shape[1], 1)) < 0.5) for path, leaf in get_leaves(base, PATHS).items()
    }
    rows = {name: sum(len(batch.tokens) for batch in batches) for name, batches in BATCHES.items()}
    sides = [Side(base, BATCHES["honesty"], rows["honesty"], 1.0), Side(tuned, BATCHES["task"], rows["task"], weight)]
    return start, masks, sides


def dense(start, masks, sides):
    """J of a flat vector of all kernels' entries, the 0/1 mask as a vector, and the Gauss-Newton matrix."""
    leaves = get_leaves(start, PATHS)
    flat, unravel = ravel_pytree(leaves)
    mask, _ = ravel_pytree({path: jnp.broadcast_to(masks[path], leaf.shape) for path, leaf in leaves.items()})

    def value(x):
        total = jnp.zeros((), x.dtype)
        for side in sides:
            for batch in side.batches:
                aim, _ = outputs(side.reference, batch)
                logits, weights = outputs(put_leaves(start, unravel(x)), batch)
                p, q = jax.nn.log_softmax(aim), jax.nn.log_softmax(logits)
                kl = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
                total += side.weight / side.rows * jnp.sum(weights * kl)
        return total

    matrix = np.zeros((flat.size, flat.size))
    for side in sides:
        for batch in side.batches:
            logits, weights = outputs(start, batch)
            jacobian = np.asarray(jax.jacobian(lambda x: outputs(put_leaves(start, unravel(x)), batch)[0])(flat))  # noqa: B023
            p = np.asarray(jax.nn.softmax(logits))
            for row, token in np.ndindex(*p.shape[:2]):
                j, q = jacobian[row, token], p[row, token]
                matrix += side.weight / side.rows * float(weights[row, token]) * j.T @ (np.diag(q) - np.outer(q, q)) @ j
    return value, flat, np.asarray(mask, float), matrix


@pytest.fixture(scope="module")
def oracle():
    with jax.enable_x64(True):
        problem = make(jnp.float64)
        return problem, dense(*problem)


def test_gradient_and_products_equal_the_dense_matrix(oracle):
    with jax.enable_x64(True):
        (start, masks, sides), (value, flat, mask, matrix) = oracle
        held = OutputDivergence(outputs, start, masks, sides, lambda: None)
        leaves = get_leaves(start, PATHS)
        assert held.total(held.distances(leaves)) == pytest.approx(float(value(flat)), rel=1e-12)
        gradient = ravel_pytree(held.gradient(leaves))[0]
        np.testing.assert_allclose(gradient, mask * np.asarray(jax.grad(value)(flat)), rtol=1e-9, atol=1e-12)
        direction = jax.tree.map(lambda m, leaf: jnp.where(m, jnp.cos(leaf * 7), 0), masks, leaves)
        product = ravel_pytree(held.product(leaves, direction))[0]
        np.testing.assert_allclose(
            product, mask * (matrix @ np.asarray(ravel_pytree(direction)[0])), rtol=1e-9, atol=1e-12
        )


def test_where_the_outputs_are_the_references_the_matrix_is_the_hessian():
    with jax.enable_x64(True):
        start, masks, sides = make(jnp.float64)
        value, flat, _, matrix = dense(start, masks, [side._replace(reference=start) for side in sides])
        hessian = np.asarray(jax.hessian(value)(flat))
        np.testing.assert_allclose(matrix, hessian, atol=1e-10 * np.abs(hessian).max())


def test_a_full_solve_is_newtons_step(oracle):
    with jax.enable_x64(True):
        (start, masks, sides), (value, flat, mask, matrix) = oracle
        gradient = mask * np.asarray(jax.grad(value)(flat))
        ridge = 0.05 * gradient @ matrix @ gradient / (gradient @ gradient)
        kept = mask > 0
        step = np.zeros_like(gradient)
        step[kept] = -np.linalg.solve(matrix[np.ix_(kept, kept)] + ridge * np.eye(int(kept.sum())), gradient[kept])
        first, after = list(refine(outputs, start, masks, sides=sides, steps=1, products=400, damping=0.05))
        found = ravel_pytree(after.leaves)[0] - ravel_pytree(first.leaves)[0]
        np.testing.assert_allclose(found, after.length * step, rtol=1e-6, atol=1e-9)


def test_steps_lower_the_distance_and_leave_the_rest_alone():
    start, masks, sides = make()
    steps = list(refine(outputs, start, masks, sides=sides, steps=4, products=20, damping=1e-3))
    totals = [step.distances[0] + 2 * step.distances[1] for step in steps]
    assert len(steps) > 2 and all(after < before for before, after in pairwise(totals))
    assert totals[-1] < 0.5 * totals[0]
    for path, leaf in get_leaves(start, PATHS).items():
        still = ~np.broadcast_to(np.asarray(masks[path]), leaf.shape)
        np.testing.assert_array_equal(np.asarray(steps[-1].leaves[path])[still], np.asarray(leaf)[still])


def test_microbatches_do_not_matter(oracle):
    with jax.enable_x64(True):
        start, masks, sides = oracle[0]
        joined = [
            side._replace(batches=[toys.Rows(*(np.concatenate(leaves) for leaves in zip(*side.batches, strict=True)))])
            for side in sides
        ]
        (_, one), (_, other) = (list(refine(outputs, start, masks, sides=some, steps=1)) for some in (sides, joined))
        for path in PATHS:
            np.testing.assert_allclose(one.leaves[path], other.leaves[path], rtol=1e-6, atol=1e-9)


def test_at_the_references_nothing_moves():
    start, masks, sides = make()
    same = [side._replace(reference=start) for side in sides]
    assert len(list(refine(outputs, start, masks, sides=same, steps=3))) == 1
