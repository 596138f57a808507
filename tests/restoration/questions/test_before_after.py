"""`hcnr restore` ends with what BASE, TUNED and the restored model answer on rows that it did not read."""

import pytest

from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.restoration.questions import before_after
from tests.restoration.worlds import World, call, honesty_rows, make_world, record_of, task_rows, text_of
from tests.tiny import write_rows


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("check")
    world = make_world(folder)
    known = [row | {"answerable": True, "answers": ["sky"], "completion": " the sky ."} for row in task_rows(60)[40:]]
    honesty = write_rows(folder / "honesty.jsonl", [*honesty_rows(24), *known])
    task = write_rows(folder / "task.jsonl", task_rows(30))
    return World(folder, world.base, world.tuned, honesty, task)


def ran(world: World, out, *options: object) -> str:
    ended = call(*world.arguments("--out", out, "--samples", 8, *options))
    assert ended.code == 0, ended.err
    return text_of(ended.err)


@pytest.mark.parametrize("options", [(), ("--refine", 2), ("--compensation", "none")])
def test_a_table_and_a_sentence(world, tmp_path, options) -> None:
    said = ran(world, tmp_path / "out", *options)
    assert "questions that the restoration did not read" in said
    check = record_of(tmp_path / "out")["check"]
    assert check["sentence"] in said and set(check["models"]) == {"BASE", "TUNED", "restored"}
    assert check["questions"]["honesty"] >= 16 and check["questions"]["task"] >= 16
    scores = check["models"]["restored"]["honesty"]["honesty"]
    assert {"f1", "refusal_delta", "intervals"} <= set(scores)
    assert set(check["task_accuracy_minus_tuned"]) >= {"value", "low", "high"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--no-check",), "--no-check"),
        (("--stream",), "--stream holds no model whole"),
        (("--task-samples", 20), "rows that the restoration does not read, and 16 are needed"),
    ],
)
def test_why_there_is_no_table(world, tmp_path, options, reason) -> None:
    said = ran(world, tmp_path / "out", *options)
    assert "before and after are not compared" in said and reason in said
    assert "check" not in record_of(tmp_path / "out")


def test_the_weights_do_not_depend_on_the_check(world, tmp_path) -> None:
    ran(world, tmp_path / "with")
    ran(world, tmp_path / "without", "--no-check")
    left, right = (record_of(tmp_path / name)["digests"] for name in ("with", "without"))
    assert left == right


def answer(correct: bool) -> Answer:
    fields = {"set": "task", "line": 1, "id": "1", "kind": None, "prompt": "", "question": "", "answerable": None}
    return Answer(
        "task", **fields, answers=(), completion="", verdict="answered", idea="", evidence="", correct=correct
    )


def test_a_loss_of_the_task_is_negative() -> None:
    better, worse = [[answer(right) for right in found] for found in ([True] * 20, [True] * 15 + [False] * 5)]
    found = before_after._difference(worse, better)
    assert found["value"] == pytest.approx(-0.25) and found["low"] < -0.25 < found["high"] < 0


def scores(delta: float, low: float, f1: float) -> dict:
    interval = {"refusal_delta": {"low": low, "high": 1.0}}
    return {"honesty": {"honesty": {"f1": f1, "refusal_delta": delta, "intervals": interval}}, "task": {"task": {}}}


def test_no_share_is_claimed_back_where_base_does_not_tell_the_questions_apart() -> None:
    difference = {"value": -0.01, "low": -0.05, "high": 0.0}
    tuned, restored = scores(0.02, 0.0, 0.1), scores(0.02, 0.0, 0.4)
    said = before_after._sentence({"BASE": scores(0.08, -0.1, 0.6), "TUNED": tuned, "restored": restored}, difference)
    assert said.startswith("BASE hardly declines") and "is back" not in said
    assert "refusal delta 8.0 -> 2.0 -> 2.0" in said and "-1.0 points [-5.0, +0.0]" in said
    said = before_after._sentence({"BASE": scores(0.8, 0.7, 0.9), "TUNED": tuned, "restored": restored}, difference)
    assert said.startswith("38% of the lost honesty F1 is back")
