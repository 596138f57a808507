"""Section restore: `hcnr restore` from start to exit on random folders of the shape, one process a preset.

The floor is what no restoration can do without: reading both models and writing one, measured as plain reads and a
plain copy of the same files. Files were just written, so that reads come from the page cache for all alike. Stages are
those of hcnr.json; compiling, which may run beside other work, is what JAX itself reports.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hcnr_jax.bench.random_models import Pair, write_pair
from hcnr_jax.bench.section import Measured, Setting
from hcnr_jax.bench.timed_restoration import run_restore
from hcnr_jax.bench.timing import race
from hcnr_jax.config import RestoreConfig, build, read_yaml
from hcnr_jax.presets import preset

PRESETS = ("paper", "recommended")
PIECE, BUFFER = 1 << 26, 1 << 22


def measure(setting: Setting) -> list[Measured]:
    """Rows: the whole run of each preset, then its stages, its compilations, and the two as one floor."""
    config = setting.config
    folder = setting.scratch / "restore"
    folder.mkdir()
    pair = write_pair(folder, config.shape, setting.dtype, config.rows, config.tokens, config.seed)
    floor = copy_floor(pair, config.repeats)
    found = []
    for name in PRESETS:
        run = run_restore(restore_config(name, pair, folder / name, config.rows, config.seed))
        shutil.rmtree(folder / name)
        compiling = run.report["compile_seconds"]
        notes = {"compilations": run.report["compilations"], "tracing s": run.report["trace_seconds"]}
        if run.report["device_peak_bytes"]:
            notes["device_peak_bytes"] = run.report["device_peak_bytes"]
        whole = Measured(
            name, run.seconds, "read both, write one", floor, floor, run.peak_bytes, None, compiling, notes
        )
        found += [whole, *(Measured(f"{name}: {stage}", took) for stage, took in run.report["stages"].items())]
    shutil.rmtree(folder)
    return found


def restore_config(name: str, pair: Pair, out: Path, rows: int, seed: int) -> RestoreConfig:
    """`hcnr restore --config configs/NAME.yaml` on the pair."""
    values = read_yaml(RestoreConfig, preset(name))
    paths = {"base": str(pair.base), "tuned": str(pair.tuned), "honesty": pair.honesty, "task": pair.task, "out": out}
    return build(RestoreConfig, {**values, **paths, "samples": rows, "seed": seed})


def copy_floor(pair: Pair, repeats: int) -> float:
    """Seconds to read every weight file of both models and to write one model's."""
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
    """All bytes of a file, as many pieces at a time as there are cores: one thread alone is no floor."""

    def piece(start: int) -> None:
        buffer = memoryview(bytearray(BUFFER))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = PIECE
            while left and (read := file.readinto(buffer[: min(left, BUFFER)])):
                left -= read

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        list(pool.map(piece, range(0, path.stat().st_size, PIECE)))
