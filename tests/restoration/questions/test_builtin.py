"""`hcnr restore` without honesty rows: BASE writes them, beside the output, from the built-in questions."""

import json

import pytest

from hcnr_jax.data.builtin import questions
from hcnr_jax.evaluate.ask import own_words
from hcnr_jax.restoration.questions.builtin import rows_path
from tests.restoration.worlds import World, call, make_world, record_of, task_rows, text_of
from tests.tiny import write_rows

ANSWERS = {item.question: item.answers for split in ("train", "test") for item in questions(split)}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("builtin")
    world = make_world(folder, max_position_embeddings=512)
    return World(folder, world.base, world.tuned, world.honesty, write_rows(folder / "task.jsonl", task_rows(40)))


@pytest.fixture
def rounds(monkeypatch) -> list[int]:
    """Let BASE say what is right; the list holds the sizes of the rounds in which it is asked."""
    found: list[int] = []

    def texts(model, prompts, max_new_tokens, *, microbatch=None, events=None):
        found.append(len(prompts))
        return [ANSWERS[prompt.question][0] if prompt.answerable else "I do not know ." for prompt in prompts]

    monkeypatch.setattr(own_words, "own_texts", texts)
    return found


def arguments(world: World, out, *options: object) -> list[object]:
    rows = ("--samples", 8, "--max-length", 400, "--long-rows", "drop")
    return ["restore", world.base, world.tuned, "--task", world.task, "--out", out, *rows, *options]


def test_base_writes_the_rows_and_the_built_in_test_questions_judge(world, tmp_path, rounds) -> None:
    out = tmp_path / "new" / "out"
    ended = call(*arguments(world, out))
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in rows_path(out).read_text().splitlines()]
    assert len(rows) == 8 and sum(row["answerable"] for row in rows) == 4
    assert all(row["id"].startswith("builtin/train/") for row in rows)
    said, record = text_of(ended.err), record_of(out)
    assert "BASE declines 100% of the built-in questions without an answer and 0% of those with one" in said
    assert record["config"]["honesty"] == str(rows_path(out)) and record["check"]["from"] == "builtin"
    assert record["check"]["questions"]["honesty"] == 100
    card = (out / "README.md").read_text()
    assert "built into hcnr_jax" in card and "--honesty" not in card
    assert (out / "report.html").is_file()


def test_resume_uses_the_rows_again(world, tmp_path, rounds) -> None:
    out = tmp_path / "out"
    first = call(*arguments(world, out, "--dry-run"))
    assert first.code == 0 and "nothing but the honesty rows was written" in text_of(first.err)
    asked = len(rounds)
    again = call(*arguments(world, out, "--no-check", "--resume"))
    assert again.code == 0 and "which BASE wrote before" in text_of(again.err)
    assert len(rounds) == asked


def test_rows_to_judge_with_are_asked_for_where_settings_are_chosen(world, tmp_path, rounds) -> None:
    out = tmp_path / "out"
    assert call(*arguments(world, out, "--choose", "task_accuracy >= -100pt", "--samples", 20, "--dry-run")).code == 0
    assert len(rows_path(out).read_text().splitlines()) == 40


@pytest.mark.parametrize(
    ("options", "word"),
    [(("--stream",), "--stream"), (("--mesh", "data=2"), "--mesh")],
)
def test_base_is_asked_on_one_device_alone(world, tmp_path, options, word) -> None:
    ended = call(*arguments(world, tmp_path / "out", *options))
    assert ended.code == 2
    assert word in ended.err and "hcnr data builtin --model BASE" in text_of(ended.err)


def test_what_is_wrong_is_said_before_base_is_asked(world, tmp_path, rounds) -> None:
    (tmp_path / "out.honesty.jsonl").write_text('{"prompt": "mine", "completion": " yes"}\n')
    ended = call(*arguments(world, tmp_path / "out"))
    assert ended.code == 2 and "holds other rows" in text_of(ended.err)
    ended = call("restore", world.base, world.tuned, "--task", tmp_path / "none", "--out", tmp_path / "other")
    assert ended.code == 2 and str(tmp_path / "none") in text_of(ended.err)
    assert rounds == []


def test_a_model_with_few_positions_is_refused(tmp_path, rounds) -> None:
    world = make_world(tmp_path / "in")
    ended = call("restore", world.base, world.tuned, "--task", world.task, "--out", tmp_path / "out")
    assert ended.code == 2 and "give honesty rows of your own with --honesty" in text_of(ended.err)
    assert rounds == []
