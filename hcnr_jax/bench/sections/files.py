"""Section files: reading and writing a model's folder, against plain reads and copies of the same bytes.

All files are in the page cache for both sides, so that the section measures the work of the programs and not the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hcnr_jax.bench.measurement import BenchContext, Measurement
from hcnr_jax.bench.random_models import write_model
from hcnr_jax.bench.sections.restore import read_file
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

# hcnr's function -> the contender.
AGAINST = {
    "load_params": "plain read",
    "check_finite": "plain read",
    "tensor_digests": "plain read",
    "write_like, nothing changed": "plain copy",
    "write_like, all kernels changed": "plain copy",
    "save_like, all kernels changed": "plain copy, synced",
}


def measure(context: BenchContext) -> list[Measurement]:
    """Measure loading to the device, the check for NaN, hashing, and writing with and without the final sync."""
    folder = context.scratch / "files"
    folder.mkdir()
    checkpoint = open_checkpoint(
        write_model(folder / "model", context.config.shape, context.dtype, seed=context.config.seed)
    )
    size = sum(path.stat().st_size for path in _weights(checkpoint))
    calls = {**_plain(checkpoint, folder), **_hcnr(context, checkpoint, folder)}
    seconds = {name: found.median for name, found in race(calls, context.config.repeats).items()}
    shutil.rmtree(folder)
    return [
        Measurement(
            name,
            seconds[name],
            contender,
            seconds[contender],
            seconds[contender],
            notes={"GB/s": size / seconds[name] / 1e9, "its GB/s": size / seconds[contender] / 1e9},
        )
        for name, contender in AGAINST.items()
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


def _hcnr(context: BenchContext, checkpoint: Checkpoint, folder: Path) -> dict[str, Callable[[], object]]:
    params = load_params(checkpoint, context.spec)
    names = [
        hf_name_of(path, layer, context.spec.recipe)
        for path in context.spec.kernels
        for layer in range(context.spec.num_layers)
    ]
    changed = HFTensors(params, context.spec, {name: checkpoint.tensors[name].dtype for name in names})

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
        "load_params": lambda: load_params(checkpoint, context.spec),
        "check_finite": lambda: check_finite(checkpoint),
        "tensor_digests": lambda: tensor_digests(checkpoint),
        "write_like, nothing changed": like({}),
        "write_like, all kernels changed": like(changed),
        "save_like, all kernels changed": written(lambda out: save_like(checkpoint, out, changed)),
    }
