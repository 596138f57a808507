"""The YAML presets of `configs/`, found by name in a source tree and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

from hcnr_jax.errors import InputError


def preset(name: str) -> Path:
    """The path of configs/NAME.yaml. InputError lists the presets there are."""
    package = Path(__file__).resolve().parent
    folders = [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise InputError(f"there is no preset {name!r}; expected one of: {', '.join(known)}")
