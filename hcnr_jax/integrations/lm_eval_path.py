"""Runs `hcnr lm-eval-path`, which prints the folder of the task files for EleutherAI's lm-eval."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from hcnr_jax.config import LmEvalPathConfig

FOLDER = "lm_eval"


def task_folder() -> Path:
    """Return the folder that lm-eval's `--include_path` takes."""
    return Path(str(resources.files("hcnr_jax.integrations"))) / FOLDER


def print_path(config: LmEvalPathConfig) -> Path:
    """Run `hcnr lm-eval-path`. The folder goes to standard output, so that a shell can use it in a command."""
    sys.stdout.write(f"{task_folder()}\n")
    return task_folder()
