"""Weight-space rivals: their formulas on small arrays, their ends, and Safe Delta against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.baselines.interpolate import task_arithmetic, wise_ft
from hcnr_jax.baselines.safe_delta import NEVER, WIDTH, honesty_moments, inverse_root, safe_delta
from hcnr_jax.baselines.sparsify import dare, largest, task_vector, ties
from hcnr_jax.errors import InputError

RNG = np.random.default_rng(0)


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    arrays = {"a": rng.normal(size=(2, 4, 3)), "b": rng.normal(size=5)}
    return {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}


BASE, TUNED = tree(1), tree(2)


def test_interpolation_ends_and_middle() -> None:
    for alpha, expected in ((0.0, BASE), (1.0, TUNED)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), wise_ft(BASE, TUNED, alpha), expected
        )
    mixed = wise_ft(BASE, TUNED, 0.3)
    np.testing.assert_allclose(mixed["b"], 0.7 * BASE["b"] + 0.3 * TUNED["b"], rtol=1e-5)
    beyond = task_arithmetic(BASE, TUNED, 1.5)
    np.testing.assert_allclose(beyond["b"], BASE["b"] + 1.5 * (TUNED["b"] - BASE["b"]), rtol=1e-5)


def test_weights_keep_their_dtype() -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TUNED)
    for found in (wise_ft(BASE, half, 0.5), ties(BASE, [half], 0.5), dare(BASE, half, 0.5)):
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(found))


def test_trimming_keeps_the_largest_of_the_whole_model() -> None:
    vector = task_vector(BASE, TUNED)
    mask = largest(vector, 0.25)
    sizes = np.concatenate([np.abs(np.asarray(leaf)).ravel() for leaf in jax.tree.leaves(vector)])
    kept = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(mask)])
    assert kept.sum() == round(0.25 * sizes.size) and sizes[kept].min() > sizes[~kept].max()
    found = ties(BASE, [TUNED], 0.25)
    np.testing.assert_allclose(found["b"], np.where(mask["b"], TUNED["b"], BASE["b"]), rtol=1e-5)


def test_ties_merges_what_agrees_in_sign() -> None:
    base = {"w": jnp.zeros(4)}
    first, second = ({"w": jnp.array(value)} for value in ([1.0, 2.0, -4.0, 0.5], [3.0, -1.0, 1.0, 0.7]))
    # Entry by entry: both up; up wins; down wins; both up.
    np.testing.assert_allclose(ties(base, [first, second], 1.0)["w"], [2.0, 2.0, -4.0, 0.6], rtol=1e-6)


def test_dare_drops_a_share_and_rescales_the_rest() -> None:
    base, tuned = {"w": jnp.zeros(4000)}, {"w": jnp.ones(4000)}
    found = np.asarray(dare(base, tuned, 0.75, seed=1)["w"])
    assert set(np.unique(found)) == {0.0, 4.0} and abs((found == 0).mean() - 0.75) < 0.03
    np.testing.assert_array_equal(found, dare(base, tuned, 0.75, seed=1)["w"])
    with pytest.raises(InputError, match="1 - drop 0: expected a share"):
        dare(base, tuned, 1.0)


INPUTS, OUTPUTS = 6, 5
X = RNG.normal(size=(40, INPUTS))
OLD, NEW = RNG.normal(size=(INPUTS, OUTPUTS)), RNG.normal(size=(INPUTS, OUTPUTS))


def plain_safe_delta(s: float, damping: float) -> np.ndarray:
    """The header's steps in numpy on the paper's (out, in) weights, an entry at a time."""
    second = X.T @ X
    second = second + damping * np.mean(np.diag(second)) * np.eye(INPUTS)
    upper = np.linalg.cholesky(np.linalg.inv(second)).T
    weights, tuned = OLD.T.copy(), NEW.T
    weight = 1 / np.diag(upper) ** 2
    places = sorted(((k, o) for k in range(INPUTS) for o in range(OUTPUTS)), key=lambda place: weight[place[0]])
    spent, take = 0.0, np.zeros((OUTPUTS, INPUTS), bool)
    for k, o in places[: len(places) - int(NEVER * len(places))]:
        spent += (tuned[o, k] - OLD[k, o]) ** 2 * weight[k]
        take[o, k] = spent <= s / 2 * weight.mean() * OUTPUTS / WIDTH
    for k in range(INPUTS):
        row = np.where(take[:, k], tuned[:, k], weights[:, k])
        error = (weights[:, k] - row) / upper[k, k]
        weights[:, k] = row
        weights[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    return weights.T


@pytest.mark.parametrize("s", [0.0, 3000.0, 8000.0, 1e9])
def test_safe_delta_equals_the_plain_loop(s) -> None:
    base, tuned = ({"kernel": jnp.asarray(value, jnp.float32)} for value in (OLD, NEW))
    moments = {"kernel": jnp.asarray(X.T @ X, jnp.float32)}
    found = safe_delta(base, tuned, moments, s=s)["kernel"]
    np.testing.assert_allclose(found, plain_safe_delta(s, 0.01), rtol=2e-4, atol=2e-4)
    if s == 0:
        np.testing.assert_allclose(found, OLD, rtol=1e-6)


def test_compensation_holds_the_outputs_where_they_were() -> None:
    found = plain_safe_delta(1e9, 1e-6)
    moved, compensated = (np.linalg.norm(X @ (w - OLD)) for w in (np.where(found == NEW, NEW, OLD), found))
    assert compensated < moved


def test_the_root_is_upper_and_an_idle_input_is_no_fault() -> None:
    second = jnp.asarray(np.diag([2.0, 0.0, 1.0]), jnp.float32)
    root = np.asarray(inverse_root(second, 0.01))
    assert np.allclose(root, np.triu(root)) and np.isfinite(root).all()


def test_moments_are_sums_over_the_batches() -> None:
    from flax import linen as nn

    model = nn.Dense(3, use_bias=False)
    params = {"kernel": jnp.ones((INPUTS, 3))}
    batches = [(jnp.asarray(part[None], jnp.float32), jnp.ones((1, len(part)), bool)) for part in (X[:10], X[10:20])]
    found = honesty_moments(lambda p, x: model.apply({"params": p}, x), params, ["kernel"], batches=batches)
    np.testing.assert_allclose(found["kernel"], X[:20].T @ X[:20], rtol=1e-4)
