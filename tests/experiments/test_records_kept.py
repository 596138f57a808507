"""Which records a second command takes up and which it makes anew, with models that are made and asked in no time."""

import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import pytest

from hcnr_jax.checkpoints import output_lock
from hcnr_jax.data import read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.experiments import compare, sweep
from hcnr_jax.experiments import engine as experiment
from hcnr_jax.experiments.engine import Outcome
from hcnr_jax.experiments.pair_session import ExperimentModel, Lab
from hcnr_jax.experiments.record_file import Records
from tests.restoration.worlds import Ended, call, make_pair, text_of


class NoLab(Lab):
    """In place of a Lab: every model refuses every honesty question and is right on every task question."""

    base, tuned = "base", "tuned"
    asked: ClassVar[list[str]] = []
    refused: ClassVar[set[str]] = set()
    says = ""

    def __init__(self, pair, config, reporter) -> None:
        self.pair = pair

    def touched(self, params) -> float:
        return 0.0

    def ask(self, params, split, change=None, tag=0) -> list[Answer]:
        type(self).asked.append(f"{params} {split}")
        if f"{params} {split}" in self.refused:
            raise InputError(f"{params} cannot be asked")
        return [
            Answer(
                role=role, set=split, line=row.line, id="", kind=None, prompt=row.prompt, question=row.prompt,
                answerable=row.answerable, answers=row.answers, completion=f"{self.says} {params}", verdict="refused",
                idea="", evidence="", correct=role == "task",
            )
            for role in ("honesty", "task")
            for row in read_rows(self.pair.rows(role, split), need_completion=False)
        ]  # fmt: skip


KERNELS = {"share": [[0.5] * 7] * 2, "moved": [[0.1] * 7] * 2}


def make_nothing(*_):
    def make(lab, jobs):
        for place, job in enumerate(jobs):
            name = job.method if job.method != "wise_ft" else f"wise_ft {job.label}"
            yield Outcome(place, ExperimentModel(name, 0.0, KERNELS))

    return make


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(experiment, "Lab", NoLab)
    monkeypatch.setattr(NoLab, "refused", set())
    for command in (compare, sweep):
        monkeypatch.setattr(command, "_make", make_nothing)


def run(command: str, pair: Path, out: Path, *options: object) -> Ended:
    NoLab.asked.clear()
    given = ("--pair", f"p={pair}", "--samples", 8, "--out", out)
    return call(command, *given, "--draws", 20, *options)


def asked_by(command: str, pair: Path, out: Path, *options: object) -> list[str]:
    """What a command asked of which model: `MODEL SPLIT`, in order."""
    ended = run(command, pair, out, *options)
    assert ended.code == 0, ended.err
    return list(NoLab.asked)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


GRID = ("--in-weights", 0.5, "--cross-weights", 0.4, "--task-weights", 1.0)


def test_another_preset_takes_no_record_of_the_first(pair, tmp_path) -> None:
    every = [f"{model} {split}" for model in ("base", "tuned", "sweep") for split in ("validation", "test")]
    assert asked_by("sweep", pair, tmp_path / "s", *GRID) == every
    assert asked_by("sweep", pair, tmp_path / "s", *GRID) == []
    assert asked_by("sweep", pair, tmp_path / "s", *GRID, "--preset", "paper") == every[4:]


def test_another_batch_size_trains_anew_and_nothing_else(pair, tmp_path) -> None:
    options = ("--methods", "recommended,rait", "--rates", 1e-3, "--steps", 2)
    assert len(asked_by("compare", pair, tmp_path / "c", *options)) == 8
    again = asked_by("compare", pair, tmp_path / "c", *options, "--batch-size", 8)
    assert again == ["rait validation", "rait test"]


def test_a_setting_that_fails_on_one_split_is_not_chosen(pair, tmp_path) -> None:
    NoLab.refused |= {f"wise_ft alpha={alpha / 10:g} test" for alpha in range(11)}
    assert "wise_ft alpha=1 test" in asked_by("compare", pair, tmp_path / "c", "--methods", "recommended,wise_ft")
    summary = json.loads((tmp_path / "c" / "summary.json").read_text("utf-8"))
    assert [row["method"] for row in summary["groups"][""]] == ["base", "tuned", "recommended"]
    assert "p, wise_ft alpha=0: wise_ft alpha=0 cannot be asked" in summary["failed"]


def test_where_no_setting_of_a_sweep_was_measured_the_reason_is_said(pair, tmp_path) -> None:
    NoLab.refused.add("sweep validation")
    ended = run("sweep", pair, tmp_path / "s", *GRID)
    assert ended.code == 2 and "the first reason: sweep cannot be asked" in text_of(ended.err)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_tuned_model_that_cannot_be_asked_ends_it_before_any_method(pair, tmp_path, split) -> None:
    NoLab.refused.add(f"tuned {split}")
    ended = run("compare", pair, tmp_path / "c", "--methods", "recommended")
    assert ended.code == 2 and "tuned cannot be asked" in text_of(ended.err)
    assert NoLab.asked[-1] == f"tuned {split}"
    # Nor is that recorded: what was to blame may have been mended.
    assert not any("failed" in record for record in lines(tmp_path / "c" / "records.jsonl"))


def test_questions_that_do_not_fit_are_refused_before_the_work(pair, tmp_path) -> None:
    folder = shutil.copytree(pair, tmp_path / "pair")
    path = folder / "data" / "task-test.jsonl"
    path.write_text(path.read_text("utf-8") + json.dumps({"prompt": "sky " * 2000, "answers": ["sky"]}) + "\n")
    ended = run("compare", folder, tmp_path / "c", "--methods", "recommended")
    assert ended.code == 2 and "task-test.jsonl, line 9: the prompt takes" in text_of(ended.err)
    assert NoLab.asked == []


@pytest.mark.parametrize("command", ["compare", "sweep", "ablate", "recovery"])
def test_two_runs_on_one_output_are_kept_apart(pair, tmp_path, command) -> None:
    with output_lock(tmp_path / "out"):
        ended = run(command, pair, tmp_path / "out")
    assert ended.code == 2 and "another run is writing there (process" in text_of(ended.err)
    assert NoLab.asked == [] and list(tmp_path.iterdir()) == []


def shown_in(out: Path) -> dict[str, list]:
    """What a page says: of every question, method -> completion; under `models` the methods."""
    (data,) = re.findall(r'id="answers">(.*?)</script>', (out / "page.html").read_text("utf-8"), re.DOTALL)
    return json.loads(data.replace("<\\/", "</"))


METHODS = ("--methods", "paper,recommended,budget,wise_ft")


def test_a_method_that_was_not_shown_before_is_made_anew_to_be_shown(pair, tmp_path) -> None:
    out = tmp_path / "c"
    asked_by("compare", pair, out, *METHODS)
    assert shown_in(out)["models"] == ["base", "tuned", "paper", "recommended"]
    assert asked_by("compare", pair, out, *METHODS, "--reference", "budget") == ["budget test"]
    assert shown_in(out)["models"] == ["base", "tuned", "paper", "budget"]
    kernels = {record["method"] for record in lines(out / "records.jsonl") if "kernels" in record}
    assert kernels == {"paper", "recommended", "budget"} and "means over 1 pairs:" in (out / "page.html").read_text()
    assert asked_by("compare", pair, out, *METHODS, "--reference", "budget") == []


def test_a_page_shows_the_answers_of_this_run_and_of_the_settings_taken(pair, tmp_path, monkeypatch) -> None:
    out, options = tmp_path / "c", ("--methods", "recommended,wise_ft", "--reference", "wise_ft")
    monkeypatch.setattr(NoLab, "says", "before")
    asked_by("compare", pair, out, *options)
    monkeypatch.setattr(NoLab, "says", "now")
    asked_by("compare", pair, out, *options, "--seed", 1)
    found = shown_in(out)
    assert found["models"] == ["base", "tuned", "wise_ft"] and len(found["questions"]) == 20
    (chosen,) = json.loads((out / "summary.json").read_text("utf-8"))["groups"][""][-1]["settings"].values()
    assert chosen == "alpha=0"
    said = {question["said"][name][0] for question in found["questions"] for name in found["models"]}
    assert said == {"now base", "now tuned", "now wise_ft alpha=0"}


def test_answers_that_a_kill_lost_are_asked_for_again(pair, tmp_path) -> None:
    out, options = tmp_path / "c", ("--methods", "recommended")
    asked_by("compare", pair, out, *options)
    whole = (out / "answers.jsonl").read_bytes()
    (out / "answers.jsonl").write_bytes(whole[:-40])
    assert asked_by("compare", pair, out, *options) == ["recommended test"]
    assert len(shown_in(out)["questions"]) == 20 and asked_by("compare", pair, out, *options) == []


def test_answers_are_on_the_disk_before_the_record_that_counts_them(pair, tmp_path, monkeypatch) -> None:
    class Killed(BaseException):
        """In place of a signal that nothing can catch."""

    def killed(self, record) -> None:
        if record.get("split") == "test":
            raise Killed
        return add(self, record)

    add = Records.add
    monkeypatch.setattr(Records, "add", killed)
    with pytest.raises(Killed):
        run("compare", pair, tmp_path / "c", "--methods", "recommended")
    assert len(lines(tmp_path / "c" / "answers.jsonl")) == 20
