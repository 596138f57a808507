"""What a record's key knows: everything of a pair and of a job that making the record anew would depend on."""

import shutil
from pathlib import Path

import pytest

from hcnr_jax.config.experiments import CompareConfig, SweepConfig
from hcnr_jax.errors import InputError
from hcnr_jax.experiments import cache_keys as made_of
from hcnr_jax.experiments import run_methods as rivals
from hcnr_jax.experiments.cache_keys import digest, pair_fingerprint, restoration_settings
from hcnr_jax.experiments.pairs import Pair
from tests.restoration.worlds import edit_json, edit_weights, make_pair


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return make_pair(tmp_path_factory.mktemp("pair"))


def compared(**options) -> CompareConfig:
    return CompareConfig(out=Path("out"), pair=("x=y",), **options)


def fingerprint(folder: Path, **options) -> str:
    return pair_fingerprint(Pair("p", *(folder / name for name in ("base", "tuned", "data"))), compared(**options))


def halve(weights) -> None:
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] / 2


CHANGES = {
    "weights": lambda folder: edit_weights(folder / "tuned", halve),
    "config.json": lambda folder: edit_json(folder / "base" / "config.json", eos_token_id=5),
    "generation_config": lambda folder: (folder / "tuned" / "generation_config.json").write_text('{"eos_token_id": 4}'),
    "tokenizer": lambda folder: edit_json(folder / "tuned" / "tokenizer_config.json", padding_side="left"),
    "chat template": lambda folder: (folder / "base" / "chat_template.jinja").write_text("{{ messages }}"),
    "questions": lambda folder: shutil.copy(folder / "data/task-train.jsonl", folder / "data/task-test.jsonl"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_pair_is_known_by_all_its_files_and_not_by_its_place(kept, tmp_path, change) -> None:
    folder = shutil.copytree(kept, tmp_path / "copy")
    assert fingerprint(folder) == fingerprint(kept)
    CHANGES[change](folder)
    assert fingerprint(folder) != fingerprint(kept)


def test_versions_and_options_that_mean_something_are_part_of_it(kept, monkeypatch) -> None:
    before = fingerprint(kept)
    assert fingerprint(kept, draws=7, max_task_loss=0.5, methods="wise_ft,recommended") == before
    for option in ({"samples": 7}, {"seed": 1}, {"max_new_tokens": 3}, {"max_length": 99}, {"match": "contains"}):
        assert fingerprint(kept, **option) != before
    monkeypatch.setattr(made_of, "dependency_versions", lambda: {"jax": "another"})
    assert fingerprint(kept) != before


def test_a_restoration_is_known_by_its_presets_content(monkeypatch, tmp_path) -> None:
    config = compared()
    recommended, paper = (digest(restoration_settings(config, name, {})) for name in ("recommended", "paper"))
    assert recommended != paper
    (tmp_path / "recommended.yaml").write_text("in_weight: 0.5\ntask_weight: 3.0\n")
    monkeypatch.setattr(made_of, "preset", lambda name: tmp_path / f"{name}.yaml")
    assert digest(restoration_settings(config, "recommended", {})) != recommended


def test_a_trained_rival_is_known_by_its_optimiser() -> None:
    setting = {"rate": 1e-4, "steps": 30}
    one, other = (rivals.made_of("rait", setting, compared(batch_size=size)) for size in (8, 32))
    assert one != other and one["warmup_steps"] == 1
    assert rivals.made_of("dpo", setting, compared())["beta"] == 0.1
    assert rivals.made_of("budget", {}, compared()) != rivals.made_of("recommended", {}, compared())


def test_a_setting_that_cannot_be_is_refused_before_the_work() -> None:
    with pytest.raises(InputError, match="learning_rate is 0"):
        rivals.made_of("rait", {"rate": 0.0, "steps": 30}, compared())
    with pytest.raises(InputError, match="--in-weight: expected less than or equal to 1"):
        restoration_settings(SweepConfig(out=Path("out"), pair=("x=y",)), "recommended", {"in_weight": 2.0})
