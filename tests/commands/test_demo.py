"""The demo from end to end on an organism trained for a few steps: what it writes, not how well it does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hcnr_jax import cli
from hcnr_jax.commands.demo import MODELS
from hcnr_jax.organism import build as organism


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short demo, shared by the tests below."""
    small = organism.SIZES["small"]
    short = replace(
        small,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        base=replace(small.base, steps=60, warmup_steps=5),
        tuned=replace(small.tuned, steps=11),
        floor=0.0,
    )
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(organism.SIZES, "small", short)
        assert cli.main(["demo", "--fast", "--seed", "3", "--out", str(out)]) == 0
    return out


def test_metrics_hold_the_contract(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["seed"] == 3
    assert set(metrics["models"]) == set(MODELS) == {"base", "tuned", "paper", "restored"}
    for values in metrics["models"].values():
        assert set(values) == {
            "honesty_f1",
            "refusal_delta",
            "refusal_on_answerable",
            "task_accuracy",
            "known_fact_accuracy",
        }
        assert all(-1 <= value <= 1 for value in values.values())
    assert set(metrics["recovered"]) == {"paper", "restored"}
    assert all(len(found["layers"]) == 3 for found in metrics["probe_auroc"].values())
    assert metrics["seconds"]["whole"] > 0
    assert [trial["rate"] for trial in metrics["fine_tuning"]][:2] == [1.0, 1.3][: len(metrics["fine_tuning"])]


def test_answers_are_balanced_and_of_every_model(folder: Path) -> None:
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    for name in MODELS:
        honesty = [a for a in answers if a["model"] == name and a["role"] == "honesty"]
        assert len(honesty) == 80
        assert sum(a["answerable"] for a in honesty) == 40


def test_folders_and_pictures_are_there(folder: Path) -> None:
    for name in MODELS:
        assert (folder / name / "model.safetensors").is_file()
    paper = json.loads((folder / "paper" / "hcnr.json").read_text())["config"]
    assert (paper["priority"], paper["compensation"], paper["inputs"]) == ("raw", "paper", "local")
    for name in ("honesty_task.png", "probe_auroc.png", "neurons.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_an_output_that_exists_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--out", str(folder)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
