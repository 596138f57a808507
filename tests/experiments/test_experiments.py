"""compare, ablate and sweep from the command line on one tiny pair: what they write, and that they go on."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hcnr_jax.baselines import BASELINES
from hcnr_jax.experiments import ablation_table as ablation_rows
from hcnr_jax.experiments import engine as experiment
from hcnr_jax.restoration import score as scoring
from tests.restoration.worlds import call, make_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


METHODS = "recommended,wise_ft,safe_delta,rait_mixed,in_context"


@pytest.fixture(scope="module")
def compared(pair, tmp_path_factory):
    """One comparison of a method of every kind."""
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = ["--pair", f"tiny={pair}", "--samples", 8, "--draws", 50, "--methods", METHODS, "--rates", 0.001]
    command = ["compare", *arguments, "--steps", 2, "--batch-size", 4, "--max-new-tokens", 4, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS.split(","):
            patch.setitem(BASELINES, name, replace(BASELINES[name], grid=BASELINES[name].grid[:6:5]))
        ended = call(*command)
        assert ended.code == 0, ended.err
        yield command, out


def test_every_method_is_recorded_on_both_splits(compared) -> None:
    _, out = compared
    records = lines(out / "records.jsonl")
    names = {record["method"] for record in records}
    assert names == {"base", "tuned", *METHODS.split(",")}
    assert {record["split"] for record in records} == {"validation", "test"}
    by_name = {(r["method"], r["label"]): r for r in records if r["split"] == "test" and "failed" not in r}
    assert by_name["tuned", "as it is"]["touched"] == 0 and by_name["wise_ft", "alpha=0.5"]["touched"] > 0
    assert by_name["wise_ft", "alpha=0"]["bits"] == by_name["base", "as it is"]["bits"]
    assert by_name["recommended", "as it is"]["samples"] == 16 and by_name["wise_ft", "alpha=0"]["samples"] == 0


def test_tables_summary_and_answers_are_there(compared) -> None:
    _, out = compared
    summary = json.loads((out / "summary.json").read_text())
    rows = {row["method"]: row for row in summary["groups"][""]}
    assert rows["recommended"]["difference"]["honesty_f1"]["mean"] == 0 and "equal_task" in rows["wise_ft"]
    kernels = {r["method"]: r["kernels"] for r in lines(out / "records.jsonl") if "kernels" in r}
    assert set(kernels) == {"recommended"} and np.shape(kernels["recommended"]["moved"]) == (2, 7)
    assert np.allclose(kernels["recommended"]["share"], 0.5)  # every kernel is kept, half of its neurons
    assert (out / "neurons.png").exists() and "Which neurons are restored" in (out / "page.html").read_text()
    text = (out / "tables.md").read_text()
    assert all(f"| {name}" in text for name in METHODS.split(","))
    answers = lines(out / "answers.jsonl")
    assert {answer["method"] for answer in answers} == {"base", "tuned", "recommended"}
    assert len({answer["key"] for answer in answers}) == len(answers)


def test_a_second_run_makes_nothing_again(compared, monkeypatch) -> None:
    command, out = compared
    before = (out / "records.jsonl").read_bytes()
    monkeypatch.setattr(experiment, "Lab", None)
    assert call(*command).code == 0
    assert (out / "records.jsonl").read_bytes() == before


def test_ablations_of_the_paper(pair, tmp_path, monkeypatch) -> None:
    group = ablation_rows.GROUPS["paper"]._replace(rows=ablation_rows.GROUPS["paper"].rows[:4])
    other = tuple(ablation_rows.Ablation(f"{{rows}} rows: {size}", {"samples": size}) for size in (8, 12, 16))
    sizes = ablation_rows.GROUPS["data"]._replace(rows=(ablation_rows.GROUPS["data"].rows[0], *other))
    monkeypatch.setattr(ablation_rows, "GROUPS", {"paper": group, "data": sizes})
    arguments = ["--pair", f"tiny={pair}", "--samples", 8, "--draws", 50, "--max-new-tokens", 4]
    ended = call("ablate", *arguments, "--out", tmp_path / "a")
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert len(summary["groups"]) == 2 and len(summary["findings"]) == 3
    assert all("without it" in finding for finding in summary["findings"])
    # Sizes: 8 is what was asked for, of 12 there are 12 honesty and 8 task rows, 16 are more than the file has.
    rows = {row["method"]: row for row in summary["groups"][sizes.title]}
    assert list(rows) == ["base", "tuned", "8 rows", "8 rows: 12"]
    assert [rows[name]["costs"]["samples"] for name in ("8 rows", "8 rows: 12")] == [16, 20]
    (left,) = summary["failed"]
    assert left.startswith("tiny, 8 rows: 16 samples=16: ") and left.endswith("16 rows are asked for, the file has 12")
    assert call("ablate", *arguments, "--groups", "none", "--out", tmp_path / "b").code == 2


def test_a_sweep_is_every_combination(pair, tmp_path) -> None:
    grid = ["--in-weights", 0.5, 1.0, "--cross-weights", 0.4, "--task-weights", 1.0, 2.0]
    arguments = ["--pair", f"tiny={pair}", "--samples", 8, "--draws", 50, "--max-new-tokens", 4]
    ended = call("sweep", *arguments, *grid, "--out", tmp_path / "s")
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert len(summary["settings"]) == 4 and "chosen on validation questions" in summary["findings"][0]
    values = [row["test"]["honesty_f1"] for row in summary["settings"]]
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pair", "x=/nowhere"], "pair x: /nowhere/base is not there; expected a folder with base, tuned and data"),
        ([], "--pair, --seeds: expected one pair or more, found none"),
        (["--seeds", "1", "--methods", "magic"], "unknown method 'magic'; expected all, or some of: recommended"),
        (["--seeds", "1", "--methods", "wise_ft"], "--reference recommended: expected one of --methods: wise_ft"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, options, message) -> None:
    ended = call("compare", *options, "--out", tmp_path / "no")
    assert ended.code == 2 and message in " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--in-weights", "0.5", "2"], "--in-weights: expected less than or equal to 1, got 2.0"),
        (["--cross-weights", "0"], "--cross-weights: expected greater than 0, got 0.0"),
        (["--task-weights", "-1"], "--task-weights: expected greater than or equal to 0, got -1.0"),
        (["--dampings", "-1"], "--dampings: expected greater than or equal to 0, got -1.0"),
        (["--preset", "papers"], "--preset papers: there is no preset 'papers'; expected one of: ablation"),
        (["--samples", 100], "--samples asks for 100 rows, the file has 12; give it more rows or pass --samples 12"),
        (["--samples", 8, "--task-samples", 100], "--task-samples asks for 100 rows, the file has 8"),
    ],
)
def test_what_cannot_be_swept_is_refused_as_typed_before_the_work(pair, tmp_path, options, message) -> None:
    ended = call("sweep", "--pair", f"tiny={pair}", *options, "--out", tmp_path / "no")
    said = " ".join(ended.err.split())
    assert ended.code == 2 and message in said and "load" not in said
    assert not list((tmp_path / "no").glob("*.jsonl")) or (tmp_path / "no" / "records.jsonl").read_text() == ""


def test_recovery_is_one_run_looked_at_on_its_way(pair, tmp_path, monkeypatch) -> None:
    arguments = ["--pair", f"tiny={pair}", "--samples", 8, "--batch-size", 4, "--max-new-tokens", 4, "--rate", 0.01]
    command = ["recovery", *arguments, "--out", tmp_path / "r", "--curve-steps"]
    ended = call(*command, 0, 1, 4)
    assert ended.code == 0, ended.err
    records = {(r["method"], r["setting"].get("steps")): r for r in lines(tmp_path / "r" / "records.jsonl")}
    assert len(records) == 8 and {record["split"] for record in records.values()} == {"test"}
    assert records["rait", 0]["bits"] == records["tuned", None]["bits"] and records["rait", 0]["touched"] == 0
    assert records["rait_mixed", 4]["touched"] > 0 and records["rait_mixed", 4]["samples"] == 16
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert [row["steps"] for row in summary["points"]] == [0, 1, 4] * 2 and len(summary["findings"]) == 6
    assert "| rait_mixed | 4 |" in (tmp_path / "r" / "tables.md").read_text()
    assert (tmp_path / "r" / "recovery.png").exists()
    # Further steps are added to what is there, and are those of a run that was asked for them alone.
    assert call(*command, 0, 1, 2, 4).code == 0
    assert len(lines(tmp_path / "r" / "records.jsonl")) == 10
    more = lines(tmp_path / "r" / "records.jsonl")[-2]
    assert call("recovery", *arguments, "--out", tmp_path / "s", "--curve-steps", 2, "--methods", "rait").code == 0
    alone = lines(tmp_path / "s" / "records.jsonl")[-1]
    assert all(alone[name] == more[name] for name in ("method", "label", "bits", "touched"))
    # A control's curves stand beside the others, in rows of their own.
    assert call(*command, 0, 1, 4, "--control", f"c={pair}", "--methods", "rait").code == 0
    rows = json.loads((tmp_path / "r" / "summary.json").read_text())["points"]
    assert [row["method"] for row in rows] == ["rait"] * 3 + ["rait (control)"] * 3
    monkeypatch.setattr(experiment, "Lab", None)
    assert call(*command, 0, 1, 2, 4).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--curve-steps", 3, 2],
            "--curve-steps: expected increasing numbers from 0 on that end with 1 or more, found 3",
        ),
        (["--curve-steps", 0], "that end with 1 or more, found 0"),
        (["--methods", "dpo"], "--methods: expected all, or some of: rait, rait_mixed; found 'dpo'"),
        (["--rate", 0], "--rate"),
    ],
)
def test_what_is_no_curve_is_refused(tmp_path, options, message) -> None:
    ended = call("recovery", "--seeds", 1, *options, "--out", tmp_path / "no")
    assert ended.code == 2 and message in " ".join(ended.err.split())


def test_a_rate_that_diverges_is_a_setting_that_failed(pair, tmp_path) -> None:
    arguments = ["--pair", f"tiny={pair}", "--samples", 8, "--batch-size", 4, "--max-new-tokens", 4]
    options = ["--methods", "rait", "--reference", "rait", "--rates", 1e30, 1e-3, "--steps", 3, "--draws", 20]
    ended = call("compare", *arguments, *options, "--out", tmp_path / "c")
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "c" / "summary.json").read_text("utf-8"))
    assert summary["groups"][""][-1]["settings"] == {"tiny": "rate=0.001, steps=3"}
    assert len(summary["failed"]) == 1 and "the training loss is nan at step" in summary["failed"][0]
    ended = call("recovery", *arguments, "--rate", 1e30, "--curve-steps", 0, 3, "--out", tmp_path / "r")
    assert ended.code == 2 and "the first reason: the training loss is nan" in " ".join(ended.err.split())
    found = [record["setting"]["steps"] for record in lines(tmp_path / "r" / "records.jsonl") if "failed" in record]
    assert found == [3, 3]


def test_settings_whose_scores_fail_do_not_end_the_others(pair, tmp_path, monkeypatch) -> None:
    rows = [ablation_rows.Ablation("as it is", {}), ablation_rows.Ablation("too many", {"honesty_samples": 99})]
    monkeypatch.setattr(ablation_rows, "GROUPS", {"g": ablation_rows.Group("G", "paper", tuple(rows))})
    arguments = ["--pair", f"tiny={pair}", "--samples", 8, "--draws", 50, "--max-new-tokens", 4]
    ended = call("ablate", *arguments, "--out", tmp_path / "a")
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "a" / "summary.json").read_text("utf-8"))
    assert [row["method"] for row in summary["groups"]["G"]] == ["base", "tuned", "as it is"]
    assert "asks for 99 rows, the file has 12" in summary["failed"][0]


def test_scoring_is_compiled_where_rows_are_scored_alone(pair, tmp_path, monkeypatch) -> None:
    compiled: list = []
    lower = scoring._score_step.lower
    monkeypatch.setattr(scoring._score_step, "_lowered", {})  # other tests may have lowered this program
    monkeypatch.setattr(
        scoring._score_step, "lower", lambda *arguments: compiled.append(arguments) or lower(*arguments)
    )
    arguments = ["--pair", f"tiny={pair}", "--samples", 8, "--draws", 50, "--max-new-tokens", 4]
    options = ["--methods", "rait", "--batch-size", 4, "--curve-steps", 0, 1]
    assert call("recovery", *arguments, *options, "--out", tmp_path / "r").code == 0
    assert compiled == []
    grid = ["--in-weights", 0.5, "--cross-weights", 0.4, "--task-weights", 1.0]
    assert call("sweep", *arguments, *grid, "--out", tmp_path / "s").code == 0
    assert len(compiled) == 1
