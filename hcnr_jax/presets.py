"""Finds the YAML presets of `configs/` by name, in a source tree and in an installed package."""

from __future__ import annotations

from pathlib import Path

from hcnr_jax.errors import InputError


def preset(name: str, option: str = "") -> Path:
    """Return the path of configs/NAME.yaml. InputError lists the presets that exist and names the option that asked."""
    for folder in _folders():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    asked = f"{option} {name}: " if option else ""
    file = "file of that name and no " if option == "--config" else ""
    raise InputError(f"{asked}there is no {file}preset {name!r}; expected one of: {', '.join(presets())}")


def presets() -> list[str]:
    """Return the names of all presets."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def _folders() -> list[Path]:
    package = Path(__file__).resolve().parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
