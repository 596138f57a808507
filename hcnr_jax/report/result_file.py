"""Writes the result files of commands: paths are checked before the work, and no file is overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hcnr_jax.errors import InputError
from hcnr_jax.report.json import to_json
from hcnr_jax.runtime.files import check_writable, write_result


def check_new_file(path: Path, option: str = "--out") -> Path:
    """Check that a file can be written at a new path, and make its folder. InputError where the path is taken."""
    if path.exists() or path.is_symlink():
        kind = "is a folder" if path.is_dir() else "exists"
        raise InputError(f"{option} {path} {kind}; nothing is overwritten: choose another file name or remove it")
    check_writable(path.parent, f"{option} {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON record atomically; InputError where another run has put a file there in the meantime."""
    check_new_file(path)
    write_result(path, to_json(record).decode())
