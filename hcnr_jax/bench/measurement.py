"""The input and output of a benchmark section: `BenchContext` goes in, `Measurement` rows come out as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from hcnr_jax.bench.roofline import Rates
from hcnr_jax.config import BenchConfig
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.terminal_tables import wide_table


@dataclass(frozen=True)
class BenchContext:
    """What a section of the benchmark needs.

    config: the options. spec: the model's sizes. dtype: of weights and arithmetic. rates: of the device. scratch: an
    empty folder for temporary models. say: prints which contenders were skipped.
    """

    config: BenchConfig
    spec: ModelSpec
    dtype: str
    rates: Rates
    scratch: Path
    say: Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """One row of a section: hcnr's seconds of one call, a contender's, and the floor.

    against: the contender's name, "" for a row of hcnr alone.
    floor: the seconds that the counted FLOPs or bytes take at the device's rates.
    memory, against_memory: peak bytes beside the arguments.
    notes: further numbers of the row, by name.
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
        """hcnr's seconds over the contender's; below 1, hcnr is faster."""
        return None if self.against_seconds is None else self.seconds / self.against_seconds

    @property
    def memory_ratio(self) -> float | None:
        """hcnr's peak memory over the contender's."""
        return self.memory / self.against_memory if self.memory and self.against_memory else None

    @property
    def share(self) -> float | None:
        """The floor over hcnr's seconds; 1 is as fast as the machine can be. For a floor of FLOPs this is the MFU."""
        return None if self.floor is None else self.floor / self.seconds

    def to_json(self) -> dict[str, Any]:
        """The row as JSON: all fields and ratios, each note as a field of its own."""
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
WRAP = 15  # columns of a contender's name


def table(title: str, rows: Sequence[Measurement]) -> Table:
    """Format the measurements for a person: a column for each contender and each note, none without an entry."""
    contenders = list(dict.fromkeys(row.against for row in rows if row.against))
    contender = contenders[0] if len(contenders) == 1 else "contender"
    notes = list(dict.fromkeys(name for row in rows for name in row.notes))
    columns = {
        "": [row.name for row in rows],
        "hcnr s": [_seconds(row.seconds) for row in rows],
        **{f"{name} s": [_seconds(_against(row, name)) for row in rows] for name in contenders},
        "time ratio": [_ratio(row.ratio) for row in rows],
        "hcnr memory": [_megabytes(row.memory) for row in rows],
        f"{contender} memory": [_megabytes(row.against_memory) for row in rows],
        "memory ratio": [_ratio(row.memory_ratio) for row in rows],
        "floor s": [_seconds(row.floor) for row in rows],
        "share of floor": ["" if row.share is None else f"{row.share:.1%}" for row in rows],
        "compile s": [_seconds(row.compile_seconds) for row in rows],
        **{_heading(name, notes, contender): [_short(row.notes.get(name, "")) for row in rows] for name in notes},
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    # Headings are longer than their numbers: contenders' names are wrapped, other headings take a line for each word.
    seconds = {f"{name} s" for name in contenders}
    header = [textwrap.fill(name, WRAP) if name in seconds else name.replace(" ", "\n") for name in kept]
    found = wide_table(title, header, list(zip(*kept.values(), strict=True)))
    found.width = WIDTH  # whatever the terminal's width, since a narrower table would wrap numbers
    return found


def _against(row: Measurement, contender: str) -> float | None:
    return row.against_seconds if row.against == contender else None


def _heading(note: str, notes: Sequence[str], contender: str) -> str:
    """The heading of a note: `its X` is the contender's X, and the X beside it is hcnr's."""
    if note.startswith("its "):
        return note.replace("its", contender, 1)
    return f"hcnr {note}" if f"its {note}" in notes else note.replace("other_rows", "contender rows")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.1f} MB"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def chosen_dtype(name: str) -> str:
    """Resolve `auto` for this device: float32 on a CPU, bfloat16 on an accelerator."""
    if name != "auto":
        return name
    return "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"
