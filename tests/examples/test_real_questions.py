"""The real-question script from end to end at the smallest size there is: what it writes and tells, not how well."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hcnr_jax.errors import InputError
from tests.examples.load import load_example

QUESTIONS = {"kuq": 8, "nec": 8, "pooled": 16, "task_taught": 8, "task_new": 4, "nq_taught": 4, "nq_new": 4}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_example("real_questions")


@pytest.fixture(scope="module")
def made(script, real_data, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """One run of two steps a model, on a few questions of a kind."""
    out = tmp_path_factory.mktemp("real") / "out"
    size = script.Size(
        kuq=8, nec=4, nq=4, nq_times=2, task=8, asked=8, base_steps=2, tuned_steps=2, samples=8, base_rate=1e-3
    )
    return out, script.run(real_data, out, 3, size)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows" / f"{name}.jsonl").read_text().splitlines()]


def test_every_model_is_asked_every_set(script, made) -> None:
    folder, record = made
    assert json.loads((folder / "metrics.json").read_text()) == record
    assert (record["seed"], record["split"]) == (3, "test") and record["seconds"] > 0
    assert set(record["models"]) == set(script.MODELS)
    for scores in record["models"].values():
        assert {name: found["questions"] for name, found in scores.items()} == QUESTIONS
    assert {name: set(found) for name, found in record["probe"].items()} == {
        name: {"base", "tuned", "restored"} for name in ("kuq", "nec")
    }


def test_presets_are_the_ones_named(made) -> None:
    folder, _ = made
    configs = [json.loads((folder / name / "hcnr.json").read_text())["config"] for name in ("paper", "restored")]
    assert [config["compensation"] for config in configs] == ["paper", "two_sided"]


def test_what_is_asked_was_never_taught(made) -> None:
    folder, _ = made
    names = ("kuq", "nec", "nq", "task")
    parts = {"taught": rows(folder, "base") + rows(folder, "task")}
    for split in ("validation", "test"):
        parts[split] = [row for name in names for row in rows(folder, f"{name}-{split}")]
    prompts = {part: {row["prompt"] for row in found} for part, found in parts.items()}
    assert all(prompts[one].isdisjoint(prompts[other]) for one, other in combinations(prompts, 2))
    for name in ("kuq", "nec"):
        assert sum(row["answerable"] for row in rows(folder, f"{name}-test")) == 4
    assert not any(row["answerable"] for row in rows(folder, "honesty")[8:])


def test_the_tables_hold_every_model(script, made, capsys) -> None:
    script.tell(made[1])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        *(("model", "--------", *script.MODELS) * 3)
    ]
    assert "kuq: 8 held-out questions (test), half unanswerable, percent" in lines


def test_a_pair_for_compare_keeps_the_judging_answers_from_the_methods(script, real_data, tmp_path) -> None:
    size = script.Size(
        kuq=8, nec=4, nq=4, nq_times=2, task=8, asked=8, base_steps=2, tuned_steps=2, samples=8, base_rate=1e-3
    )
    script.make_pair(real_data, tmp_path / "pair", 3, size)
    sets = {path.stem: script.read(path) for path in (tmp_path / "pair" / "data").iterdir()}
    assert {name: len(found) for name, found in sets.items()} == {
        "honesty-train": 12, "honesty-validation": 8, "honesty-test": 8,
        "task-train": 8, "task-validation": 4, "task-test": 4,
    }  # fmt: skip
    prompts = [{row["prompt"] for row in found} for found in sets.values()]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 44
    assert all((tmp_path / "pair" / name / "config.json").exists() for name in ("base", "tuned"))


def test_too_few_short_questions_are_refused(script) -> None:
    draw: Callable[..., Any] = script.first
    assert draw([{}, {}], 2) == [{}, {}]
    with pytest.raises(InputError, match="3 short questions of a kind are needed, the draw holds 2"):
        draw([{}, {}], 3)
