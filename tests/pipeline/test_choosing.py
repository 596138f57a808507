"""`hcnr restore --choose`: judged on rows that were not scored, written whole, refused early."""

import json

import pytest

from hcnr_jax.config import RestoreConfig
from hcnr_jax.data import normalise_question, parse_row
from hcnr_jax.evaluate import question_of
from hcnr_jax.pipeline import choosing
from hcnr_jax.pipeline.choosing import held_out, open_choice, settings_of
from hcnr_jax.pipeline.console import Reporter
from hcnr_jax.pipeline.prepare import prepare
from tests.pipeline.worlds import call, make_world
from tests.tiny import honesty_rows, task_rows, write_rows

ROWS = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("choose"))
    known = [row | {"completion": " the sky .", "answerable": True} for row in task_rows(ROWS)[ROWS // 2 :]]
    unlabelled = [{k: v for k, v in row.items() if k != "answerable"} for row in honesty_rows(ROWS // 2)]
    write_rows(world.honesty, [*unlabelled, *known])
    write_rows(world.task, [{k: v for k, v in row.items() if k != "answers"} for row in task_rows(ROWS)])
    return world


def config_of(world, **values):
    paths = {"base": str(world.base), "tuned": str(world.tuned), "honesty": world.honesty, "task": world.task}
    return RestoreConfig(**paths | {"out": world.folder / "unwritten", "samples": 8} | values)


def test_the_rows_that_judge_are_not_the_scored_ones(world) -> None:
    prepared = prepare(config_of(world, choose="task_accuracy >= -0.5pt"), Reporter())
    opened = open_choice(prepared)
    scored = {normalise_question(question_of(item.row)) for item in [*prepared.honesty, *prepared.task]}
    asked = {normalise_question(prompt.question) for prompt in opened.prompts}
    assert asked and not asked & scored
    honesty, task = ([p for p in opened.prompts if p.role == role] for role in ("honesty", "task"))
    # A refusal without a label counts as unanswerable, a task row without answers by its completion.
    assert {prompt.row.answerable for prompt in honesty} == {True, False}
    assert all(not p.row.answerable for p in honesty if "know" in p.row.completion)
    assert all(prompt.row.answers == (prompt.row.completion.strip(),) for prompt in task)


def test_repeated_questions_judge_once() -> None:
    rows = [
        parse_row({"prompt": text, "completion": " x"}, "f", i) for i, text in enumerate(("a ?", "b ?", "A?", "c ?"))
    ]
    assert [row.prompt for row in held_out(rows, rows[1:2], None)] == ["a ?", "c ?"]


def test_the_grid_has_the_settings_as_given_first() -> None:
    config = RestoreConfig(base="b", tuned="t", honesty="h", task="k", out="o", task_weight=3.0)
    grid = settings_of(config)
    assert grid[0] == {"cross_weight": 1.0, "task_weight": 3.0} and len(grid) == 11
    plain = settings_of(config.model_copy(update={"compensation": "exact", "cross_weight": 0.4}))
    assert [setting["cross_weight"] for setting in plain] == [0.4, 0.2, 0.3, 0.6, 1.0]


def test_the_choice_is_written_with_its_whole_table(world, monkeypatch) -> None:
    monkeypatch.setattr(choosing, "CROSS_WEIGHTS", (0.4,))
    monkeypatch.setattr(choosing, "TASK_WEIGHTS", (1.0, 4.0))
    out = world.folder / "out"
    ended = call(*world.arguments("--out", out, "--choose", "task_accuracy >= -0.5pt", "--cross-weight", 0.4))
    assert ended.code == 0, ended.err
    record = json.loads((out / "hcnr.json").read_text())
    choice = record["choice"]
    assert [item["setting"]["task_weight"] for item in choice["settings"]] == [2.0, 1.0, 4.0]
    assert choice["chosen"] in [item["setting"] for item in choice["settings"]]
    assert record["config"]["task_weight"] == choice["chosen"]["task_weight"]
    assert set(choice["tuned"]) >= {"honesty_f1", "task_accuracy"} and choice["questions"]["task"] >= 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--choose", "tasks >= 1"], "--choose 'tasks >= 1': unknown metric 'tasks'"),
        (["--choose", "task_accuracy >= -0.5"], 'a signed number needs a unit, `pt` or `%`: write "task_accuracy >='),
        (["--choose", "task_accuracy >= -1pt", "--stream"], "give one of the two"),
        (["--choose", "task_accuracy >= -1pt", "--samples", "28"], "rows beside the 28 that are scored"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_the_work(world, options, message) -> None:
    ended = call(*world.arguments("--out", world.folder / "no", *options))
    assert ended.code == 2 and message in " ".join(ended.err.split())
    assert not (world.folder / "no").exists()


def test_the_constraint_is_said_and_rows_of_one_kind_are_warned_about(world, tmp_path) -> None:
    options = ("--dry-run", "--out", tmp_path / "no", "--choose")
    ended = call(*world.arguments(*options, "task_accuracy >= -0.5pt"))
    said = " ".join(ended.err.split())
    assert ended.code == 0 and "no answerable row" not in said
    assert "--choose: the highest honesty_f1 with task_accuracy at most 0.5 points below TUNED's" in said
    refusals = write_rows(tmp_path / "h.jsonl", honesty_rows(ROWS))
    ended = call(*world.arguments("--honesty", refusals, *options, "task_accuracy >= -0.5pt"))
    assert ended.code == 0 and "has no answerable row to judge over-refusal with" in " ".join(ended.err.split())
    ended = call(*world.arguments("--honesty", refusals, *options, "over_refusal <= 5%"))
    assert ended.code == 2 and "so that over_refusal cannot be measured" in " ".join(ended.err.split())
