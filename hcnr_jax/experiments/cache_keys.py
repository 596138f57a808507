"""What an experiment's records depend on: of a pair its files and how it is asked, of a job its settings in full.

Both go into a record's key, so that a record is taken up again only where making it anew would give the same.
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
from hcnr_jax.report.json import versions
from hcnr_jax.restoration.resume.fingerprint import model_paths

# Options of every experiment that decide what a record holds; the others (where, how many draws, which methods) do not.
MEANING = ("rows", "seed", "max_new_tokens", "max_length", "match")
# Fields of a restoration that say where its files are; a pair's fingerprint knows them by content.
PLACES = frozenset(("base", "tuned", "honesty", "task", "out"))


def pair_fingerprint(pair: Pair, config: ExperimentConfig) -> str:
    """Of weights, configurations, tokenizers, rows, questions, the options of `MEANING`, versions and the device.

    InputError where a model folder cannot be read.
    """
    base = open_checkpoint(pair.base)
    models = [sha256_files(model_paths(model).values()) for model in (base, open_tuned(pair.tuned, base))]
    rows = [sha256_file(pair.rows(role, split)) for role in ROLES for split in SPLITS]
    asked = {name: getattr(config, name) for name in MEANING}
    return digest([models, rows, asked, versions(), bool(jax.config.read("jax_enable_x64"))])


def digest(value: Any) -> str:
    """A short digest of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def restoration(config: ExperimentConfig, pair: Pair, name: str, values: Mapping[str, Any]) -> RestoreConfig:
    """A preset's settings on a pair's rows, with some of them changed; InputError for a value it cannot have."""
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
    """All settings of such a restoration, whatever the pair; InputError for a value it cannot have."""
    nowhere = Pair("any", Path(), Path(), Path())
    return restoration(config, nowhere, name, values).model_dump(mode="json", exclude=set(PLACES))
