"""Rows, tokenizers and numbers that go wrong, through the command line: docs/faults.md 22 to 29."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.restoration.worlds import (
    World,
    call,
    copy_world,
    edit_json,
    edit_weights,
    kernels_of,
    make_world,
    neurons_of,
    record_of,
    refused,
    restore,
    same_bytes,
    text_of,
    weights_of,
)
from tests.tiny import CHAT_TEMPLATE, VOCABULARY, write_rows

LOCAL = ("--compensation", "exact", "--inputs", "local")
FILE_ORDER = ("--seed", "none")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("rows") / "in")


@pytest.fixture()
def world(original, tmp_path) -> World:
    return copy_world(original, tmp_path / "in")


@pytest.fixture()
def chat(tmp_path) -> World:
    """Rows of messages, and tokenizers with a chat template."""
    world = make_world(tmp_path / "in", chat_template=CHAT_TEMPLATE)
    for path in (world.honesty, world.task):
        turns = [("user", "prompt"), ("assistant", "completion")]
        write_rows(path, [{"messages": [{"role": r, "content": row[k]} for r, k in turns]} for row in read(path)])
    return world


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dry(world: World, *options: object) -> str:
    """What a run that is only planned says; it must not refuse."""
    ended = call(*world.arguments("--out", world.folder.parent / "out", "--dry-run", *options))
    assert ended.code == 0, ended.err
    return text_of(ended.err)


# ---------------------------------------------------------------- 22 to 25: rows and tokenizers

GOOD = b'{"prompt": "question :", "completion": " yes"}\n'

BAD_ROWS = {
    "an empty file": (b"", ["found an empty file"]),
    "no file": (None, ["no such file; check the path"]),
    "a malformed line": (GOOD + b'{"prompt": \n', ["line 2", "one JSON object on the line", "column"]),
    "not UTF-8": (GOOD + b'{"prompt": "\xff"}\n', ["line 2", "UTF-8", "0xff"]),
    "a missing field": (GOOD + b'{"prompt": "name"}\n', ["line 2", "field `completion` is missing", "`prompt`"]),
    "a wrong type": (GOOD + b'{"prompt": 3, "completion": "x"}\n', ["line 2", "field `prompt`", "found an integer 3"]),
    "an empty prompt": (b'{"prompt": " ", "completion": "x"}\n', ["line 1", "field `prompt`", "remove the row"]),
    "an empty completion": (b'{"prompt": "x", "completion": ""}\n', ["line 1", "field `completion`"]),
    "another shape": (b'{"question": "x"}\n', ["line 1", "unknown shape of row", "`question`"]),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", ["Git-LFS pointer", "git lfs pull"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("name", ["honesty", "task"])
def test_bad_rows(world, name, case) -> None:
    raw, words = BAD_ROWS[case]
    path = getattr(world, name)
    path.unlink()
    if raw is not None:
        path.write_bytes(raw)
    message = refused(world)
    assert all(word in message for word in [str(path), *words])


def test_byte_order_marks_and_windows_line_ends_change_nothing(original, world, tmp_path) -> None:
    for path in (world.honesty, world.task):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    left, right = (restore(w, tmp_path / f"out{i}", "--compensation", "none") for i, w in enumerate((original, world)))
    assert same_bytes(weights_of(left), weights_of(right))


def test_too_few_rows(world) -> None:
    message = refused(world, "--samples", 50)
    assert all(word in message for word in [str(world.honesty), "--samples asks for 50 rows", "the file has 12"])
    assert "--task-samples asks for 13 rows" in refused(world, "--task-samples", 13)
    assert "12 rows x" in dry(world, "--honesty-samples", 12)


def test_one_file_for_both(world, tmp_path) -> None:
    same = World(world.folder, world.base, world.tuned, world.task, world.task)
    assert all(word in refused(same) for word in ["--honesty and --task both name", str(world.task)])
    world.honesty.write_bytes(world.task.read_bytes())
    assert "hold the same bytes; give two different sets" in refused(world)


def test_repeats_and_overlap_are_warned_about(world) -> None:
    rows = read(world.honesty)
    write_rows(world.honesty, [rows[0], *rows[:7]])
    write_rows(world.task, [*read(world.task)[:7], rows[3]])
    words = dry(world, *FILE_ORDER)
    assert "warning: " in words and "1 duplicate row (line 2 repeats line 1)" in words
    assert "1 shared row (line 5 of the honesty data is line 8 of the task data)" in words


def test_a_row_without_a_completion_token_left(world) -> None:
    rows = read(world.task)
    rows[3]["prompt"] = "sky " * 40
    write_rows(world.task, rows)
    message = refused(world, "--max-length", 32)
    assert all(word in message for word in [f"{world.task}, line 4", "limit is 32", "--max-length", "remove the row"])
    rows[3]["prompt"] = "sky " * 130
    write_rows(world.task, rows)
    assert all(word in refused(world) for word in [f"{world.task}, line 4", "limit is 128", "the model's positions"])


def test_a_row_that_is_cut_is_warned_about(world) -> None:
    rows = read(world.task)
    rows[0]["completion"] = " sky" * 40
    write_rows(world.task, rows)
    assert f"warning: {world.task}, line 1: cut by " in dry(world, *FILE_ORDER, "--max-length", 32)


def test_chat_templates(chat) -> None:
    assert "6 of 14 kept" in dry(chat)
    edit_json(chat.tuned / "tokenizer_config.json", chat_template=CHAT_TEMPLATE.replace(" : ", " "))
    message = refused(chat)
    assert all(word in message for word in ["line ", str(chat.tuned), str(chat.base), "must share tokenizer"])
    edit_json(chat.tuned / "tokenizer_config.json", chat_template=None)
    message = refused(chat)
    assert all(word in message for word in ["needs a chat template", str(chat.tuned), "chat_template.jinja"])


def test_a_begin_token_written_in_the_prompt_is_not_doubled(original, world, tmp_path) -> None:
    for path in (world.honesty, world.task):
        write_rows(path, [row | {"prompt": "<s> " + row["prompt"]} for row in read(path)])
    left, right = (restore(w, tmp_path / f"out{i}", "--compensation", "none") for i, w in enumerate((original, world)))
    assert same_bytes(weights_of(left), weights_of(right))


def test_a_pad_token_that_is_the_end_token_hides_nothing(original, world, tmp_path) -> None:
    for folder in (world.base, world.tuned):
        edit_json(folder / "tokenizer_config.json", pad_token="</s>")
    left, right = (restore(w, tmp_path / f"out{i}", "--compensation", "none") for i, w in enumerate((original, world)))
    assert same_bytes(weights_of(left), weights_of(right))
    assert record_of(left)["rows"] == record_of(right)["rows"]


# ---------------------------------------------------------------- 26 to 29: numbers


def overflow_on(word: str):
    """Weights whose attention overflows on rows that hold `word`, and on no others.

    Channel 0 is that word's alone in the embeddings, and block 0 multiplies it by 1e30 in queries and keys.
    """

    def change(weights: dict) -> None:
        weights["model.embed_tokens.weight"][:, 0] = 0
        weights["model.embed_tokens.weight"][VOCABULARY.index(word), 0] = 1
        for name in ("q_proj", "k_proj"):
            weights[f"model.layers.0.self_attn.{name}.weight"][:, 0] = 1e30

    return change


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_a_row_whose_loss_is_not_finite(world, side, loss) -> None:
    rows = read(world.honesty)
    rows[5]["prompt"] = "question : assistant ? answer :"
    write_rows(world.honesty, rows)
    edit_weights(getattr(world, side), overflow_on("assistant"))
    message = refused(world, *FILE_ORDER, "--loss", loss)
    assert all(word in message for word in [f"{world.honesty}, line 6", "loss on this honesty row is nan", "finite"])


def test_a_task_row_whose_loss_is_not_finite(world) -> None:
    rows = read(world.task)
    rows[2]["prompt"] = "name assistant : answer :"
    write_rows(world.task, rows)
    edit_weights(world.tuned, overflow_on("assistant"))
    assert f"{world.task}, line 3: the model's loss on this task row is nan" in refused(world, *FILE_ORDER)


def dead_block(weights: dict) -> None:
    """Block 1's MLP writes nothing, so that its gate and up kernels have gradients of exactly 0."""
    weights["model.layers.1.mlp.down_proj.weight"][:] = 0


@pytest.mark.parametrize("priority", ["kl", "raw"])
def test_scores_of_zero_and_ties_are_handled(world, tmp_path, priority) -> None:
    """docs/faults.md 26 and 27: both scores 0 give a priority of 0, and the tie goes to the lower neurons."""
    edit_weights(world.tuned, dead_block)
    options = ("--compensation", "none", "--cross-weight", 1, "--priority", priority)
    out = restore(world, tmp_path / "out", *options)
    for name in ("gate_proj", "up_proj"):
        np.testing.assert_array_equal(neurons_of(out)[f"model.layers.1.mlp.{name}.weight"], np.arange(16))
    assert all(np.isfinite(line["perturbation"]) for line in kernels_of(out).values())


def test_no_damping_and_too_few_tokens(world) -> None:
    """docs/faults.md 28: singular moments stop the run, in the paper's form too; damping mends them."""
    for method in ("exact", "paper"):
        options = ("--compensation", method, "--inputs", "local", "--honesty-samples", 1, "--in-weight", 0.9)
        message = refused(world, *options, "--damping", 0)
        assert all(word in message for word in ["tensor model.layers.", "--damping", "0.01 is usual", "tokens"])


def test_no_damping_and_enough_tokens(world, tmp_path) -> None:
    lines = kernels_of(restore(world, tmp_path / "out", *LOCAL, "--damping", 0))
    assert all(line["residual"] < 1e-4 for line in lines.values() if line["kept"])


def test_dead_channels_are_handled(world, tmp_path) -> None:
    """Input channels that are always 0: their moments are 0, and damping carries them."""

    def silence(weights: dict) -> None:
        weights["model.layers.0.input_layernorm.weight"][:8] = 0

    for side in (world.base, world.tuned):
        edit_weights(side, silence)
    lines = kernels_of(restore(world, tmp_path / "out", *LOCAL, "--cross-weight", 1, "--priority", "random"))
    assert all(line["residual"] < 1e-4 for line in lines.values())


def test_a_correction_that_explodes(world) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    edit_weights(world.base, lambda weights: weights.update({name: weights[name] * np.float32(1e-4)}))
    message = refused(world, *LOCAL)
    assert all(word in message for word in [f"tensor {name}", "times the base kernel's norm", "raise --damping"])


def test_a_correction_that_overflows_float16(tmp_path) -> None:
    world, name = make_world(tmp_path / "in", dtype="float16"), "model.layers.0.self_attn.k_proj.weight"
    rng = np.random.default_rng(0)
    signs = np.sign(rng.standard_normal((16, 32)))
    edit_weights(world.base, lambda weights: weights.update({name: (signs * 6.5e4).astype(np.float16)}))
    tuned = signs * 6.5e4 * (1 - 0.8 * rng.random((16, 32)))
    edit_weights(world.tuned, lambda weights: weights.update({name: tuned.astype(np.float16)}))
    message = refused(world, *LOCAL)
    assert all(word in message for word in [f"tensor {name}", "overflows float16", "raise --damping"])


def test_a_swap_is_suspected(world, tmp_path) -> None:
    """Of a pair and the same pair exchanged, exactly one has a TUNED that fits the honesty rows better."""
    swapped = World(world.folder, world.tuned, world.base, world.honesty, world.task)
    outs = [restore(w, tmp_path / f"out{i}", "--compensation", "none") for i, w in enumerate((world, swapped))]
    said = [any("BASE and TUNED swapped" in warning for warning in record_of(out)["warnings"]) for out in outs]
    assert sorted(said) == [False, True]
