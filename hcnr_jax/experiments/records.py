"""Records on disk, one JSON line each, flushed as they are made: what is there is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hcnr_jax.errors import InputError, RunError

Record = dict[str, Any]


class Records:
    """A file of records with different keys; use as a context, which opens it for writing.

    A line cut off by a kill is dropped. InputError for a file that holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Record] = {}
        self._file: IO[str] | None = None

    def __enter__(self) -> Records:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read() if self.path.exists() else 0
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
            self._file.truncate(whole)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another --out") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __iter__(self) -> Iterator[Record]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record under its `key`. RunError where the disk fails."""
        if self._file is None:
            raise ValueError("Records are written to inside their `with` block")
        self._found[record["key"]] = dict(record)
        try:
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); what is there is kept") from error

    def _read(self) -> int:
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        try:
            for line in raw[:whole].decode().splitlines():
                record = json.loads(line)
                self._found[record["key"]] = record
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path}: expected the records of an experiment, found something else; choose another --out"
            ) from error
        return whole
