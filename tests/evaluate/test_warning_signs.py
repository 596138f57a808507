"""Warning signs: each threshold from both sides, rank correlation against scipy, conditions against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from hcnr_jax.data import Batch
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import (
    check_conditioning,
    check_honesty,
    check_premise,
    check_stability,
    check_task,
    input_conditions,
    rank_correlation,
)
from hcnr_jax.evaluate.conditioning import middle_blocks
from hcnr_jax.evaluate.warning_signs import Condition
from hcnr_jax.restoration.decoder_blocks import block_model
from tests.evaluate.models import load_tiny

PLAIN = {"compensation": "exact", "inputs": "propagated", "in_weight": 0.25, "cross_weight": 0.4}
BEST = {"compensation": "two_sided", "inputs": "propagated", "in_weight": 0.5, "cross_weight": 1.0, "task_weight": 2.0}


@pytest.mark.parametrize(
    ("finding", "ok", "words"),
    [
        (check_premise(0.95, 0.90), True, "still inside"),
        (check_premise(0.95, 0.60), False, "fine-tune less"),
        (check_premise(0.60, 0.90), False, "BASE itself does not separate"),
        (check_task(0.50, 0.49), True, "50.0 % in TUNED, 49.0 % restored"),
        (check_task(0.50, 0.48), True, "48.0 %"),
        (check_task(0.50, 0.475), False, "raise --task-weight"),
        (check_task(0.0, 0.0), None, "TUNED itself answers none"),
        (check_task(0.5, 0.4, PLAIN), False, "points: use --compensation two_sided, lower --in-weight (0.25 was used)"),
        (check_task(0.5, 0.4, BEST), False, "points: raise --task-weight (2 was used), lower --in-weight"),
        (check_honesty(0.60), True, "F1"),
        (check_honesty(0.5, PLAIN), False, "use --compensation two_sided, raise --cross-weight (0.4 was used), see"),
        (check_honesty(0.5, BEST), False, "0.60: lower --task-weight (2 was used), see that the premise holds"),
        (check_honesty(0.59), False, "below 0.60"),
        (check_stability("task", {"a": 0.9, "b": 0.8, "c": 0.1}, 128), True, "lowest 0.10 in c"),
        (check_stability("task", {"a": 0.9, "b": 0.5, "c": 0.1}, 128), False, "give more task rows"),
        (check_stability("task", {"a": float("nan")}, 128), None, "constant"),
        (check_stability("task", {"a": float("nan"), "b": 0.8}, 128), True, "lowest 0.80 in b"),
        (check_conditioning([Condition("o", 8, 100, 50.0, 20.0)], 0.01), True, "up to about 20"),
        (check_conditioning([Condition("o", 8, 4, None, 2e7)], 1e-9), False, "fewer tokens than inputs"),
        (check_conditioning([Condition("o", 8, 4, None, None)], 0.0), False, "raise --damping"),
        (check_conditioning([], 0.0), None, "no kernel"),
    ],
)
def test_findings_at_their_thresholds(finding, ok, words):
    assert finding.ok is ok and words in finding.text and finding.to_json()["check"] == finding.check


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 6, (2, 15)).astype(np.float64)
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    with pytest.raises(InputError, match="3 and 2 scores"):
        rank_correlation(np.ones(3), np.ones(2))
    with pytest.raises(InputError, match="finite"):
        rank_correlation(np.array([1.0, np.nan]), np.ones(2))


def batch_of(seed, rows, length, real):
    tokens = np.random.default_rng(seed).integers(3, 60, (rows, length)).astype(np.int32)
    mask = np.arange(length)[None] < np.full((rows, 1), real)
    return Batch(tokens, mask, mask)


def test_conditions_of_the_first_group_by_numpy(tmp_path):
    """The first group's inputs are the normed embeddings: their moments, scaled, factored in float64."""
    tiny = load_tiny(tmp_path / "m", seed=1)
    spec, params = tiny.model.spec, tiny.model.params
    batches = [batch_of(seed, 4, 24, 17) for seed in range(2)]
    found = input_conditions(block_model(spec), params, batches, damping=0.01)
    assert [item.kernels for item in found] == [
        f"block {index} {names}" for index in (0, 1) for names in ("q, k, v", "o", "gate, up", "down")
    ]
    assert {item.tokens for item in found} == {2 * 4 * 17} and [item.inputs for item in found[:4]] == [32, 32, 32, 48]
    tokens = np.concatenate([batch.tokens[:, :17].reshape(-1) for batch in batches])
    hidden = np.asarray(params["embed"]["embedding"], np.float64)[tokens]
    scale = np.asarray(params["blocks"]["attention_norm"]["scale"][0], np.float64)
    x = hidden / np.sqrt((hidden**2).mean(1, keepdims=True) + spec.rms_norm_eps) * scale
    moments = x.T @ x / len(x)
    damped = moments + 0.01 * np.trace(moments) / 32 * np.eye(32)
    for value, matrix in ((found[0].undamped, moments), (found[0].damped, damped)):
        unit = matrix / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
        pivots = np.diag(np.linalg.cholesky(unit))
        assert value == pytest.approx((pivots.max() / pivots.min()) ** 2, rel=1e-2)
        assert value <= np.linalg.cond(unit) * 1.01


def test_fewer_tokens_than_inputs_need_the_damping(tmp_path):
    tiny = load_tiny(tmp_path / "m", seed=1)
    found = input_conditions(
        block_model(tiny.model.spec), tiny.model.params, [batch_of(0, 1, 8, 5)], damping=0.01, blocks=[1]
    )
    assert all(item.tokens == 5 and item.damped is not None and item.damped < 1e4 for item in found)
    assert all(item.undamped is None or item.undamped > 1e5 for item in found)
    assert jnp.isfinite(jnp.asarray([item.damped for item in found], jnp.float32)).all()


def test_first_middle_and_last_blocks():
    assert [middle_blocks(n) for n in (1, 2, 3, 32)] == [[0], [0, 1], [0, 1, 2], [0, 16, 31]]
