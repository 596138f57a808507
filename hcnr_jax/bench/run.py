"""Runs `hcnr bench`: the sections in order, their tables, and the record."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from hcnr_jax.bench.measurement import BenchContext, Measurement, chosen_dtype, table
from hcnr_jax.bench.model_shapes import spec_of
from hcnr_jax.bench.roofline import measure_rates
from hcnr_jax.bench.sections import compensate, files, fisher, restore, sweep
from hcnr_jax.config import BenchConfig, option_name
from hcnr_jax.errors import InputError
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.json import to_json, versions
from hcnr_jax.report.result_file import check_new_file
from hcnr_jax.runtime.devices import open_devices
from hcnr_jax.runtime.files import write_result

# `restore` comes first, because its runs are separate processes that need the memory of an accelerator.
SECTIONS: dict[str, Callable[[BenchContext], list[Measurement]]] = {
    "restore": restore.measure,
    "files": files.measure,
    "sweep": sweep.measure,
    "fisher": fisher.measure,
    "compensate": compensate.measure,
}
"""Name of a section -> its function."""


def bench(config: BenchConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Measure the chosen sections, for `hcnr bench`. Returns the content of --json.

    Raises InputError for an unknown section, or a --json or --scratch that cannot be used.
    """
    reporter = reporter or Reporter()
    names = chosen_sections(config.sections)
    if config.json is not None:
        check_new_file(config.json, "--json")
    # This must precede the first use of the device: the processes of `restore` need its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    open_devices()
    with jax.default_matmul_precision("highest"), _scratch(config) as scratch:
        dtype = chosen_dtype(config.dtype)
        context = BenchContext(config, spec_of(config.shape), dtype, measure_rates(dtype), Path(scratch), reporter.say)
        record = _head(config, context)
        reporter.table("machine", [(name, str(value)) for name, value in _machine(record).items()])
        for name in names:
            with reporter.stage(name, 1, "section") as stage:
                rows = SECTIONS[name](context)
                stage.advance()
            record["sections"][name] = [row.to_json() for row in rows]
            reporter.console.print(table(name, rows))
    record["seconds"] = reporter.seconds
    if config.json is not None:
        write_result(config.json, to_json(record).decode())
        reporter.say(f"record: {config.json}")
    return record


def chosen_sections(text: str) -> list[str]:
    """Return the sections that `--sections` names, in the order of the run; InputError names an unknown section."""
    given = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in given if name not in SECTIONS and name != "all"]
    if unknown or not given:
        found = repr(unknown[0]) if unknown else "none"
        raise InputError(f"--sections {text}: expected all, or names out of {', '.join(SECTIONS)}; found {found}")
    return [name for name in SECTIONS if "all" in given or name in given]


def command_of(config: BenchConfig) -> str:
    """Return the command line of this configuration, without --json and --scratch, which do not affect the result."""
    words = ["hcnr bench"]
    for name, info in BenchConfig.model_fields.items():
        value = getattr(config, name)
        if name not in ("json", "scratch") and value != info.default:
            words += [option_name(BenchConfig, name), str(value)]
    return " ".join(words)


def _scratch(config: BenchConfig) -> tempfile.TemporaryDirectory[str]:
    if config.scratch is not None and not config.scratch.is_dir():
        raise InputError(f"--scratch {config.scratch}: expected a folder that exists")
    return tempfile.TemporaryDirectory(prefix="hcnr-bench-", dir=config.scratch)


def _head(config: BenchConfig, context: BenchContext) -> dict[str, Any]:
    device = jax.devices()[0]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "command": command_of(config),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "dtype": context.dtype,
        "rates": {
            "matmul_flops_per_second": context.rates.matmul,
            "matmul_float32_flops_per_second": context.rates.matmul_float32,
            "copy_bytes_per_second": context.rates.copy,
        },
        "sections": {},
    }


def _machine(record: dict[str, Any]) -> dict[str, str]:
    device, rates = record["device"], record["rates"]
    return {
        "command": record["command"],
        "device": f"{device['kind']} ({device['platform']}), {record['cores']} cores",
        "dtype": record["dtype"],
        "matmul": f"{rates['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s in {record['dtype']}, "
        f"{rates['matmul_float32_flops_per_second'] / 1e9:,.0f} in float32",
        "copy": f"{rates['copy_bytes_per_second'] / 1e9:,.1f} GB/s",
    }
