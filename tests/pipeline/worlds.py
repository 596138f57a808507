"""One small world for whole runs: two models, two files of rows, and the command line called in this process."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from hcnr_jax.cli import main
from tests.tiny import honesty_rows, task_rows, write_rows, write_tiny_model

ROWS = 12
SAMPLES = 8
CROSS_WEIGHT = 0.4  # so that some kernels are not kept


@dataclass(frozen=True)
class World:
    """Inputs of a restoration; `folder` holds them and nothing else."""

    folder: Path
    base: Path
    tuned: Path
    honesty: Path
    task: Path

    def arguments(self, out: Path, *options: object) -> list[str]:
        """`hcnr restore` on these inputs, with the usual options that are not among `options`."""
        usual = {"--honesty": self.honesty, "--task": self.task, "--samples": SAMPLES, "--cross-weight": CROSS_WEIGHT}
        added = [part for name, value in usual.items() if name not in options for part in (name, value)]
        return ["restore", *map(str, [self.base, self.tuned, "--out", out, *added, *options])]


class Ended(NamedTuple):
    """How a command ended: its exit code and all it wrote to standard error."""

    code: int
    err: str


def make_world(
    folder: Path, family: str = "llama", shards: int = 1, chat_template: str | None = None, **model
) -> World:
    """BASE, TUNED (noise on its kernels), honesty.jsonl and task.jsonl."""
    base = write_tiny_model(folder / "base", family, shards=shards, chat_template=chat_template, **model)
    tuned = write_tiny_model(folder / "tuned", seed=7, base=base, shards=shards, chat_template=chat_template, delta=0.2)
    honesty = write_rows(folder / "honesty.jsonl", honesty_rows(ROWS))
    return World(folder, base, tuned, honesty, write_rows(folder / "task.jsonl", task_rows(ROWS)))


def call(*arguments: object) -> Ended:
    """A command in this process, so that runs of like shapes share their compilations."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ended(code, err.getvalue())


def restore(world: World, out: Path, *options: object) -> Path:
    """A run that must succeed; returns its folder."""
    ended = call(*world.arguments(out, *options))
    assert ended.code == 0, ended.err
    return out


def record_of(out: Path) -> dict:
    return json.loads((out / "hcnr.json").read_text())


def kernels_of(out: Path) -> dict[str, dict]:
    """hcnr.json's lines by tensor name."""
    return {line["tensor"]: line for line in record_of(out)["kernels"]}


def neurons_of(out: Path) -> dict[str, np.ndarray]:
    """The restored neurons of every kept kernel, from the patch."""
    with safe_open(out / "hcnr.patch.safetensors", framework="numpy") as file:
        names = [name for name in file.keys() if name.endswith(".neurons")]  # noqa: SIM118
        return {name.removesuffix(".neurons"): file.get_tensor(name) for name in names}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the model in a folder; the patch beside it is no part of the model."""
    weights = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return weights


def same_bytes(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
