"""Computes the cache keys of experiment records.

A pair's key hashes its files and question options; a job's key hashes its settings. A record is reused only where
making it again would give the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from hcnr_jax.checkpoints import open_checkpoint, open_tuned, sha256_file, sha256_files
from hcnr_jax.config import RestoreConfig, build, read_yaml
from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.experiments.pairs import ROLES, SPLITS, Pair
from hcnr_jax.presets import preset
from hcnr_jax.report.json import dependency_versions
from hcnr_jax.restoration.resume.fingerprint import model_paths

# The number of what an experiment's records hold. It rises when a field changes its meaning, not with each release.
FORMAT = 1
# Options of every experiment that decide what a record holds; the others (where, how many draws, which methods) do not.
MEANING = ("rows", "seed", "max_new_tokens", "max_length", "match")
# Fields of a restoration that say where its files are; a pair's fingerprint knows them by content.
PLACES = frozenset(("base", "tuned", "honesty", "task", "out"))


def pair_fingerprint(pair: Pair, config: ExperimentConfig) -> str:
    """Hash a pair's weights, configurations, tokenizers, rows, questions, the options of `MEANING`, and the
    versions.

    InputError where a model folder cannot be read.
    """
    base = open_checkpoint(pair.base)
    models = [sha256_files(model_paths(model).values()) for model in (base, open_tuned(pair.tuned, base))]
    rows = [sha256_file(pair.rows(role, split)) for role in ROLES for split in SPLITS]
    asked = {name: getattr(config, name) for name in MEANING}
    return digest([models, rows, asked, FORMAT, dependency_versions(), bool(jax.config.read("jax_enable_x64"))])


def digest(value: Any) -> str:
    """Hash plain values to a short digest."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def restoration(config: ExperimentConfig, pair: Pair, name: str, *, values: Mapping[str, Any]) -> RestoreConfig:
    """Build the settings of a restoration: a preset on a pair's rows, with some settings changed.

    Args:
        config: of the experiment; gives row counts, seed and maximal length.
        pair: whose models and rows are used.
        name: of the preset.
        values: the settings that replace those of the preset.

    Raises:
        InputError: a value that a setting cannot have.
    """
    common = {
        "base": str(pair.base),
        "tuned": str(pair.tuned),
        "honesty": pair.rows("honesty", "train"),
        "task": pair.rows("task", "train"),
        "out": config.out / f"unwritten-{pair.name}",
        "honesty_samples": config.rows["honesty"],
        "task_samples": config.rows["task"],
        "seed": config.seed,
        "max_length": config.max_length,
    }
    return build(RestoreConfig, read_yaml(RestoreConfig, preset(name)) | common | dict(values))


def restoration_settings(config: ExperimentConfig, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a restoration except its file paths. InputError for a value that a setting cannot have."""
    nowhere = Pair("any", Path(), Path(), Path())
    return restoration(config, nowhere, name, values=values).model_dump(mode="json", exclude=set(PLACES))
