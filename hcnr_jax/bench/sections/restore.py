"""Section restore: `hcnr restore` from start to exit on random folders, one process for each preset.

The floor is the work that every restoration must do: plain reads of both models and a plain copy of one. The files were
just written, so that all contenders read from the page cache. Stages come from hcnr.json. JAX reports the seconds of
compilation, which may run beside other work.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hcnr_jax.bench.measurement import BenchContext, Measurement
from hcnr_jax.bench.random_models import Pair, write_pair
from hcnr_jax.bench.timed_restoration import run_restore
from hcnr_jax.bench.timing import race
from hcnr_jax.config import RestoreConfig, build, read_yaml
from hcnr_jax.presets import preset

PRESETS = ("paper", "recommended")
PIECE, BUFFER = 1 << 26, 1 << 22


def measure(context: BenchContext) -> list[Measurement]:
    """Measure the whole run of each preset against the floor, then its stages."""
    config = context.config
    folder = context.scratch / "restore"
    folder.mkdir()
    pair = write_pair(folder, config.shape, context.dtype, rows=config.rows, tokens=config.tokens, seed=config.seed)
    floor = copy_floor(pair, config.repeats)
    found = []
    for name in PRESETS:
        run = run_restore(restore_config(name, pair, folder / name, rows=config.rows, seed=config.seed))
        shutil.rmtree(folder / name)
        compiling = run.report["compile_seconds"]
        notes = {"compilations": run.report["compilations"], "tracing s": run.report["trace_seconds"]}
        if run.report["device_peak_bytes"]:
            notes["device_peak_bytes"] = run.report["device_peak_bytes"]
        whole = Measurement(
            name, run.seconds, "read both, write one", floor, floor, run.peak_bytes, None, compiling, notes
        )
        found += [whole, *(Measurement(f"{name}: {stage}", took) for stage, took in run.report["stages"].items())]
    shutil.rmtree(folder)
    return found


def restore_config(name: str, pair: Pair, out: Path, *, rows: int, seed: int) -> RestoreConfig:
    """Make the configuration of `hcnr restore --config configs/NAME.yaml` on the pair.

    Args:
        name: name of the preset.
        pair: the random models and rows.
        out: the output folder.
        rows: `--samples`.
        seed: `--seed`.
    """
    values = read_yaml(RestoreConfig, preset(name))
    paths = {"base": str(pair.base), "tuned": str(pair.tuned), "honesty": pair.honesty, "task": pair.task, "out": out}
    return build(RestoreConfig, {**values, **paths, "samples": rows, "seed": seed, "check": False})


def copy_floor(pair: Pair, repeats: int) -> float:
    """Measure the seconds to read every weight file of both models and to write one model's."""
    base, tuned = (sorted(folder.glob("*.safetensors")) for folder in (pair.base, pair.tuned))
    target = pair.base.parent / "copy"

    def read_and_write() -> None:
        for path in base:
            read_file(path)
        for number, path in enumerate(tuned):
            read_file(path)
            shutil.copyfile(path, f"{target}-{number}")
            Path(f"{target}-{number}").unlink()

    return race({"floor": read_and_write}, repeats)["floor"].median


def read_file(path: Path) -> None:
    """Read all bytes of a file with a thread for each core, since one thread alone is slower."""

    def piece(start: int) -> None:
        buffer = memoryview(bytearray(BUFFER))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = PIECE
            while left and (read := file.readinto(buffer[: min(left, BUFFER)])):
                left -= read

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        list(pool.map(piece, range(0, path.stat().st_size, PIECE)))
