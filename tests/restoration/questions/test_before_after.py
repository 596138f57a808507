"""`hcnr restore` ends with what BASE, TUNED and the restored model answer on rows that it did not read."""

import pytest

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
