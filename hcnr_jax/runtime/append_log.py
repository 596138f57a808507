"""An append-only log in JSON Lines. Every line is flushed when it is written; a line that a kill cut off is dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from hcnr_jax.errors import InputError


class AppendLog:
    """A file of JSON values, one a line; `found` holds the values that an earlier run wrote in whole lines.

    Nothing is written before `open`. The constructor raises ValueError where a whole line is not JSON or not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        raw = path.read_bytes() if path.exists() else b""
        self._whole = raw.rfind(b"\n") + 1
        # Not `splitlines`, which also ends a line at U+2028 and U+0085; JSON strings may hold both.
        self.found: list[Any] = [json.loads(line) for line in raw[: self._whole].decode().split("\n")[:-1]]

    def open(self) -> None:
        """Open the file for appending and cut off a partial last line. InputError where it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
            self._file.truncate(self._whole)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another --out") from error

    def add(self, value: Mapping[str, Any], allow_nan: bool = True) -> None:
        """Append one line. OSError where the disk fails."""
        if self._file is None:
            raise ValueError(f"{self.path} is written to inside its owner's `with` block")
        self._file.write(json.dumps(value, ensure_ascii=False, allow_nan=allow_nan) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file. The log cannot be opened again."""
        if self._file is not None:
            self._file.close()
