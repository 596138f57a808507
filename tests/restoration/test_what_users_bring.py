"""Folders, adapters and rows as other tools leave them: `hcnr restore` takes them, says what it did, and what it writes
loads in transformers, generates with padding and has the logits of the written weights."""

import gzip
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hcnr_jax.checkpoints import load_params, open_checkpoint
from hcnr_jax.models import Decoder, spec_from_config
from tests.checkpoints.test_lora import edit_config, write_adapter
from tests.checkpoints.test_lora import edit_weights as edit_adapter
from tests.data.test_chat import MISTRAL, NO_GENERATION
from tests.restoration.worlds import (
    World,
    call,
    copy_world,
    edit_json,
    make_world,
    record_of,
    refused,
    restore,
    text_of,
    weights_of,
)
from tests.tiny import CHAT_TEMPLATE, write_rows, write_tiny_model, write_tiny_tokenizer, write_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("users"), chat_template=CHAT_TEMPLATE)


@pytest.fixture
def own(world, tmp_path) -> World:
    return copy_world(world, tmp_path / "in")


def check_loads(out: Path) -> None:
    """transformers reads the folder, generates with padding, and has the logits of our own reader."""
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "left"
    batch = tokenizer(["what is the sky ?", "who ?"], return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=3, do_sample=False
        )
        tokens = np.arange(12)[None] % model.config.vocab_size
        logits = model(torch.tensor(tokens)).logits.numpy()
    assert made.shape[0] == 2
    checkpoint = open_checkpoint(out)
    spec = spec_from_config(checkpoint.config, "config.json")
    ours = Decoder(spec).apply({"params": load_params(checkpoint, spec)}, jnp.asarray(tokens))
    np.testing.assert_allclose(ours, logits, atol=1e-4)


def accepted(world: World, out: Path, *options: object) -> str:
    """A run that succeeds and whose output loads; returns what it printed."""
    ended = call(*world.arguments("--out", out, *options))
    assert ended.code == 0, ended.err
    check_loads(out)
    assert not (out / "adapter_config.json").exists()
    return text_of(ended.err)


def chat(rows: list[dict], system: str | None = None) -> list[dict]:
    """Plain rows as conversations."""
    first = [{"role": "system", "content": system}] if system else []
    turns = ([user(row["prompt"]), assistant(row["completion"].strip())] for row in rows)
    return [{"messages": [*first, *pair]} for pair in turns]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewrite(world: World, change) -> None:
    for path in (world.honesty, world.task):
        rows = change(rows_of(path))
        path.unlink()
        write_rows(path, rows)


# ---------------------------------------------------------------- rows and templates


@pytest.mark.parametrize("words", [1, 20], ids=["short answers", "long answers"])
def test_a_template_that_drops_the_system_text_once_answered(tmp_path, words) -> None:
    world = make_world(tmp_path / "in", "mistral", chat_template=MISTRAL)
    rewrite(world, lambda rows: chat([row | {"completion": row["completion"] * words} for row in rows], "I do know"))
    said = accepted(world, tmp_path / "out")
    assert "not the first tokens" not in said
    counts = record_of(tmp_path / "out")["rows"]
    assert all(np.isfinite(part["mean_loss"]) for part in counts.values())


def test_a_template_without_a_generation_prompt(tmp_path) -> None:
    world = make_world(tmp_path / "in", chat_template=NO_GENERATION)
    rewrite(world, chat)
    assert "the chat template has no generation prompt" in accepted(world, tmp_path / "out")


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


SHAPES = {
    "two lists": lambda prompt, answer: {"prompt": [user(prompt)], "completion": [assistant(answer)]},
    "content parts": lambda prompt, answer: {
        "messages": [user([{"type": "text", "text": prompt}]), assistant([{"type": "text", "text": answer}])]
    },
    "ShareGPT": lambda prompt, answer: {
        "conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    },
    "Alpaca": lambda prompt, answer: {"instruction": prompt, "input": "", "output": answer},
    "tools and options": lambda prompt, answer: {
        "messages": [user(prompt), assistant(answer)],
        "tools": [{"name": "look"}],
        "chat_template_kwargs": {"enable_thinking": False},
    },
}


@pytest.fixture(scope="module")
def chat_weights(world, tmp_path_factory) -> dict[str, np.ndarray]:
    """What the rows as messages restore."""
    own = copy_world(world, tmp_path_factory.mktemp("messages") / "in")
    rewrite(own, chat)
    return weights_of(restore(own, own.folder.parent / "out"))


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_other_tools_restore_the_same_model(own, chat_weights, tmp_path, shape) -> None:
    rewrite(own, lambda rows: [SHAPES[shape](row["prompt"], row["completion"].strip()) for row in rows])
    accepted(own, tmp_path / "out")
    found = weights_of(tmp_path / "out")
    assert all(np.array_equal(found[name], value) for name, value in chat_weights.items())


@pytest.mark.parametrize("kind", ["parquet", "gzip", "array"])
def test_files_of_other_formats_restore_the_same_model(own, chat_weights, tmp_path, kind) -> None:
    for path in (own.honesty, own.task):
        rows = chat(rows_of(path))
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif kind == "gzip":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        else:
            path.write_text(json.dumps(rows))
    found = weights_of(restore(own, tmp_path / "out"))
    assert all(np.array_equal(found[name], value) for name, value in chat_weights.items())


@pytest.mark.parametrize("choice", ["drop", "cut"])
def test_one_long_row_is_left_out_and_replaced(own, tmp_path, choice) -> None:
    def change(rows):
        return [row | {"prompt": "sky " * 60} if i == 3 else row for i, row in enumerate(rows)]

    rewrite(own, change)
    options = ["--max-length", "32", "--samples", "11", "--seed", "none"]
    assert "so no completion token is left" in refused(own, *options)
    said = accepted(own, tmp_path / "out", *options, "--long-rows", choice)
    assert "line 4: 1 of 12 rows" in said and record_of(tmp_path / "out")["rows"]["task"]["count"] == 11
    assert "fit --max-length 32" in refused(own, *options[:2], "--samples", "12", "--long-rows", choice)


def test_a_template_with_the_date_resumes_on_another_day(own, tmp_path, monkeypatch) -> None:
    """The run is stopped after its scores, and goes on as if it were still the first day."""
    import datetime

    from hcnr_jax.data import chat as chat_module
    from hcnr_jax.restoration.resume import run_folder

    dated = "{{ strftime_now('what is the %A %d ? ') }}" + CHAT_TEMPLATE
    for folder in (own.base, own.tuned):
        (folder / "chat_template.jinja").write_text(dated)
        edit_json(folder / "tokenizer_config.json", chat_template=None)
    rewrite(own, chat)

    class Day(datetime.datetime):
        day_of = 1

        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2026, 1, cls.day_of)

    monkeypatch.setattr(run_folder.datetime, "datetime", Day)
    whole = weights_of(restore(own, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        import hcnr_jax.restoration.run

        patch.setattr(hcnr_jax.restoration.run, "correct", lambda *a, **k: 1 / 0)
        assert call(*own.arguments("--out", tmp_path / "out")).code == 1
    Day.day_of = 2
    found = weights_of(restore(own, tmp_path / "out", "--resume"))
    assert all(np.array_equal(found[name], value) for name, value in whole.items())
    assert record_of(tmp_path / "out")["template_date"] == "2026-01-01T00:00:00"
    assert call(*own.arguments("--out", tmp_path / "out", "--resume")).code == 0, "already there"
    chat_module.set_date(datetime.datetime(2026, 1, 1))


# ---------------------------------------------------------------- folders


def leave_adapter_config(world: World) -> None:
    (world.tuned / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "base_model_name_or_path": "x"})
    )


def leave_index(world: World) -> None:
    names = dict.fromkeys(weights_of(world.tuned), "model-00001-of-00002.safetensors")
    (world.tuned / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def leave_training(world: World) -> None:
    for name in ("pytorch_model_fsdp_0/a", "optimizer_0/a", "global_step10/a", "runs/a", "wandb/a", "checkpoint-5/a",
                 "trainer_state.json", "rng_state_0.pth", "training_args.bin", "zero_to_fp32.py"):  # fmt: skip
        (world.tuned / name).parent.mkdir(exist_ok=True)
        (world.tuned / name).write_text("x")


def put_prefix(world: World) -> None:
    weights = weights_of(world.tuned)
    (world.tuned / "model.safetensors").unlink()
    write_weights(world.tuned, {f"module._orig_mod.{name}": value for name, value in weights.items()})


def leave_keys(world: World) -> None:
    edit_json(world.tuned / "config.json", unk_token_id=0, _model_name_or_path="x", pad_token_id=2)


FOLDERS = {
    "an adapter's config beside whole weights": (leave_adapter_config, "adapter_config.json beside whole weights"),
    "a stale index": (leave_index, "model.safetensors.index.json is stale"),
    "a trainer's leftovers": (leave_training, "10 files and folders of TUNED that are not part of a model"),
    "prefixes of wrappers": (put_prefix, "the prefixes `module.` and `_orig_mod.` of training wrappers"),
    "a converter's keys": (leave_keys, ""),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_with_leftovers(world, own, tmp_path, case) -> None:
    spoil, told = FOLDERS[case]
    spoil(own)
    said = accepted(own, tmp_path / "out")
    assert told in said
    expected = {path.name for path in world.tuned.iterdir()}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written - expected <= {"hcnr.json", "hcnr.patch.safetensors", "model.safetensors.index.json", "README.md"}


def test_a_quantization_config_over_plain_weights_names_the_key(own) -> None:
    edit_json(own.tuned / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    said = text_of(refused(own))
    assert "tensors are plain F32; remove the key `quantization_config`" in said


def test_a_window_that_no_row_reaches(tmp_path) -> None:
    world = make_world(tmp_path / "in", "mistral", sliding_window=100)
    edit_json(world.tuned / "config.json", sliding_window=None)
    values = json.loads((world.tuned / "config.json").read_text()) | {"sliding_window": None}
    (world.tuned / "config.json").write_text(json.dumps(values))
    assert "sliding_window differs (100 in" in accepted(world, tmp_path / "out")
    edit_json(world.base / "config.json", sliding_window=5)
    assert "sliding_window (with use_sliding_window and layer_types) is 5 in" in text_of(refused(world))


# ---------------------------------------------------------------- adapters


def with_adapter(world: World, **options) -> World:
    folder = world.folder / "adapter"
    write_adapter(world.base, folder, **options)
    return World(world.folder, world.base, folder, world.honesty, world.task)


def test_an_adapter_over_a_resized_embedding(own, tmp_path) -> None:
    run = with_adapter(own)
    head = np.resize(weights_of(own.base)["lm_head.weight"], (70, 32)).astype("f4")
    edit_adapter(run.tuned, lambda weights: weights.update({"base_model.model.lm_head.weight": head}))
    said = accepted(run, tmp_path / "out", "--output", "model")
    assert "model.resize_token_embeddings(70); model.save_pretrained(NEW_BASE)" in said


def test_an_adapter_that_names_another_base(own, tmp_path) -> None:
    run = with_adapter(own)
    edit_config(run.tuned, base_model_name_or_path="org/other-8B")
    assert "the adapter was trained on org/other-8B, and BASE is" in accepted(
        run, tmp_path / "out", "--output", "model"
    )


def empty(weights) -> None:
    weights.update({name: np.zeros(0, "f4") for name in weights if "lora_B" in name})


def compiled(weights) -> None:
    weights.update({f"_orig_mod.{name}": weights.pop(name) for name in list(weights)})


@pytest.mark.parametrize(("spoil", "told"), [(empty, "gather the weights before saving"), (compiled, None)])
def test_adapters_of_real_trainers(own, tmp_path, spoil, told) -> None:
    run = with_adapter(own)
    edit_adapter(run.tuned, spoil)
    if told is None:
        accepted(run, tmp_path / "out", "--output", "model")
    else:
        assert told in text_of(refused(run)) and "wrong base" not in refused(run)


def test_a_tied_base_and_an_adapted_head(tmp_path) -> None:
    world = make_world(tmp_path / "in", tie_word_embeddings=True)
    untied = write_tiny_model(tmp_path / "untied")
    write_adapter(untied, world.folder / "adapter", target_modules=["lm_head", "q_proj"])
    run = World(world.folder, world.base, world.folder / "adapter", world.honesty, world.task)
    assert "ties its head to the embedding" in text_of(refused(run))


def test_an_adapters_own_tokenizer_gives_template_and_end_token(own, tmp_path) -> None:
    (own.base / "additional_chat_templates").mkdir()
    (own.base / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    run = with_adapter(own)
    write_tiny_tokenizer(run.tuned, CHAT_TEMPLATE)
    edit_json(run.tuned / "tokenizer_config.json", eos_token="king")
    end = transformers.AutoTokenizer.from_pretrained(run.tuned).eos_token_id
    rewrite(run, chat)
    said = accepted(run, tmp_path / "out", "--output", "model")
    assert "the adapter's tokenizer" in said and "has another chat template or end token than BASE's" in said
    assert not (tmp_path / "out" / "additional_chat_templates").exists()
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert end in stops and 2 in stops
