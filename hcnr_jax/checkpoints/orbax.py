"""Orbax folders, the way Flax training code keeps parameters: save and load a parameter tree."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from hcnr_jax.errors import InputError, RunError


def save_params(path: str | Path, params: Mapping[str, Any]) -> None:
    """Save a tree of arrays, sharded ones included, as a new Orbax folder.

    Raises InputError when `path` exists; RunError when writing fails. Orbax itself writes to a temporary folder and
    renames it, so an interrupted save leaves nothing under this name.
    """
    target = Path(path).resolve()
    if target.exists():
        raise InputError(f"{path} exists; nothing is overwritten: choose another folder or remove it")
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(target, dict(params))
    except OSError as error:
        raise RunError(f"{path}: writing failed ({error}); see to the cause and run again") from error


def load_params(path: str | Path, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Load a tree of arrays saved with `save_params` or any Orbax StandardCheckpointer.

    `like` is a tree of arrays or jax.ShapeDtypeStruct; the result takes its shardings and dtypes. Without it, arrays
    come back as they were saved, on this machine's devices. Of the root of a CheckpointManager the latest step is read. Raises InputError when there is no such folder, when it is
    not an Orbax one, or when it does not fit `like`.
    """
    source = Path(path).resolve()
    if not source.is_dir():
        raise InputError(f"{path} is not a folder; expected an Orbax checkpoint")
    source = _item_folder(source)
    try:
        with _checkpointer() as checkpointer:
            return dict(checkpointer.restore(source, None if like is None else dict(like)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as an Orbax checkpoint of this model: {error}") from error


def _item_folder(folder: Path) -> Path:
    """Find the tree in a CheckpointManager's root (its latest step) or in a step with one item; else the folder."""
    if (folder / "_METADATA").exists() or (folder / "manifest.ocdbt").exists():
        return folder
    steps = [path for path in folder.iterdir() if path.is_dir() and path.name.rpartition("_")[2].isdigit()]
    if steps:
        return _item_folder(max(steps, key=lambda path: int(path.name.rpartition("_")[2])))
    items = sorted(path for path in folder.iterdir() if (path / "_METADATA").exists())
    named = [path for path in items if path.name in ("default", "params", "model_params", "state")]
    if len(items) > 1 and not named:
        raise InputError(f"{folder} holds the Orbax items {', '.join(path.name for path in items)}; name one of them")
    return (named or items or [folder])[0]


def _checkpointer() -> ocp.StandardCheckpointer:
    """Of one process: of several each calls on its own, for trees that it holds whole, and waits for no other."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(own, {own}, f"hcnr-{own}")
    return ocp.StandardCheckpointer(
        multiprocessing_options=options,
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )
