"""Configurations as values: defaults, combinations, YAML files, and the files of configs/."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from hcnr_jax.config import ApplyConfig, RestoreConfig, build, option_name, read_yaml
from hcnr_jax.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PATHS = {"base": "b", "tuned": "t", "honesty": "h.jsonl", "task": "t.jsonl", "out": "o"}


def defaults() -> dict:
    return {name: info.default for name, info in RestoreConfig.model_fields.items() if not info.is_required()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_of_configs_is_a_configuration(path) -> None:
    config = build(RestoreConfig, {**PATHS, **read_yaml(RestoreConfig, path)})
    assert config.out == Path("o")
    assert f"configs/{path.name}" in path.read_text()  # its header says how to run it


def test_recommended_is_the_default() -> None:
    given = read_yaml(RestoreConfig, next(path for path in CONFIGS if path.stem == "recommended"))
    assert {"in_weight", "cross_weight", "priority", "compensation", "task_weight", "inputs", "damping"} <= set(given)
    assert given == {name: defaults()[name] for name in given}


def test_paper_is_the_paper() -> None:
    given = read_yaml(RestoreConfig, next(path for path in CONFIGS if path.stem == "paper"))
    expected = {"in_weight": 0.5, "cross_weight": 0.4, "priority": "raw", "compensation": "paper", "inputs": "local"}
    assert expected.items() <= given.items() and given["samples"] == 128


def test_a_configuration_is_a_value() -> None:
    config = build(RestoreConfig, PATHS)
    assert config == build(RestoreConfig, PATHS) and hash(config) == hash(build(RestoreConfig, PATHS))
    with pytest.raises(ValidationError):
        config.in_weight = 0.3
    assert RestoreConfig.model_validate_json(config.model_dump_json()) == config
    assert build(RestoreConfig, yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"in_weight": 0}, "--in-weight: expected greater than 0, got 0"),
        ({"cross_weight": 1.01}, "--cross-weight: expected less than or equal to 1, got 1.01"),
        ({"damping": -1e-9}, "--damping: expected greater than or equal to 0"),
        ({"damping": float("nan")}, "--damping: expected a finite number, got nan"),
        ({"task_weight": float("inf")}, "--task-weight: expected a finite number, got inf"),
        ({"honesty_samples": 0}, "--honesty-samples: expected greater than or equal to 1, got 0"),
        ({"max_length": 1}, "--max-length: expected greater than or equal to 2, got 1"),
        ({"seed": 1.5}, "--seed: expected a valid integer"),
        ({"priority": "best"}, "--priority: expected 'kl', 'raw', 'honesty' or 'random', got 'best'"),
        ({"granularity": "output"}, "--granularity output goes with --compensation none alone, got two_sided"),
        ({"compensation": "paper"}, "--compensation paper has no propagated form: add --inputs local"),
        ({"in_weigth": 1}, "--in-weigth: "),
        ({"base": None}, "BASE: expected a valid string, got None"),
    ],
)
def test_wrong_values_name_the_option(values, message) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(RestoreConfig, {**PATHS, **values})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        build(RestoreConfig, {"in_weight": 2, "damping": -1})
    for name in ("BASE: required", "TUNED: required", "--task: required", "--in-weight: ", "--damping: "):
        assert name in str(caught.value)


def test_edges_that_are_legal() -> None:
    edges = {"in_weight": 1, "cross_weight": 1, "damping": 0, "task_weight": 0, "seed": None, "samples": 1}
    assert build(RestoreConfig, {**PATHS, **edges}).damping == 0


def test_row_counts() -> None:
    assert build(RestoreConfig, PATHS).rows == (128, 128)
    assert build(RestoreConfig, {**PATHS, "samples": 7, "task_samples": 3}).rows == (7, 3)


@pytest.mark.parametrize(
    ("values", "unused"),
    [
        ({}, {"moments_at"}),
        ({"inputs": "local"}, set()),
        ({"compensation": "exact", "inputs": "local"}, {"task_weight"}),
        ({"compensation": "none"}, {"task_weight", "inputs", "solver", "damping", "moments_at"}),
        ({"priority": "random", "inputs": "local"}, {"scores_at", "loss"}),
        ({"honesty_samples": 3, "task_samples": 4, "inputs": "local"}, {"samples"}),
    ],
)
def test_what_the_method_does_not_read(values, unused) -> None:
    config = build(RestoreConfig, {**PATHS, **values})
    assert set(config.unused) == unused | {"refine_solver", "refine_rate"}
    assert set(config.unused_and_set) <= {"task_weight", "scores_at", "samples", "inputs"}


YAML = {
    "unknown key": ("in_wieght: 1", "unknown key 'in_wieght'; did you mean 'in_weight'?"),
    "far from any key": ("zzz: 1", "unknown key 'zzz'; known keys: base, tuned"),
    "an option's spelling": ("in-weight: 0.3", "unknown key 'in-weight'; did you mean 'in_weight'?"),
    "wrong value": ("in_weight: 3", "key 'in_weight': expected less than or equal to 1, got 3"),
    "wrong type": ("samples: many", "key 'samples': expected a valid integer"),
    "NaN": ("damping: .nan", "key 'damping': expected greater than or equal to 0, got nan"),
    "not YAML": ("in_weight: [", "not valid YAML"),
    "a key twice": ("in_weight: 0.5\nseed: 1\nin_weight: 0.3", "key 'in_weight' is given twice, in lines 1 and 3"),
    "a list": ("- 1", "expected keys and values, such as 'in_weight: 0.5', found [1]"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_mistakes_name_file_and_key(tmp_path, case) -> None:
    text, message = YAML[case]
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_yaml(RestoreConfig, path)
    assert str(caught.value).startswith(f"--config {path}: ")


def test_yaml_files_that_are_none(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(RestoreConfig, tmp_path / "absent.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"base: \xff\xfe")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(RestoreConfig, tmp_path / "bytes.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(RestoreConfig, tmp_path / "empty.yaml") == {}


def test_names_as_typed() -> None:
    assert option_name(RestoreConfig, "in_weight") == "--in-weight" and option_name(RestoreConfig, "tuned") == "TUNED"
    assert option_name(ApplyConfig, "patch") == "PATCH"
