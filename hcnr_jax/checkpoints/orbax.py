"""Saves and loads a parameter tree as an Orbax folder, the usual format of Flax training code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from hcnr_jax.errors import InputError, RunError


def save_params(path: str | Path, params: Mapping[str, Any]) -> None:
    """Save a tree of arrays as a new Orbax folder; the arrays may be sharded.

    Orbax itself writes to a temporary folder and renames it, so an interrupted save leaves nothing at `path`.

    Raises:
        InputError: `path` exists.
        RunError: writing failed.
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

    Args:
        path: the Orbax folder. Of a CheckpointManager's root folder, the latest step is loaded.
        like: a tree of arrays or jax.ShapeDtypeStruct, whose shardings and dtypes the result takes. Without `like`,
            arrays come back as they were saved, on this machine's devices.

    Raises:
        InputError: there is no such folder, the folder is not an Orbax checkpoint, or the tree does not fit `like`.
    """
    source = Path(path).resolve()
    if not source.is_dir():
        raise InputError(f"{path} is not a folder; expected an Orbax checkpoint")
    source = item_folder(source)
    try:
        with _checkpointer() as checkpointer:
            return dict(checkpointer.restore(source, None if like is None else dict(like)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as an Orbax checkpoint of this model: {error}") from error


def item_folder(folder: Path) -> Path:
    """Return the tree's folder: in a CheckpointManager's root the latest step, in a step the item of parameters."""
    if (folder / "_METADATA").exists() or (folder / "manifest.ocdbt").exists():
        return folder
    steps = [path for path in folder.iterdir() if path.is_dir() and path.name.rpartition("_")[2].isdigit()]
    if steps:
        return item_folder(max(steps, key=lambda path: int(path.name.rpartition("_")[2])))
    items = sorted(path for path in folder.iterdir() if (path / "_METADATA").exists())
    named = [path for path in items if path.name in ("default", "items", "params", "model_params", "state")]
    if len(items) > 1 and not named:
        raise InputError(f"{folder} holds the Orbax items {', '.join(path.name for path in items)}; name one of them")
    return (named or items or [folder])[0]


def _checkpointer() -> ocp.StandardCheckpointer:
    """Return a checkpointer that waits for no other process, for trees that the calling process holds whole."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(own, {own}, f"hcnr-{own}")
    return ocp.StandardCheckpointer(
        multiprocessing_options=options,
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )
