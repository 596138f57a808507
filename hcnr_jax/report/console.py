"""Prints the progress of a run: stages with progress bars, plans and warnings. No other module prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hcnr_jax.runtime.distributed import is_first


@dataclass
class Reporter:
    """Writes to standard error, and keeps the seconds of each stage and the warnings for the record.

    clean_point: called wherever a stage advances, when all work until there is complete.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, soft_wrap=True))
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    clean_point: Callable[[], None] = lambda: None

    @classmethod
    def of_process(cls) -> Reporter:
        """Make a reporter that is silent in every process but the first."""
        reporter = cls()
        reporter.console.quiet = not is_first()
        return reporter

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print one warning and keep it for the record."""
        self.warnings.append(text)
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print a table of two columns: name and value."""
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in rows:
            table.add_row(name, value)
        self.console.print(table)

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Stage]:
        """Time a stage: a bar on a terminal, and one line at the end. With total None, `Stage.expect` sets the total
        later.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        start = time.perf_counter()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            stage = Stage(progress, progress.add_task(name, total=total), total or 0, self.clean_point)
            yield stage
        elapsed = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        self.say(f"{name}: {stage.total} {unit} in {elapsed:.1f} s")


@dataclass
class Stage:
    """Shows the bar of a running stage."""

    progress: Progress
    task: TaskID
    total: int
    clean_point: Callable[[], None]

    def advance(self, by: int = 1) -> None:
        """Move the bar forward."""
        self.progress.advance(self.task, by)
        self.clean_point()

    def expect(self, total: int) -> None:
        """Set the total, where it was not known at the start."""
        if total != self.total:
            self.total = total
            self.progress.update(self.task, total=total)

    def restart(self) -> None:
        """Begin again from zero, after memory ran out."""
        self.progress.reset(self.task)
