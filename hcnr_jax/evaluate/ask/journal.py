"""Writes raw outputs to disk as they are made, so that a stopped run goes on from its own outputs.

The first line of the file is the fingerprint: what the outputs depend on, by name. Every further line is one output:
`{"part", "key", "value"}`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hcnr_jax.errors import InputError, RunError
from hcnr_jax.evaluate.ask.prompts import Prompt
from hcnr_jax.evaluate.ask.runner import Outputs
from hcnr_jax.runtime.append_log import AppendLog

Fingerprint = dict[str, str]


def fingerprint(model_digest: str, prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> Fingerprint:
    """Name what raw outputs depend on: the weights, every prompt's tokens and labels, and the settings of the run."""
    asked = hashlib.sha256()
    for prompt in prompts:
        labels = (prompt.key, prompt.tokens, prompt.row.choices, prompt.row.correct)
        asked.update(f"{json.dumps(labels)}\n".encode())
    return {
        "model": model_digest,
        "questions": asked.hexdigest(),
        **{name: json.dumps(value) for name, value in settings.items()},
    }


class Journal:
    """Stores raw outputs, one flushed line each.

    Use as a context: `with Journal(path, fingerprint) as journal: journal.outputs ...`. InputError where the file was
    begun by another run (which part of the fingerprint differs is named) or is no journal.
    """

    def __init__(self, path: Path, made_of: Fingerprint) -> None:
        self.path = path
        self.outputs = Outputs()
        self.resumed = 0
        self._made_of = made_of
        self._lines: AppendLog | None = None

    def __enter__(self) -> "Journal":
        self._lines = self._read()
        self._lines.open()
        if not self._lines.found:
            try:
                self._lines.add({"fingerprint": self._made_of})
            except OSError as error:
                raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another --out") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()

    def add(self, part: str, key: str, value: object) -> None:
        """Append one output."""
        if self._lines is None:
            raise ValueError("a Journal is written to inside its `with` block")
        try:
            self._lines.add({"part": part, "key": key, "value": value})
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); free some space and run the same command again: "
                "it goes on where it stopped"
            ) from error

    def _read(self) -> AppendLog:
        """Open the file and read the outputs of an earlier run."""
        try:
            lines = AppendLog(self.path)
            made_of = lines.found[0]["fingerprint"] if lines.found else self._made_of
            for item in lines.found[1:]:
                self.outputs.add(item["part"], item["key"], item["value"])
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}); choose another --out") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path}: expected the records of an unfinished evaluation, found something else; move it away, "
                "or choose another --out"
            ) from error
        self._check(made_of)
        self.resumed = max(len(lines.found) - 1, 0)
        return lines

    def _check(self, found: Mapping[str, str]) -> None:
        other = [name for name in {**found, **self._made_of} if found.get(name) != self._made_of.get(name)]
        if other:
            details = "; ".join(
                f"{name} {_short(found.get(name))} there, {_short(self._made_of.get(name))} here" for name in other
            )
            raise InputError(
                f"{self.path}: an unfinished evaluation of something else lies there ({details}); remove it to begin "
                "anew, or choose another --out"
            )


def _short(value: str | None) -> str:
    return "absent" if value is None else value if len(value) <= 24 else f"{value[:12]}..."
