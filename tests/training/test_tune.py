"""`hcnr tune` end to end on tiny folders: out comes MODEL's folder with trained weights, or an adapter on it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from hcnr_jax.checkpoints.checkpoint import open_checkpoint
from hcnr_jax.checkpoints.load import load_params
from hcnr_jax.checkpoints.lora import open_adapter
from hcnr_jax.data.encode import encode_rows, load_tokenizer, pad_examples, read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.models.decoder import Decoder
from hcnr_jax.models.likelihood import completion_nll
from hcnr_jax.models.spec import spec_from_config
from hcnr_jax.training.tune import TuneConfig, train_settings, tune
from tests.tiny import read_weights, task_rows, write_rows, write_tiny_model, write_weights

QUICK = {"steps": 8, "batch_size": 4, "warmup": 0.2, "seed": 3}


@pytest.fixture()
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", task_rows(6))


def mean_nll(model, rows, base=None) -> float:
    """The loss of all rows, read back from the written folder."""
    checkpoint = open_checkpoint(model) if base is None else open_adapter(model, open_checkpoint(base))
    spec = spec_from_config(checkpoint.config, str(model))
    examples = encode_rows(read_rows(rows), load_tokenizer(checkpoint.tokenizer_folder), 64)
    batch = jax.tree.map(jnp.asarray, pad_examples(examples))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), load_params(checkpoint, spec))
    logits = Decoder(spec).apply({"params": params}, batch.tokens, batch.attention_mask)
    total = completion_nll(logits, batch.tokens, batch.completion_mask, "sum").sum()
    return float(total) / float(batch.completion_mask.sum())


def test_full_tuning_keeps_layout_and_dtype_and_learns_the_rows(tmp_path, rows) -> None:
    model = write_tiny_model(tmp_path / "model", "llama", dtype="bfloat16", shards=2)
    seen = []
    result = tune(
        TuneConfig(model=model, data=rows, out=tmp_path / "out", learning_rate=0.01, **QUICK),
        lambda step, steps, info: seen.append((step, steps)),
    )
    assert seen == [(step, 8) for step in range(8)]
    assert result.out == (tmp_path / "out").resolve() and len(result.log.losses) == 8
    before, after = read_weights(model), read_weights(result.out)
    assert {name: (w.dtype, w.shape) for name, w in before.items()} == {n: (w.dtype, w.shape) for n, w in after.items()}
    assert sum(not np.array_equal(before[name], after[name]) for name in before) == len(before)
    names = {path.name for path in model.iterdir()}
    assert names | {"hcnr_tune.json"} == {path.name for path in result.out.iterdir()}
    assert mean_nll(result.out, rows) < 0.6 * mean_nll(model, rows)
    record = json.loads((result.out / "hcnr_tune.json").read_text())
    assert record["config"]["learning_rate"] == 0.01 and record["settings"]["warmup_steps"] == 1
    assert len(record["losses"]) == 8 and record["versions"]["jax"]


def test_transformers_reads_the_result(tmp_path, rows) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = write_tiny_model(tmp_path / "model", "qwen3")
    out = tune(TuneConfig(model=model, data=rows, out=tmp_path / "out", learning_rate=0.01, **QUICK)).out
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    example = encode_rows(read_rows(rows), load_tokenizer(out), 64)[0]
    labels = [-100] * example.completion_start + list(example.tokens[example.completion_start :])
    with torch.no_grad():
        loss = loaded(torch.tensor([example.tokens]), labels=torch.tensor([labels])).loss.item()
    write_rows(tmp_path / "one.jsonl", task_rows(1))
    assert loss == pytest.approx(mean_nll(out, tmp_path / "one.jsonl"), abs=1e-4)


def test_an_adapter_comes_out_and_learns_the_rows(tmp_path, rows) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    config = TuneConfig(model=model, data=rows, out=tmp_path / "out", lora=4, learning_rate=0.05, **QUICK)
    out = tune(config).out
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "hcnr_tune.json",
    }
    adapter = json.loads((out / "adapter_config.json").read_text())
    assert adapter["r"] == 4 and adapter["lora_alpha"] == 8.0 and len(adapter["target_modules"]) == 7
    assert mean_nll(out, rows, base=model) < 0.7 * mean_nll(model, rows)


def test_the_first_step_has_the_loss_of_the_untouched_model(tmp_path, rows) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    config = TuneConfig(model=model, data=rows, out=tmp_path / "out", steps=1, batch_size=6, warmup=0.0)
    assert tune(config).log.losses[0] == pytest.approx(mean_nll(model, rows), rel=1e-5)


def test_a_tied_head_stored_all_the_same_stays_tied(tmp_path, rows) -> None:
    model = write_tiny_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    weights = read_weights(model)
    write_weights(model, weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    out = tune(TuneConfig(model=model, data=rows, out=tmp_path / "out", learning_rate=0.01, **QUICK)).out
    after = read_weights(out)
    np.testing.assert_array_equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not np.array_equal(after["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_same_seed_same_bytes_and_microbatches_change_nothing_but_rounding(tmp_path, rows) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    outs = [
        tune(
            TuneConfig(model=model, data=rows, out=tmp_path / f"out{i}", learning_rate=1e-3, microbatch=m, **QUICK)
        ).out
        for i, m in enumerate((None, None, 2))
    ]
    one, two, three = (read_weights(out) for out in outs)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    for name in one:
        np.testing.assert_allclose(one[name], three[name], atol=2e-4)


def test_steps_follow_from_epochs_and_the_rate_from_the_kind() -> None:
    paths = {"model": "m", "data": "d", "out": "o"}
    assert train_settings(TuneConfig(**paths, epochs=2.5, batch_size=8), 100).steps == 32
    assert train_settings(TuneConfig(**paths), 100).learning_rate == 2e-5
    assert train_settings(TuneConfig(**paths, lora=8), 100).learning_rate == 2e-4
    assert train_settings(TuneConfig(**paths, steps=7, epochs=2.5), 100).steps == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"microbatch": 3}, "microbatch is 3, expected a divisor of batch_size"),
        ({"lora": 999}, "--lora 999: expected a rank from 1 to"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(tmp_path, rows, options: dict, words: str) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    with pytest.raises(InputError, match=words):
        tune(TuneConfig(model=model, data=rows, out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_output_in_the_model_or_taken_is_refused_before_any_work(tmp_path, rows) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    for out, words in ((model, "is the input"), (tmp_path, "not empty")):
        with pytest.raises(InputError, match=words):
            tune(TuneConfig(model=model, data=rows, out=out))


def test_an_adapter_is_not_where_training_starts(tmp_path, rows) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"MODEL .*adapter is a LoRA adapter, .* name its base, or merge it first"):
        tune(TuneConfig(model=tmp_path / "adapter", data=rows, out=tmp_path / "out", **QUICK))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rte"):
        TuneConfig(model="m", data="d", out="o", learning_rte=1.0)


def test_one_long_row_refuses_no_data_set(tmp_path) -> None:
    model = write_tiny_model(tmp_path / "model")
    long = {"prompt": "sky " * 40, "completion": " blue ."}
    rows = write_rows(tmp_path / "rows.jsonl", [*task_rows(6), long])
    given = {"model": model, "data": rows, "max_length": 24, **QUICK}
    result = tune(TuneConfig(**given, out=tmp_path / "out"))
    (warning,) = [text for text in result.warnings if "left out" in text]
    assert "line 7: 1 of 7 rows have a prompt that fills the limit of 24 tokens" in warning
    with pytest.raises(InputError, match=r"line 7: the prompt takes 41 tokens .* --long-rows drop"):
        tune(TuneConfig(**given, out=tmp_path / "other", long_rows="refuse"))
