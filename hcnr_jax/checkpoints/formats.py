"""Tells an Orbax checkpoint from a Hugging Face folder by the names of its files."""

from pathlib import Path

ORBAX_MARKS = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")


def is_orbax(folder: Path) -> bool:
    """Return whether a folder looks like an Orbax checkpoint: a tree, a step, or a root with steps."""
    steps = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return any((place / mark).is_file() for place in (folder, *steps) for mark in ORBAX_MARKS)


def orbax_advice(folder: Path, base: Path | None = None) -> str:
    """Return the message that names the command for an Orbax checkpoint, with BASE's folder where that is known."""
    named = f"{base}" if base else "BASE"
    return (
        f"{folder} is an Orbax checkpoint; convert it first: hcnr convert {folder} --like {named} --out FOLDER"
        + (", with the Hugging Face folder of the model before fine-tuning as BASE" if base is None else "")
        + " (for a LoRA also --lora-alpha A), and give FOLDER in its place"
    )
