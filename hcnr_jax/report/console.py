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

# Seconds between two lines of a stage where the output is no terminal.
LINE_SECONDS = 30.0


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
            say = None if self.console.is_terminal else self.say
            task = progress.add_task(name, total=total)
            stage = Stage(name, unit, progress, task, total or 0, self.clean_point, say)
            yield stage
        elapsed = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        self.say(f"{name}: {stage.total} {unit} in {elapsed:.1f} s")


@dataclass
class Stage:
    """Shows the bar of a running stage, or without a terminal a line every half minute.

    Args:
        name: of the stage.
        unit: of what is counted.
        progress: the bar.
        task: of the bar.
        total: of the units, 0 while it is not known.
        clean_point: called at every step forward.
        say: prints a line; None on a terminal.
        note: makes what a line ends with, such as the loss; called when a line is due.
        done: units so far.
        started: seconds of the clock at the start.
        told: seconds of the clock at the last line.
    """

    name: str
    unit: str
    progress: Progress
    task: TaskID
    total: int
    clean_point: Callable[[], None]
    say: Callable[[str], None] | None = None
    note: Callable[[], str] = lambda: ""
    done: int = 0
    started: float = field(default_factory=lambda: time.perf_counter())
    told: float = field(default_factory=lambda: time.perf_counter())

    def _tell(self) -> None:
        """Print a line every half minute where there is no terminal to show a bar on."""
        now = time.perf_counter()
        if self.say is None or now - self.told < LINE_SECONDS or self.done >= self.total > 0:
            return
        self.told, spent, note = now, now - self.started, self.note()
        left = f", about {spent / self.done * (self.total - self.done):.0f} s left" if self.total and self.done else ""
        of = f" of {self.total}" if self.total else ""
        self.say(f"{self.name}: {self.done}{of} {self.unit} in {spent:.0f} s{left}{f', {note}' if note else ''}")

    def advance(self, by: int = 1) -> None:
        """Move the bar forward."""
        self.progress.advance(self.task, by)
        self.done += by
        self._tell()
        self.clean_point()

    def expect(self, total: int) -> None:
        """Set the total, where it was not known at the start."""
        if total != self.total:
            self.total = total
            self.progress.update(self.task, total=total)

    def restart(self) -> None:
        """Begin again from zero, after memory ran out."""
        self.progress.reset(self.task)
        self.done, self.started = 0, time.perf_counter()
