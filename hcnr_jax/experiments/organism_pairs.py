"""Builds the organisms of an experiment in its --out, and reuses those that are finished.

`organism.json` beside `base`, `tuned` and `data` describes the organism and says whether it is finished. The folder
`tuned` alone would not tell, since every fine-tuning that is tried is written there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hcnr_jax.checkpoints.checkpoint import read_json
from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.errors import InputError
from hcnr_jax.organism.build import build
from hcnr_jax.report.console import Reporter
from hcnr_jax.runtime.files import explained, write_result
from hcnr_jax.training.trainer import StepInfo

RECORD = "organism.json"


def organism(seed: int, config: ExperimentConfig, reporter: Reporter) -> Path:
    """Return the folder of one of --seeds, and build the organism unless it exists.

    InputError where another organism or a foreign folder is in its place.
    """
    folder = config.out / f"organism-{seed}"
    about = {"seed": seed, "size": config.size, "lora": config.lora}
    if not _is_finished(folder, about):
        _begin(folder, about)
        _build(folder, seed, config, reporter)
        _write(folder, about, True)
    return folder


def _is_finished(folder: Path, about: dict[str, Any]) -> bool:
    path = folder / RECORD
    if not path.exists():
        if folder.exists() and any(not item.name.startswith(".") for item in folder.iterdir()):
            raise InputError(
                f"{folder}: expected an organism that this command built, with its {RECORD}, found a folder without "
                f"one; if its base, tuned and data are whole give it as --pair instead of --seeds {about['seed']}, "
                "else remove it"
            )
        return False
    found = read_json(path)
    if not found.get("finished"):
        return False
    if {name: found.get(name) for name in about} != about:
        raise InputError(
            f"{path}: expected an organism of {_options(about)}, found one of {_options(found)}; ask for that one, "
            "choose another --out, or remove the folder"
        )
    return True


def _options(about: dict[str, Any]) -> str:
    return f"--seeds {about.get('seed')} --size {about.get('size')} --lora {about.get('lora') or 'none'}"


def _begin(folder: Path, about: dict[str, Any]) -> None:
    """Mark the folder as this command's and remove what an unfinished run left."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, about, False)
        for item in folder.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != RECORD:
                item.unlink()


def _write(folder: Path, about: dict[str, Any], finished: bool) -> None:
    write_result(folder / RECORD, json.dumps(about | {"finished": finished}, indent=1) + "\n")


def _build(folder: Path, seed: int, config: ExperimentConfig, reporter: Reporter) -> None:
    with reporter.stage(f"build organism {seed}", None, "steps") as stage:
        done: dict[str, int] = {}

        def follow(name: str, step: int, steps: int, info: StepInfo) -> None:
            done[name] = steps
            stage.expect(sum(done.values()))
            stage.advance()

        build(folder, seed, config.size, lora=config.lora, on_step=follow)
