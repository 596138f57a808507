"""Log-probabilities against float64 numpy, and what a completion's loss counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.models import completion_nll, completion_window, token_log_probs

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(3, 5, 7)).astype(np.float32) * 4)
TOKENS = jnp.asarray(RNG.integers(0, 7, (3, 5)), jnp.int32)
MASK = jnp.asarray([[0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1]], bool)


def oracle(logits, tokens):
    wide = np.asarray(logits, np.float64)
    log_p = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    out = np.zeros(tokens.shape)
    for index in np.ndindex(*tokens.shape):
        if index[-1]:
            before = (*index[:-1], index[-1] - 1)
            out[index] = log_p[before][int(tokens[index])]
    return out


def test_token_log_probs_against_numpy_with_any_leading_axes():
    expected = oracle(LOGITS, TOKENS)
    np.testing.assert_allclose(token_log_probs(LOGITS, TOKENS), expected, atol=1e-5)
    np.testing.assert_allclose(token_log_probs(LOGITS[0], TOKENS[0]), expected[0], atol=1e-5)
    np.testing.assert_allclose(token_log_probs(LOGITS[None], TOKENS[None])[0], expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(token_log_probs))(LOGITS, TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize(("reduction", "counts"), [("sum", [1, 1, 1]), ("mean", [3, 2, 1])])
def test_completion_nll_counts_the_completion_alone(reduction, counts):
    expected = -(oracle(LOGITS, TOKENS) * np.asarray(MASK)).sum(1) / counts
    np.testing.assert_allclose(completion_nll(LOGITS, TOKENS, MASK, reduction), expected, atol=1e-5)
    one = completion_nll(LOGITS[1], TOKENS[1], MASK[1], reduction)
    assert one.shape == () and float(one) == pytest.approx(expected[1], abs=1e-5)


def test_the_first_position_never_counts_and_an_empty_completion_costs_nothing():
    first = MASK.at[:, 0].set(True)
    assert np.array_equal(completion_nll(LOGITS, TOKENS, first), completion_nll(LOGITS, TOKENS, MASK))
    assert not completion_nll(LOGITS, TOKENS, jnp.zeros_like(MASK)).any()


def test_nan_outside_the_completion_does_not_reach_the_gradient():
    def loss(logits):
        return completion_nll(logits, TOKENS[0], MASK[0])

    poisoned = LOGITS[0].at[0].set(jnp.nan).at[4].set(jnp.nan)
    value, gradient = jax.value_and_grad(loss)(poisoned)
    assert float(value) == pytest.approx(float(loss(LOGITS[0])))
    assert np.isfinite(gradient[1:4]).all()


def test_half_precision_logits_are_summed_in_float32():
    nll = completion_nll(LOGITS.astype(jnp.bfloat16), TOKENS, MASK)
    assert nll.dtype == jnp.float32
    rounded = -(oracle(LOGITS.astype(jnp.bfloat16), TOKENS) * np.asarray(MASK)).sum(1) / [3, 2, 1]
    np.testing.assert_allclose(nll, rounded, atol=1e-5)


def test_certainty_and_single_tokens():
    certain = jnp.zeros((1, 2, 3)).at[0, 0, 1].set(1e4)
    assert float(completion_nll(certain, jnp.array([[0, 1]]), jnp.array([[False, True]]))[0]) == 0.0
    assert token_log_probs(LOGITS[:, :1], TOKENS[:, :1]).tolist() == [[0.0]] * 3


def test_unknown_reduction():
    with pytest.raises((ValueError, TypeError), match="median"):
        completion_nll(LOGITS, TOKENS, MASK, "median")


@pytest.mark.parametrize("width", [3, 4, 5, 9])
def test_a_window_around_the_completion_loses_nothing(width):
    hidden = jnp.asarray(RNG.normal(size=(5, 6, 4)).astype(np.float32))
    head = jnp.asarray(RNG.normal(size=(4, 7)).astype(np.float32))
    tokens = jnp.asarray(RNG.integers(0, 7, (5, 6)), jnp.int32)
    # At the end, before padding, from the first position on, one token, a padding row.
    mask = jnp.asarray([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6], bool)

    def windowed(hidden):
        cut, ids, counted = completion_window(hidden, tokens, mask, width)
        assert cut.shape == (5, min(width, 6), 4)
        return completion_nll(cut @ head, ids, counted)

    whole = lambda hidden: completion_nll(hidden @ head, tokens, mask)  # noqa: E731
    np.testing.assert_allclose(windowed(hidden), whole(hidden), rtol=1e-6)
    gradients = [jax.grad(lambda h, f=f: jnp.sum(f(h)))(hidden) for f in (windowed, whole)]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.jit(windowed)(hidden), whole(hidden), rtol=1e-6)
