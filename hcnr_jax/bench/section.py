"""What a section of the benchmark is given, and the rows it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from hcnr_jax.bench.floors import Rates
from hcnr_jax.config import BenchConfig
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.terminal import wide_table


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark: its options, the model's sizes, the dtype of weights and arithmetic, the device's
    rates, an empty folder for temporary models, and where to say what is skipped."""

    config: BenchConfig
    spec: ModelSpec
    dtype: str
    rates: Rates
    scratch: Path
    say: Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One row: ours, what it is held against, and the floor. Seconds of one call; bytes beside the arguments.

    against: the other contender's name, "" for a row that only states ours.
    floor: seconds that counted FLOPs or bytes take at the measured rates.
    """

    name: str
    seconds: float
    against: str = ""
    against_seconds: float | None = None
    floor: float | None = None
    memory: int | None = None
    against_memory: int | None = None
    compile_seconds: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Ours over the other: below 1 is faster."""
        return None if self.against_seconds is None else self.seconds / self.against_seconds

    @property
    def memory_ratio(self) -> float | None:
        """Ours over the other's peak."""
        return self.memory / self.against_memory if self.memory and self.against_memory else None

    @property
    def share(self) -> float | None:
        """Of the floor: 1 is as fast as the machine can be; for a floor of FLOPs this is the MFU."""
        return None if self.floor is None else self.floor / self.seconds

    def to_json(self) -> dict[str, Any]:
        """All of it, the ratios too."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "against": self.against or None,
            "against_seconds": self.against_seconds,
            "ratio": self.ratio,
            "memory_bytes": self.memory,
            "against_memory_bytes": self.against_memory,
            "memory_ratio": self.memory_ratio,
            "floor_seconds": self.floor,
            "share_of_floor": self.share,
            "compile_seconds": self.compile_seconds,
            **self.notes,
        }


WIDTH = 150


def table(title: str, rows: Sequence[Measured]) -> Table:
    """The rows as a person reads them, notes as columns of their own; a column without an entry is left out."""
    notes = list(dict.fromkeys(name for row in rows for name in row.notes))
    columns = {
        "": [row.name for row in rows],
        "ours s": [_seconds(row.seconds) for row in rows],
        "against": [row.against for row in rows],
        "its s": [_seconds(row.against_seconds) for row in rows],
        "ratio": [_ratio(row.ratio) for row in rows],
        "memory": [_megabytes(row.memory) for row in rows],
        "its memory": [_megabytes(row.against_memory) for row in rows],
        "ratio ": [_ratio(row.memory_ratio) for row in rows],
        "floor s": [_seconds(row.floor) for row in rows],
        "share": ["" if row.share is None else f"{row.share:.1%}" for row in rows],
        "compile s": [_seconds(row.compile_seconds) for row in rows],
        **{name: [_short(row.notes.get(name, "")) for row in rows] for name in notes},
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    found = wide_table(title, list(kept), list(zip(*kept.values(), strict=True)))
    found.width = WIDTH  # of a report, whatever the terminal: a wrapped number is no number
    return found


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.1f} MB"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def chosen_dtype(name: str) -> str:
    """`auto` for this device: float32 on a host, whose arithmetic it is, bfloat16 on an accelerator."""
    if name != "auto":
        return name
    return "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"


def bytes_per(dtype: str) -> int:
    """Bytes of one number."""
    return jnp.dtype(dtype).itemsize
