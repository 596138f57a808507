"""Stores records as JSON lines, each flushed when it is made, so that a stopped run repeats no work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hcnr_jax.errors import InputError, RunError
from hcnr_jax.runtime.append_log import AppendLog

Record = dict[str, Any]


class Records:
    """Holds the records of a file by key, of which the last one counts; a context manager opens the file for
    writing.

    A line cut off by a kill is dropped. InputError for a file that holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Record] = {}
        self._lines: AppendLog | None = None

    def __enter__(self) -> Records:
        try:
            self._lines = AppendLog(self.path)
            self._found = {record["key"]: record for record in self._lines.found}
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}); choose another --out") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path}: expected the records of an experiment, found something else; choose another --out"
            ) from error
        self._lines.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Record:
        return self._found[key]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record under its `key`. RunError where the disk fails."""
        if self._lines is None:
            raise ValueError("Records are written to inside their `with` block")
        try:
            self._lines.add(record, allow_nan=False)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); the records so far are kept") from error
        self._found[record["key"]] = dict(record)
