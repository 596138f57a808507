"""Keeps every stage's result in the work folder `.NAME.hcnr-work` beside the output, for `--resume`.

    work.json              cache keys of the stages (`fingerprint`), and the shapes of the microbatches
    scores-SET, losses-*   Orbax folders with small trees
    choice.json            the settings that `--choose` tried, and the setting it found
    selection              an Orbax folder
    kernels/PATH-INDEX     a file for each kernel: sha256, then safetensors with the restored rows (TUNED has the rest)

Kernels do not use Orbax: a file takes half the bytes, has a digest, and needs one rename. Every result is written
atomically, so that it is complete or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

from hcnr_jax.checkpoints.orbax import load_params as load_orbax
from hcnr_jax.checkpoints.orbax import save_params as save_orbax
from hcnr_jax.data.chat import set_date
from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.report.json import to_json
from hcnr_jax.restoration.microbatches import Shape
from hcnr_jax.restoration.resume.fingerprint import AFTER_CHOICE, TAKEN, Fingerprint, differences
from hcnr_jax.runtime.distributed import is_first
from hcnr_jax.runtime.files import explained, sync_folder, write_file

MANIFEST = "work.json"
SCORES = ("scores-honesty", "scores-task", "losses-base", "losses-tuned")
"""Names of the first stage's trees."""
CHOICE = "choice.json"
_DIGEST = hashlib.sha256().digest_size
# Largest number of kernels that wait to be written; with more, the next solve waits.
WAITING = 2


def work_path(out: Path) -> Path:
    """Return the path of an output's work folder."""
    path = out.expanduser().resolve()
    return path.parent / f".{path.name}.hcnr-work"


class Work:
    """Stores the results of one run's stages. The folder does not exist before the first result is kept.

    In a run of several processes only the first process writes and clears. All processes read, so that the folder must
    be on shared storage.

    Args:
        out: the output folder.
        stages: cache key of every stage.
        shapes: of the microbatches.
    """

    def __init__(self, out: Path, stages: Mapping[str, Fingerprint], shapes: tuple[Shape, ...]) -> None:
        self.folder = work_path(out)
        self.stages, self.shapes = dict(stages), shapes
        self._left: tuple[str, ...] = ()  # stages that an interrupted run began
        self._kernels = self.folder / "kernels"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._pending: deque[Future[None]] = deque()

    def open(self) -> None:
        """Open the results of an interrupted run.

        Raises:
            InputError: the results depend on other inputs or options, which the message names, or cannot be read.
        """
        if not is_left(self.folder):
            self.clear()
            return
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text("utf-8"))
            found, shapes = dict(manifest["stages"]), tuple(Shape(*pair) for pair in manifest["shapes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder}: expected what an interrupted run left, found something else; remove it "
                             "to begin anew") from error  # fmt: skip
        self._left = tuple(self._begun())
        for stage in self._left:
            there = found.get(stage, {})
            # The setting that --choose found is not known yet; `settle_choice` compares it later.
            taken = {name: value for name, value in there.items() if name == TAKEN}
            self._check(stage, there, self.stages[stage] | taken)
            self.stages[stage] = self.stages[stage] | taken
        self.shapes = shapes  # this run may have chosen others, as an accelerator's free memory may have changed
        if is_first():
            self._write_manifest()

    def settle_choice(self, taken: str) -> None:
        """Add the setting that `--choose` found to the cache keys of the later stages.

        Raises:
            InputError: a kept later stage was made with another setting.
        """
        later = {stage: self.stages[stage] | {TAKEN: taken} for stage in AFTER_CHOICE}
        for stage in [stage for stage in self._left if stage in later]:
            self._check(stage, self.stages[stage], later[stage])
        self.stages |= later
        if is_first():
            self._write_manifest()

    def choice(self) -> dict[str, Any] | None:
        """Read the kept record of the choice, None if there is no record."""
        if not self.has(CHOICE):
            return None
        try:
            return dict(json.loads((self.folder / CHOICE).read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.folder / CHOICE}: cannot be read as a choice; remove {self.folder} to begin "
                             "anew") from error  # fmt: skip

    def keep_choice(self, record: Mapping[str, Any]) -> None:
        """Save the record of the choice: the chosen setting and all tried settings."""
        if not is_first():
            return
        self._begin()
        with explained(self.folder):
            write_file(self.folder / CHOICE, to_json(record))

    def tree(self, name: str) -> dict[str, Any] | None:
        """Read a kept tree of numpy arrays, None if it is absent."""
        if not (self.folder / name).is_dir():
            return None
        return jax.tree.map(np.asarray, load_orbax(self.folder / name))

    def keep_tree(self, name: str, tree: Mapping[str, Any]) -> None:
        """Save a tree of arrays."""
        if not is_first():
            return
        self._begin()
        with explained(self.folder):
            save_orbax(self.folder / name, jax.tree.map(np.asarray, dict(tree)))
            sync_folder(self.folder / name)

    def kernels(self) -> set[str]:
        """Return the keys of the kept kernels."""
        return {path.name for path in self._kernels.glob("[!.]*")}

    def keep_kernel(self, kernel: Kernel, form: str, rows: Any, *, info: Any, thin: Any = None) -> None:
        """Save one kernel in a background thread, while the next kernel is solved.

        Args:
            kernel: the kernel.
            form: form of its solve.
            rows: the restored rows, or the whole kernel.
            info: pytree that the solve reported.
            thin: the correction in the adapter's coordinates, None for whole kernels.
        """
        if not is_first():
            return
        self._begin()
        while len(self._pending) >= WAITING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write_kernel, kernel, form, rows, info, thin))

    def kernel(self, kernel: Kernel) -> tuple[str, np.ndarray, list[np.ndarray], np.ndarray | None]:
        """Read a kept kernel: the form of its solve, its rows, the leaves of its info, and its `thin`.

        Raises:
            InputError: the file cannot be read or is damaged.
        """
        path = self._kernels / key_of(kernel)
        try:
            whole = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); remove it: it is solved again") from error
        if hashlib.sha256(whole[_DIGEST:]).digest() != whole[:_DIGEST]:
            raise InputError(f"{path}: damaged (its digest differs); remove it: it is solved again")
        held = load(whole[_DIGEST:])
        leaves = [held[f"info.{i}"] for i in range(sum(name.startswith("info.") for name in held))]
        return bytes(held["form"]).decode(), held["rows"], leaves, held.get("thin")

    def settle(self) -> None:
        """Wait until all kept kernels are on the disk."""
        while self._pending:
            self._pending.popleft().result()

    def describe(self) -> str:
        """Write for a person which results are kept."""
        trees = [name.removesuffix(".json") for name in (*SCORES, CHOICE, "selection") if self.has(name)]
        count = len(self.kernels())
        return ", ".join([*trees, *([f"{count} kernels"] if count else [])]) or "nothing"

    def clear(self) -> None:
        """Remove the folder with all results."""
        with contextlib.suppress(Exception):
            self.settle()
        if is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Return whether a tree, or the record of the choice, is kept."""
        return (self.folder / name).exists()

    def _begun(self) -> Iterator[str]:
        places = {"scores": SCORES, "choice": (CHOICE,), "selection": ("selection",)}
        for stage in self.stages:
            if any(self.has(name) for name in places.get(stage, ())) or (stage == "kernels" and self.kernels()):
                yield stage

    def _check(self, stage: str, there: Fingerprint, here: Fingerprint) -> None:
        other = differences(there, here)
        if other:
            raise InputError(
                f"--resume: the {stage} in {self.folder} were made with other inputs or options ({'; '.join(other)}); "
                "repeat the command as it was, or remove that folder to begin anew"
            )

    def _begin(self) -> None:
        if not (self.folder / MANIFEST).is_file():
            with explained(self.folder):
                self._kernels.mkdir(parents=True, exist_ok=True)
            self._write_manifest()

    def _write_manifest(self) -> None:
        manifest = {
            "stages": self.stages,
            "shapes": [list(shape) for shape in self.shapes],
            "template_date": set_date(None).isoformat(),
        }
        with explained(self.folder):
            write_file(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    def _write_kernel(self, kernel: Kernel, form: str, rows: Any, info: Any, thin: Any) -> None:
        said = {f"info.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(info))}
        held = {"rows": np.ascontiguousarray(rows), "form": np.frombuffer(form.encode(), np.uint8), **said}
        if thin is not None:
            held["thin"] = np.ascontiguousarray(thin)
        content = save(held)
        with explained(self.folder):
            write_file(self._kernels / key_of(kernel), hashlib.sha256(content).digest() + content)


def key_of(kernel: Kernel) -> str:
    """Return the file name of a kernel."""
    return "-".join([kernel.path.replace("/", "."), *map(str, kernel.index)])


def is_left(folder: Path) -> bool:
    """Return whether a work folder holds a result. A run that was killed before its first result left none."""
    if not folder.is_dir():
        return False
    return any((folder / name).is_dir() for name in SCORES) or any((folder / "kernels").glob("[!.]*"))
