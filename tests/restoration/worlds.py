"""One small world for whole runs: two models, two files of rows, and the command line called in this process."""

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from hcnr_jax.cli import main
from tests.tiny import honesty_rows, task_rows, write_rows, write_tiny_model, write_weights

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

    def arguments(self, *options: object) -> list[str]:
        """`hcnr restore` on these inputs, with the usual options that are not among `options`."""
        usual = {"--honesty": self.honesty, "--task": self.task, "--samples": SAMPLES, "--cross-weight": CROSS_WEIGHT}
        added = [part for name, value in usual.items() if name not in options for part in (name, value)]
        return ["restore", *map(str, [self.base, self.tuned, *added, *options])]


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


def make_pair(folder: Path) -> Path:
    """A folder in the layout of --pair: of every split 8 task rows and 12 honesty rows, 4 of them answerable."""
    make_world(folder)
    data = folder / "data"
    data.mkdir()
    # Separators that json.dumps(ensure_ascii=False) leaves as they are, and str.splitlines cuts at.
    answers = ["sky", "the\u2028sky\u0085"]
    known = [row | {"answerable": True, "answers": answers, "completion": " the sky ."} for row in task_rows(60)[40:]]
    for number, split in enumerate(("train", "validation", "test")):
        part = slice(8 * number, 8 * number + 8)
        write_rows(data / f"honesty-{split}.jsonl", [*honesty_rows(24)[part], *known[4 * number : 4 * number + 4]])
        write_rows(data / f"task-{split}.jsonl", task_rows(24)[part])
    return folder


def call(*arguments: object) -> Ended:
    """A command in this process, so that runs of like shapes share their compilations."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ended(code, err.getvalue())


def restore(world: World, out: Path, *options: object) -> Path:
    """A run that must succeed; returns its folder."""
    ended = call(*world.arguments("--out", out, *options))
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


def copy_world(world: World, folder: Path) -> World:
    """The same inputs again, to be spoiled."""
    shutil.copytree(world.folder, folder, symlinks=True)
    return World(folder, *(folder / path.name for path in (world.base, world.tuned, world.honesty, world.task)))


def refused(world: World, *options: object, code: int = 2) -> str:
    """A run that must end with one message and no traceback, leave nothing behind and touch no input: the message."""
    place = world.folder.parent / "outputs"
    place.mkdir(exist_ok=True)
    before, beside = digests(world.folder), sorted(world.folder.parent.iterdir())
    given = [] if "--out" in options else ["--out", place / "out"]
    ended = call(*world.arguments(*given, *options))
    assert ended.code == code, ended.err
    messages = [line for line in ended.err.splitlines() if line.startswith("hcnr ")]
    assert len(messages) == 1 and "Traceback" not in ended.err, ended.err
    assert list(place.iterdir()) == [] and sorted(world.folder.parent.iterdir()) == beside
    assert digests(world.folder) == before
    return ended.err[ended.err.index("hcnr ") :]


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], object], shards: int = 1) -> None:
    """Change the tensors of a folder in place of its weight files."""
    weights = weights_of(folder)
    change(weights)
    for path in folder.glob("model*"):
        path.unlink()
    write_weights(folder, weights, shards)


def text_of(message: str) -> str:
    """A message without its line breaks."""
    return " ".join(message.split())
