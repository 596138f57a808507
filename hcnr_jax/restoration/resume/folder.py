"""The work folder `.NAME.hcnr-work` beside the output: every stage's product as it is made, for `--resume`.

    work.json              what each stage depends on (`fingerprint`), and the shapes of the microbatches
    scores-SET, losses-*   Orbax folders: trees, small and written once
    choice.json            what `--choose` tried and took
    selection              Orbax too
    kernels/PATH-INDEX     a file a kernel: sha256, then safetensors with its restored rows alone (the rest is TUNED's)

Kernels are not Orbax's: half the bytes, one rename each, and a digest.
Every product is complete or absent: written beside its place, made durable, renamed.
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
"""The trees of the first stage."""
CHOICE = "choice.json"
_DIGEST = hashlib.sha256().digest_size
# Kernels that may wait for the disk before the next solve has to.
WAITING = 2


def work_path(out: Path) -> Path:
    """Where the work folder of an output lies."""
    path = out.expanduser().resolve()
    return path.parent / f".{path.name}.hcnr-work"


class Work:
    """The products of one run. Nothing is on the disk before the first one is kept.

    Of several processes the first alone writes and clears; all read, which takes storage that they share.
    """

    def __init__(self, out: Path, stages: Mapping[str, Fingerprint], shapes: tuple[Shape, ...]) -> None:
        self.folder = work_path(out)
        self.stages, self.shapes = dict(stages), shapes
        self._left: tuple[str, ...] = ()  # stages that an interrupted run began
        self._kernels = self.folder / "kernels"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._pending: deque[Future[None]] = deque()

    def open(self) -> None:
        """Take over what an interrupted run left. InputError names what of its inputs or options is another's."""
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
            # What --choose took is known later: compared in `settle_choice`, and kept until then.
            taken = {name: value for name, value in there.items() if name == TAKEN}
            self._check(stage, there, self.stages[stage] | taken)
            self.stages[stage] = self.stages[stage] | taken
        self.shapes = shapes  # an accelerator's free memory, and with it the choice, may have changed
        if is_first():
            self._write_manifest()

    def settle_choice(self, taken: str) -> None:
        """What `--choose` took (kept before) becomes a part of the later stages. InputError where one that is left was
        made with another setting."""
        later = {stage: self.stages[stage] | {TAKEN: taken} for stage in AFTER_CHOICE}
        for stage in [stage for stage in self._left if stage in later]:
            self._check(stage, self.stages[stage], later[stage])
        self.stages |= later
        if is_first():
            self._write_manifest()

    def choice(self) -> dict[str, Any] | None:
        """The kept choice, None where there is none."""
        if not self.has(CHOICE):
            return None
        try:
            return dict(json.loads((self.folder / CHOICE).read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.folder / CHOICE}: cannot be read as a choice; remove {self.folder} to begin "
                             "anew") from error  # fmt: skip

    def keep_choice(self, record: Mapping[str, Any]) -> None:
        """Save what was chosen, and from what."""
        if not is_first():
            return
        self._begin()
        with explained(self.folder):
            write_file(self.folder / CHOICE, to_json(record))

    def tree(self, name: str) -> dict[str, Any] | None:
        """A kept tree of numpy arrays, None where there is none."""
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
        """The keys of the kept kernels."""
        return {path.name for path in self._kernels.glob("[!.]*")}

    def keep_kernel(self, kernel: Kernel, form: str, rows: Any, *, info: Any) -> None:
        """Save one kernel's rows and what its solve said; a thread writes while the next kernel is solved."""
        if not is_first():
            return
        self._begin()
        while len(self._pending) >= WAITING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write_kernel, kernel, form, rows, info))

    def kernel(self, kernel: Kernel) -> tuple[str, np.ndarray, list[np.ndarray]]:
        """A kept kernel: the form of its solve, its rows, and the leaves of what was said of it."""
        path = self._kernels / key_of(kernel)
        try:
            whole = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); remove it: it is solved again") from error
        if hashlib.sha256(whole[_DIGEST:]).digest() != whole[:_DIGEST]:
            raise InputError(f"{path}: damaged (its digest differs); remove it: it is solved again")
        held = load(whole[_DIGEST:])
        leaves = [held[f"info.{i}"] for i in range(len(held) - 2)]
        return bytes(held["form"]).decode(), held["rows"], leaves

    def settle(self) -> None:
        """Wait until all that was kept is on the disk."""
        while self._pending:
            self._pending.popleft().result()

    def describe(self) -> str:
        """What is kept, as a person reads it."""
        trees = [name.removesuffix(".json") for name in (*SCORES, CHOICE, "selection") if self.has(name)]
        count = len(self.kernels())
        return ", ".join([*trees, *([f"{count} kernels"] if count else [])]) or "nothing"

    def clear(self) -> None:
        """Remove the folder and all in it."""
        with contextlib.suppress(Exception):
            self.settle()
        if is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Whether a tree, or the choice, is kept."""
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
                f"--resume: the {stage} in {self.folder} were made otherwise ({'; '.join(other)}); repeat the command "
                "as it was, or remove that folder to begin anew"
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

    def _write_kernel(self, kernel: Kernel, form: str, rows: Any, info: Any) -> None:
        said = {f"info.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(info))}
        held = {"rows": np.ascontiguousarray(rows), "form": np.frombuffer(form.encode(), np.uint8), **said}
        content = save(held)
        with explained(self.folder):
            write_file(self._kernels / key_of(kernel), hashlib.sha256(content).digest() + content)


def key_of(kernel: Kernel) -> str:
    """A kernel as a file name."""
    return "-".join([kernel.path.replace("/", "."), *map(str, kernel.index)])


def is_left(folder: Path) -> bool:
    """Whether a work folder holds a product; one killed before its first has nothing to go on with."""
    if not folder.is_dir():
        return False
    return any((folder / name).is_dir() for name in SCORES) or any((folder / "kernels").glob("[!.]*"))
