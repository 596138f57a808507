"""Runs a restoration in its own process, and reports wall seconds, peak memory and seconds of compilation.

    python -m hcnr_jax.bench.timed_restoration CONFIG.json REPORT.json

Peak memory is the system's high-water mark of this process (VmHWM on Linux), including mapped files. A parent's figure
for its children would include the parent's size when it started them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcnr_jax.config import RestoreConfig
from hcnr_jax.errors import RunError

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
TRACE_EVENTS = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")


@dataclass(frozen=True)
class Run:
    """One process. seconds: wall seconds from start to exit, with imports. peak_bytes: its largest resident size.

    report: the content of its report file.
    """

    seconds: float
    peak_bytes: int
    report: dict[str, Any]


def run_restore(config: RestoreConfig, environment: Mapping[str, str] | None = None) -> Run:
    """Run `restore(config)` in a new process. RunError holds the end of its output where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        given, report = Path(folder) / "config.json", Path(folder) / "report.json"
        given.write_text(config.model_dump_json(), encoding="utf-8")
        seconds = run_process(
            [sys.executable, "-m", "hcnr_jax.bench.timed_restoration", str(given), str(report)], environment
        )
        told = json.loads(report.read_text(encoding="utf-8"))
    return Run(seconds, int(told.pop("peak_bytes")), told)


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Run a command and return its wall seconds; RunError where it failed."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_PYTHON_CLIENT_PREALLOCATE"}
    start = time.perf_counter()
    done = subprocess.run(command, env={**clean, **(environment or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{' '.join(command[:4])} ended with code {done.returncode}: {done.stderr.strip()[-1000:]}")
    return time.perf_counter() - start


def peak_bytes() -> int:
    """Return the largest resident size that this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        return 1024 * int(fields["VmHWM"].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(given: Path, report: Path) -> None:
    """Restore, and write the report."""
    import jax

    config = RestoreConfig.model_validate_json(given.read_text(encoding="utf-8"))
    compiling: dict[str, list[float]] = {}

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        compiling.setdefault(event, []).append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    from hcnr_jax.restoration import restore

    restore(config)
    record = json.loads((config.out / "hcnr.json").read_text(encoding="utf-8"))
    backend = compiling.get(COMPILE_EVENT, [])
    told = {
        "peak_bytes": peak_bytes(),
        "stages": record["seconds"],
        "compilations": len(backend),
        "compile_seconds": sum(backend),
        "trace_seconds": sum(sum(compiling.get(event, [])) for event in TRACE_EVENTS),
        "device_peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }
    report.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
