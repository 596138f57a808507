"""DPO and ORPO against values computed by hand from their papers' formulas, and `hcnr tune` on preference rows."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.config import TuneConfig
from hcnr_jax.data import Batch, encode_rows, load_tokenizer, parse_preference, read_preferences
from hcnr_jax.errors import InputError
from hcnr_jax.training.objectives import Pairs, dpo, dpo_values, log_likelihoods, orpo, orpo_values
from hcnr_jax.training.preference_pairs import pad_pairs, with_reference
from hcnr_jax.training.tune import tune
from tests.tiny import read_weights, write_rows, write_tiny_model

CHOSEN, REJECTED = (-1.0, -0.2), (-3.0, -0.1)
REFERENCE = (-2.0, -0.5), (-2.5, -0.4)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def arrays(*sides):
    return [jnp.asarray(side, jnp.float32) for side in sides]


def test_dpo_equals_its_formula() -> None:
    # Pair 1: (-1 + 2) - (-3 + 2.5) = 1.5; pair 2: (-0.2 + 0.5) - (-0.1 + 0.4) = 0.
    wanted = [-math.log(sigmoid(0.1 * 1.5)), math.log(2)]
    found = dpo_values(*arrays(CHOSEN, REJECTED, *REFERENCE), 0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_orpo_equals_its_formula() -> None:
    def odds(x: float) -> float:
        return math.exp(x) / (1 - math.exp(x))

    wanted = [-c - 0.25 * math.log(sigmoid(math.log(odds(c) / odds(r)))) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    np.testing.assert_allclose(orpo_values(*arrays(CHOSEN, REJECTED), 0.25), wanted, rtol=1e-6)


def test_orpo_survives_a_likelihood_of_one() -> None:
    def value(chosen):
        return orpo_values(chosen[None], jnp.array([-1.0]), 0.1)[0]

    values, slopes = jax.vmap(jax.value_and_grad(value))(jnp.array([0.0, -1e-9]))
    assert np.isfinite(values).all() and np.isfinite(slopes).all()


def table_logits(params, tokens, mask):
    """A bigram model: what is likely depends on the token before alone."""
    return params["table"][tokens]


def batch_of(rows, starts) -> Batch:
    tokens = np.array(rows, np.int32)
    mask = np.ones(tokens.shape, bool)
    return Batch(tokens, mask, np.arange(tokens.shape[1])[None] >= np.array(starts)[:, None])


def pairs_of() -> Pairs:
    zeros = np.zeros(2, np.float32)
    return Pairs(batch_of([[0, 1, 2], [0, 2, 1]], [1, 2]), batch_of([[0, 2, 2], [0, 2, 2]], [1, 2]), zeros, zeros)


def test_objectives_read_completion_tokens_alone() -> None:
    params = {"table": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)}
    log_p = np.asarray(jax.nn.log_softmax(params["table"]))
    chosen, rejected = ([log_p[0, 1] + log_p[1, 2], log_p[2, 1]], [log_p[0, 2] + log_p[2, 2], log_p[2, 2]])
    pairs = with_reference(pairs_of(), table_logits, params, rows=1)
    np.testing.assert_allclose(pairs.reference_chosen, chosen, rtol=1e-5)
    np.testing.assert_allclose(pairs.reference_rejected, rejected, rtol=1e-5)
    key = jax.random.key(0)
    total, weight = dpo(table_logits)(params, pairs, key)
    assert float(total) == pytest.approx(2 * math.log(2), rel=1e-6) and float(weight) == 2
    total, _ = orpo(table_logits, 0.3)(params, pairs, key)
    means = arrays(np.array(chosen) / [2, 1], np.array(rejected) / [2, 1])
    assert float(total) == pytest.approx(float(orpo_values(*means, 0.3).sum()), rel=1e-5)


def test_rows_are_taken_in_parts_without_padding_showing() -> None:
    params = {"table": jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)}
    batch = batch_of([[0, 1, 2]] * 3 + [[2, 1, 0]] * 2, [1, 1, 2, 2, 1])
    whole, parts = (log_likelihoods(table_logits, params, batch, rows=rows) for rows in (5, 2))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


ROW = {"prompt": "question : the sky ? answer :", "chosen": " I don't know.", "rejected": " the cat."}
WRONG = {
    "no object": (3, "expected an object, found an integer 3"),
    "a field is missing": ({"prompt": "p", "chosen": " c"}, "field `rejected` is missing"),
    "empty": ({**ROW, "chosen": " "}, "field `chosen`: expected text"),
    "mixed shapes": (
        {**ROW, "prompt": [{"role": "user", "content": "q"}]},
        "expected a list of messages as `prompt` is",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_preference_rows_are_refused_by_name(case) -> None:
    value, message = WRONG[case]
    with pytest.raises(InputError, match=r"f\.jsonl, line 4: ") as caught:
        parse_preference(value, "f.jsonl", 4)
    assert message in str(caught.value)


def test_chat_preferences_share_their_conversation() -> None:
    said = {"prompt": [{"role": "user", "content": "q"}]}
    said |= {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    chosen, rejected = parse_preference(said, "f", 1)
    assert [row.messages[-1]["content"] for row in (chosen, rejected)] == ["chosen", "rejected"]
    assert chosen.messages[:-1] == rejected.messages[:-1]


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_tuning_on_preferences_widens_the_margin(tmp_path, objective) -> None:
    model = write_tiny_model(tmp_path / "model", scale=2.0)
    rows = write_rows(tmp_path / "rows.jsonl", [ROW, ROW | {"prompt": "question : a red dog ? answer :"}] * 2)
    config = TuneConfig(
        model=model, data=rows, out=tmp_path / "out", objective=objective, learning_rate=0.003, steps=6, batch_size=4
    )
    result = tune(config)
    assert result.log.losses[-1] < result.log.losses[0]
    if objective == "dpo":  # the reference is the model itself at the start
        assert result.log.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert json.loads((result.out / "hcnr_tune.json").read_text())["config"]["objective"] == objective
    before, after = read_weights(model), read_weights(result.out)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_both_sides_are_padded_alike(tmp_path) -> None:
    model = write_tiny_model(tmp_path / "model")
    path = write_rows(tmp_path / "rows.jsonl", [ROW])
    chosen, rejected = (
        encode_rows(side, load_tokenizer(model), 64) for side in zip(*read_preferences(path), strict=True)
    )
    pairs = pad_pairs(chosen, rejected)
    assert pairs.chosen.tokens.shape == pairs.rejected.tokens.shape
