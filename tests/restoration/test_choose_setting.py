"""`hcnr restore --choose`: judged on rows that were not scored, written whole, refused early."""

import json
import shutil

import numpy as np
import pytest

from hcnr_jax.checkpoints import HFTensors
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.config import RestoreConfig
from hcnr_jax.data import normalise_question, parse_row
from hcnr_jax.errors import InputError, Stopped
from hcnr_jax.evaluate import question_of
from hcnr_jax.evaluate.score.best_setting import Choice, choose
from hcnr_jax.evaluate.score.measurement import METRICS
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration import choose_setting as choosing
from hcnr_jax.restoration import grid
from hcnr_jax.restoration.choose_setting import open_choice, settings_of
from hcnr_jax.restoration.inputs import open_inputs
from hcnr_jax.restoration.questions.held_out import held_out
from hcnr_jax.restoration.resume.signals import Stopping
from tests.restoration.resume.test_resume import result_of
from tests.restoration.worlds import call, make_world, record_of, restore, weights_of
from tests.tiny import honesty_rows, task_rows, write_rows

ROWS = 30
SCORES = dict.fromkeys(METRICS, 0.5)
CHOOSE = ("--choose", "task_accuracy >= -0.5pt")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("choose"))
    known = [row | {"completion": " the sky .", "answerable": True} for row in task_rows(ROWS)[ROWS // 2 :]]
    unlabelled = [{k: v for k, v in row.items() if k != "answerable"} for row in honesty_rows(ROWS // 2)]
    write_rows(world.honesty, [*unlabelled, *known])
    write_rows(world.task, [{k: v for k, v in row.items() if k != "answers"} for row in task_rows(ROWS)])
    return world


def judge(patch, place) -> None:
    """Three settings of equal scores, of which the one at `place` is taken, as another run's rounding might have it."""
    patch.setattr(choosing, "CROSS_WEIGHTS", (0.4,))
    patch.setattr(choosing, "TASK_WEIGHTS", (1.0, 4.0))
    patch.setattr(choosing, "_asked", lambda *arguments: SCORES)
    patch.setattr(choosing, "choose", lambda found, tuned, constraint: Choice(place, False))


def config_of(world, **values):
    paths = {"base": str(world.base), "tuned": str(world.tuned), "honesty": world.honesty, "task": world.task}
    return RestoreConfig(**paths | {"out": world.folder / "unwritten", "samples": 8} | values)


def test_the_rows_that_judge_are_not_the_scored_ones(world) -> None:
    inputs = open_inputs(config_of(world, choose="task_accuracy >= -0.5pt"), Reporter())
    opened = open_choice(inputs)
    scored = {normalise_question(question_of(item.row)) for item in [*inputs.honesty, *inputs.task]}
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("inputs", ["local", "propagated"])
def test_the_weights_that_were_judged_are_written(world, tmp_path, monkeypatch, inputs, dtype) -> None:
    asked = []
    judge(monkeypatch, 1)
    monkeypatch.setattr(choosing, "_asked", lambda inputs, opened, params: asked.append((inputs, params)) or SCORES)
    out = restore(world, tmp_path / "out", *CHOOSE, "--inputs", inputs, "--dtype", dtype, "--cross-weight", 0.4)
    inputs, params = asked[2]  # TUNED, the settings as given, then the one that is taken
    judged = HFTensors(params, inputs.spec, dict.fromkeys(tensor_names(inputs.spec), "F32"))
    for name, weights in weights_of(out).items():
        np.testing.assert_array_equal(judged[name], weights, err_msg=name)


def fail(patch, fails) -> None:
    """Solves explode for the settings that `fails` is true of."""
    checked = grid.checked

    def check(config, *arguments, **named):
        if fails(config):
            raise InputError("tensor t: the correction is 12 times the base kernel's norm")
        return checked(config, *arguments, **named)

    patch.setattr(grid, "checked", check)


@pytest.mark.parametrize("inputs", ["local", "propagated"])
def test_a_setting_that_fails_is_in_the_table_and_the_run_goes_on(world, tmp_path, monkeypatch, inputs) -> None:
    judge(monkeypatch, 0)
    monkeypatch.setattr(choosing, "choose", choose)
    fail(monkeypatch, lambda config: config.task_weight == 4.0)
    ended = call(*world.arguments("--out", tmp_path / "out", *CHOOSE, "--inputs", inputs))
    assert ended.code == 0, ended.err
    assert "cross_weight=0.4, task_weight=4 failed: tensor t: the correction is 12 times" in ended.err
    settings = record_of(tmp_path / "out")["choice"]["settings"]
    assert [item.get("failed", "").split(":")[0] for item in settings] == ["", "", "tensor t"]
    assert all(("honesty_f1" in item) != ("failed" in item) for item in settings)


def test_where_every_setting_fails_each_is_named(world, tmp_path, monkeypatch) -> None:
    judge(monkeypatch, 0)
    monkeypatch.setattr(choosing, "CROSS_WEIGHTS", (0.001,))
    monkeypatch.setattr(choosing, "TASK_WEIGHTS", (1.0,))
    fail(monkeypatch, lambda config: True)
    ended = call(*world.arguments("--out", tmp_path / "out", *CHOOSE))
    assert ended.code == 2 and "--choose: none of the 2 settings can be restored" in ended.err
    assert "[cross_weight=0.4, task_weight=2] tensor t: the correction is 12 times" in ended.err
    assert "[cross_weight=0.001, task_weight=1] " in ended.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--choose", "tasks >= 1"], "--choose 'tasks >= 1': unknown metric 'tasks'"),
        (["--choose", "task_accuracy >= -0.5"], 'a signed number needs a unit, `pt` or `%`: write "task_accuracy >='),
        (["--choose", "task_accuracy >= -1pt", "--stream"], "give one of the two"),
        (["--choose", "task_accuracy >= -1pt", "--mesh", "data=2"], "leave --mesh and --distributed out"),
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


# ---------------------------------------------------------------- what is chosen stays chosen


@pytest.fixture
def interrupted(world, tmp_path, monkeypatch):
    """(--out, work folder, what a whole run writes) of a run that took setting 1 and was stopped among its kernels."""
    out, work = tmp_path / "out", tmp_path / ".out.hcnr-work"

    def check(self) -> None:
        if any((work / "kernels").glob("[!.]*")):
            raise Stopped("stopped by SIGTERM", 143)

    with monkeypatch.context() as patch:
        judge(patch, 1)
        whole = result_of(restore(world, tmp_path / "whole", *CHOOSE))
        patch.setattr(Stopping, "check", check)
        ended = call(*world.arguments("--out", out, *CHOOSE))
    assert ended.code == 143, ended.err
    return out, work, whole


def test_a_choice_is_made_once_however_often_a_run_is_stopped(world, interrupted, monkeypatch) -> None:
    out, _, whole = interrupted
    judge(monkeypatch, 2)
    ended = call(*world.arguments("--out", out, *CHOOSE, "--resume"))
    assert ended.code == 0 and result_of(out) == whole, ended.err
    assert "choice, selection" in ended.err and "task_weight=1 <- taken" in ended.err, ended.err
    assert "kernels of the grid" not in ended.err, "no setting is tried again"
    record = record_of(out)
    assert record["config"]["task_weight"] == record["choice"]["chosen"]["task_weight"] == 1.0
    assert any("no setting holds" in warning for warning in record["warnings"])


def test_products_of_another_choice_are_refused_by_name(world, interrupted, monkeypatch) -> None:
    out, work, whole = interrupted
    (work / "choice.json").unlink()
    with monkeypatch.context() as patch:
        judge(patch, 2)
        ended = call(*world.arguments("--out", out, *CHOOSE, "--resume"))
    assert ended.code == 2 and "the selection in" in ended.err
    there, here = ("--cross-weight 0.4, --task-weight " + weight for weight in ("1.0", "4.0"))
    assert f"the setting that --choose took is {there} there, {here} here" in ended.err
    (work / "choice.json").unlink()
    judge(monkeypatch, 1)
    assert result_of(restore(world, out, *CHOOSE, "--resume")) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*CHOOSE, "--damping", 0.1), "--damping is 0.01 there, 0.1 here"),
        ((), "--choose is task_accuracy >= -0.5pt there, none here"),
    ],
)
def test_a_choice_of_other_options_is_refused_by_name(world, interrupted, options, message) -> None:
    out, work, _ = interrupted
    shutil.rmtree(work / "selection")
    for kernel in (work / "kernels").iterdir():
        kernel.unlink()
    ended = call(*world.arguments("--out", out, *options, "--resume"))
    assert ended.code == 2 and "the choice in" in ended.err and message in ended.err, ended.err


def test_a_damaged_choice_is_named(world, interrupted) -> None:
    out, work, _ = interrupted
    (work / "choice.json").write_text("{")
    ended = call(*world.arguments("--out", out, *CHOOSE, "--resume"))
    assert ended.code == 2 and "choice.json: cannot be read as a choice" in ended.err
