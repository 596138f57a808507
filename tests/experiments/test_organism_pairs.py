"""Organisms in an experiment's --out: killed builds are built anew, others' folders and other sizes refused by name."""

import json
import re
from pathlib import Path

import pytest

from hcnr_jax.config.experiments import CompareConfig
from hcnr_jax.errors import InputError
from hcnr_jax.experiments import organism_pairs as organisms
from hcnr_jax.experiments.organism_pairs import organism
from hcnr_jax.report.console import Reporter


class Killed(BaseException):
    """In place of a signal that nothing can catch."""


def asked(out: Path, **options) -> Path:
    return organism(3, CompareConfig(out=out, seeds=(3,), **options), Reporter())


@pytest.fixture
def builds(monkeypatch) -> list[tuple]:
    """In place of training: folders that name their build, and every build asked for."""
    seen: list[tuple] = []

    def build(folder, seed, size, lora, on_step) -> None:
        seen.append((seed, size, lora))
        for name in ("base", "data", "tuned"):
            (folder / name).mkdir()
            (folder / name / "number").write_text(str(len(seen)))
            if name == "tuned" and len(seen) == 1:
                raise Killed

    monkeypatch.setattr(organisms, "build", build)
    return seen


@pytest.fixture
def finished(builds, tmp_path) -> Path:
    builds.append(())
    return asked(tmp_path / "out")


def test_a_killed_build_is_built_anew_though_it_has_a_tuned_folder(builds, tmp_path) -> None:
    with pytest.raises(Killed):
        asked(tmp_path / "out")
    left = tmp_path / "out" / "organism-3"
    assert (left / "tuned" / "number").is_file()
    (left / ".trials-x").mkdir()
    # Another size may be asked for now, since nothing is lost.
    assert asked(tmp_path / "out", size="medium", lora=8) == left
    assert builds == [(3, "small", None), (3, "medium", 8)] and (left / "tuned" / "number").read_text() == "2"
    assert {path.name for path in left.iterdir()} == {"base", "tuned", "data", "organism.json"}


def test_a_finished_one_is_taken_up(builds, finished) -> None:
    assert asked(finished.parent) == finished and len(builds) == 2
    record = json.loads((finished / "organism.json").read_text())
    assert record == {"seed": 3, "size": "small", "lora": None, "finished": True}


def test_another_organism_is_refused_by_name(builds, finished) -> None:
    message = "organism.json: expected an organism of --seeds 3 --size medium --lora 8, found one of --seeds 3 --size "
    with pytest.raises(InputError, match=re.escape(f"{message}small --lora none; ask for that one")):
        asked(finished.parent, size="medium", lora=8)
    assert len(builds) == 2 and (finished / "tuned" / "number").is_file()


def test_a_folder_that_is_not_ours_is_left_alone(builds, tmp_path) -> None:
    folder = tmp_path / "organism-3"
    (folder / "tuned").mkdir(parents=True)
    with pytest.raises(InputError, match="found a folder without one; if its base, tuned and data are whole give it"):
        asked(tmp_path)
    assert builds == [] and [path.name for path in folder.iterdir()] == ["tuned"]
