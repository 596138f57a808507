"""Computes the cache keys of a run's stages, so that a result of other inputs or options is never used again.

A key maps names that a user knows, such as options, to values. Weight files enter a key with size, modification time
and header, because hashing 2 x 16 GB would cost as much as the scores. A copied or touched file is therefore refused
even if it is equal, and a changed file is never accepted. Small files and rows enter with their content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from hcnr_jax.checkpoints.checkpoint import Checkpoint, is_tokenizer_file
from hcnr_jax.checkpoints.digest import sha256_file
from hcnr_jax.checkpoints.lora import ADAPTER_WEIGHTS, MergedCheckpoint
from hcnr_jax.config import RestoreConfig, option_name, stage_of
from hcnr_jax.data import Example
from hcnr_jax.report.json import dependency_versions
from hcnr_jax.restoration.inputs import RunInputs

Fingerprint = dict[str, str]

# The format version of the work folder. It rises when a stored result changes its meaning, not with each release.
FORMAT = 3
# The stages with a stored result, in order. Each stage also depends on the options of all stages before it.
STAGES = ("scores", "choice", "selection", "kernels")
AFTER_CHOICE = ("selection", "kernels")
# The entry of the stages after the choice for the setting that --choose found, which no option gives.
TAKEN = "the setting that --choose took"


def fingerprints(inputs: RunInputs, dtype: str) -> dict[str, Fingerprint]:
    """Compute the cache key of every stage. A stage's key includes the keys of all stages before it."""
    config, others = inputs.config, dependency_versions()
    found = {
        "BASE": _identity(inputs.base),
        "TUNED": _identity(inputs.tuned),
        "honesty rows (of --honesty, --honesty-samples, --samples, --max-length, --seed)": _rows(inputs.honesty),
        "task rows (of --task, --task-samples, --samples, --max-length, --seed)": _rows(inputs.task),
        "--dtype": dtype,
        "64-bit mode": str(bool(jax.config.read("jax_enable_x64"))),
        "format of the work folder": str(FORMAT),
        **{f"version of {name}": version for name, version in others.items() if name != "device"},
        "device": others["device"],
    }
    stages: dict[str, Fingerprint] = {}
    for stage in STAGES:
        fields = _options(stage)
        if stage == "choice" and config.choose is not None:
            # The choice restores, which reads all options, and asks the rows of these files that are not scored.
            fields = (*fields, *(name for later in AFTER_CHOICE for name in _options(later)))
            found = found | {
                option_name(RestoreConfig, name): sha256_file(getattr(config, name)) for name in ("honesty", "task")
            }
        used = [name for name in fields if name not in config.unused]
        found = found | {option_name(RestoreConfig, name): _value(getattr(config, name)) for name in used}
        stages[stage] = found
    return stages


def _options(stage: str) -> tuple[str, ...]:
    """Return the options that a stage reads."""
    return tuple(name for name in RestoreConfig.model_fields if stage in stage_of(RestoreConfig, name).names)


def differences(left: Fingerprint, right: Fingerprint) -> list[str]:
    """Write `NAME is A there, B here` for every entry that differs."""
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    return [f"{name} is {left.get(name, 'absent')} there, {right.get(name, 'absent')} here" for name in names]


def model_paths(checkpoint: Checkpoint) -> dict[str, Path]:
    """Return the files of a model by name: weights, configuration and tokenizer.

    The weights of an adapter are its own file, because the merged weights are not on the disk.
    """
    folder = checkpoint.folder
    weights = {shard.name: shard.path for shard in checkpoint.shards}
    if isinstance(checkpoint, MergedCheckpoint):
        weights = {ADAPTER_WEIGHTS: folder / ADAPTER_WEIGHTS}
    own = [path for path in folder.iterdir() if path.name.endswith("config.json") or is_tokenizer_file(path.name)]
    return weights | {path.name: path for path in sorted(own) if path.is_file()}


def _identity(checkpoint: Checkpoint) -> str:
    headers = {shard.path: hashlib.sha256(shard.header).hexdigest() for shard in checkpoint.shards}
    described: list[Any] = []
    for name, path in model_paths(checkpoint).items():
        stat = path.stat()
        known_by_size = name.endswith(".safetensors")
        content = headers.get(path, "") if known_by_size else sha256_file(path)
        described.append([name, stat.st_size, content, stat.st_mtime_ns if known_by_size else 0])
    return _short(json.dumps(described))


def _rows(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([list(map(int, example.tokens)), int(example.completion_start)]).encode())
    return f"{len(examples)} rows {digest.hexdigest()[:12]}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
