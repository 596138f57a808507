"""Section files: reading and writing a model's folder, against plain reads and copies of the same bytes.

Everything is in the page cache, for both sides: what is measured is the work on the way, not the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hcnr_jax.bench.random_models import write_model
from hcnr_jax.bench.restore import read_file
from hcnr_jax.bench.section import Measured, Setting
from hcnr_jax.bench.timing import race
from hcnr_jax.checkpoints import (
    Checkpoint,
    HFTensors,
    check_finite,
    hf_name_of,
    load_params,
    open_checkpoint,
    save_like,
    tensor_digests,
    write_like,
)
from hcnr_jax.models import KERNELS

# What each of ours is held against.
AGAINST = {
    "load_params": "plain read",
    "check_finite": "plain read",
    "tensor_digests": "plain read",
    "write_like, nothing changed": "plain copy",
    "write_like, all kernels changed": "plain copy",
    "save_like, all kernels changed": "plain copy, synced",
}


def measure(setting: Setting) -> list[Measured]:
    """Rows: loading to the device, the check for NaN, hashing, writing with and without the final sync."""
    folder = setting.scratch / "files"
    folder.mkdir()
    checkpoint = open_checkpoint(
        write_model(folder / "model", setting.config.shape, setting.dtype, setting.config.seed)
    )
    size = sum(path.stat().st_size for path in _weights(checkpoint))
    calls = {**_plain(checkpoint, folder), **_ours(setting, checkpoint, folder)}
    seconds = {name: found.median for name, found in race(calls, setting.config.repeats).items()}
    shutil.rmtree(folder)
    return [
        Measured(
            name,
            seconds[name],
            other,
            seconds[other],
            seconds[other],
            notes={"GB/s": size / seconds[name] / 1e9, "its GB/s": size / seconds[other] / 1e9},
        )
        for name, other in AGAINST.items()
    ]


def _weights(checkpoint: Checkpoint) -> list[Path]:
    return [shard.path for shard in checkpoint.shards]


def _plain(checkpoint: Checkpoint, folder: Path) -> dict[str, Callable[[], None]]:
    def read() -> None:
        for path in _weights(checkpoint):
            read_file(path)

    def copy(synced: bool) -> None:
        for path in _weights(checkpoint):
            target = folder / "copy"
            shutil.copyfile(path, target)
            if synced:
                with target.open("rb") as file:
                    os.fsync(file.fileno())
            target.unlink()

    return {"plain read": read, "plain copy": lambda: copy(False), "plain copy, synced": lambda: copy(True)}


def _ours(setting: Setting, checkpoint: Checkpoint, folder: Path) -> dict[str, Callable[[], object]]:
    params = load_params(checkpoint, setting.spec)
    names = [hf_name_of(path, layer) for path in KERNELS for layer in range(setting.spec.num_layers)]
    changed = HFTensors(params, setting.spec, {name: checkpoint.tensors[name].dtype for name in names})

    def written(save: Callable[[Path], object]) -> Callable[[], None]:
        def call() -> None:
            save(folder / "out")
            shutil.rmtree(folder / "out")

        return call

    def like(replaced: HFTensors | dict[str, object]) -> Callable[[], None]:
        def save(out: Path) -> None:
            out.mkdir()
            write_like(checkpoint, out, replaced)

        return written(save)

    return {
        "load_params": lambda: load_params(checkpoint, setting.spec),
        "check_finite": lambda: check_finite(checkpoint),
        "tensor_digests": lambda: tensor_digests(checkpoint),
        "write_like, nothing changed": like({}),
        "write_like, all kernels changed": like(changed),
        "save_like, all kernels changed": written(lambda out: save_like(checkpoint, out, changed)),
    }
