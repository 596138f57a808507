"""Reads the records of a data set from a file, a folder of files, or the Hugging Face hub.

It reads CSV with a header, JSON Lines (also in a file named .json), a JSON list, and a JSON object that holds the list
under a key of the data set (SelfAware's `example`, BioASQ's `questions`).
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcnr_jax.data.json_lines import describe, parse_json_lines, read_text
from hcnr_jax.errors import InputError
from hcnr_jax.runtime.hub_errors import hub_failure, quiet_hub_log

_SUFFIXES = (".csv", ".json", ".jsonl")


class EmptyFieldError(InputError):
    """A record with an empty field where text belongs: a fault of one record, not of the file's format."""


@dataclass(frozen=True)
class Record:
    """One record and its place. `from_hub` marks a record read through `datasets`, whose labels may differ."""

    values: Mapping[str, Any]
    where: str
    from_hub: bool = False

    def text(self, name: str) -> str:
        """Return the text of a field that must exist. EmptyFieldError where it is blank or null."""
        value = self.value(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise EmptyFieldError(str(self.wrong(name, "text", value)))
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(name, "text", value)
        return value.strip()

    def flag(self, name: str) -> bool:
        """Return a field that must be true or false."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the distinct texts that are not blank of a field that holds one text, a list of texts or null."""
        value = self.value(name)
        items = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.wrong(name, "text or a list of texts", value)
        return tuple(dict.fromkeys(item.strip() for item in items if item.strip()))

    def optional_text(self, name: str) -> str | None:
        """Return the text of a field, or None where it is absent, null or blank; a number becomes its digits."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool | list | dict):
            return None
        return str(value).strip() or None

    def value(self, name: str) -> Any:
        """Return a field that must exist, of any type."""
        if name not in self.values:
            fields = ", ".join(f"`{field}`" for field in self.values) or "nothing"
            raise InputError(f"{self.where}: field `{name}` is missing, found {fields}; is it a file of this data set?")
        return self.values[name]

    def wrong(self, name: str, expected: str, found: object) -> InputError:
        """Make the error for a field that differs from the official format."""
        return InputError(
            f"{self.where}: field `{name}`: expected {expected}, found {describe(found)}; is it a file of this data "
            "set?"
        )


def read_records(path: str, container: str | None) -> tuple[list[str], list[Record]]:
    """Read file names and records of `path`: a file, a folder (its .csv, .json and .jsonl files), or a hub name.

    A hub name is `NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT`. `container` is the key under which a JSON object of this
    data set holds its list.

    Raises:
        InputError: `path` does not exist or is in no format named above. The message names file and line.
    """
    local = Path(path)
    if local.is_dir():
        files = sorted(file for file in local.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"{path}: expected a folder with {', '.join(_SUFFIXES)} files, found none; name a file")
    elif local.exists() or local.suffix.lower() in _SUFFIXES or path.startswith((".", "/", "~")):
        files = [local]
    else:
        return [path], _hub_records(path)
    return [str(file) for file in files], [record for file in files for record in _file_records(file, container)]


def _file_records(file: Path, container: str | None) -> Iterator[Record]:
    text = read_text(file)
    rows = _csv_rows(text, file) if file.suffix.lower() == ".csv" else _json_rows(text, file, container)
    for where, values in rows:
        if not isinstance(values, dict):
            raise InputError(f"{where}: expected an object, found {describe(values)}; is it a file of this data set?")
        yield Record(values, where)


def _csv_rows(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    last = 1
    try:
        for row in reader:
            where, last = f"{file}, line {last + 1}", reader.line_num
            if None in row or None in row.values():
                fields = reader.fieldnames or []
                raise InputError(f"{where}: expected {len(fields)} columns ({', '.join(fields)}), found another number")
            yield where, row
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: not CSV ({error}); save the file again as CSV") from error


def _json_rows(text: str, file: Path, container: str | None) -> Iterator[tuple[str, Any]]:
    if _is_json_lines(text, container):
        for line, value in parse_json_lines(text, str(file)):
            yield f"{file}, line {line}", value
        return
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: not JSON ({error.msg}); fetch the file again") from error
    except RecursionError as error:
        raise InputError(f"{file}: JSON nested too deep to be a file of this data set; fetch the file again") from error
    items = whole.get(container) if isinstance(whole, dict) and container else whole
    if not isinstance(items, list):
        expected = "a JSON list or JSON Lines" + (f" or an object with the list `{container}`" if container else "")
        raise InputError(f"{file}: expected {expected}, found {describe(whole)}; is it a file of this data set?")
    for index, value in enumerate(items, start=1):
        yield f"{file}, item {index}", value


def _is_json_lines(text: str, container: str | None) -> bool:
    """Return whether the first line that is not blank is a whole JSON object, and not the container."""
    try:
        first = json.loads(text.lstrip().split("\n", 1)[0])
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(first, dict) and (container is None or container not in first)


def _hub_records(name: str) -> list[Record]:
    """Read the records of one split on the hub through `datasets`; the name must give the split if there are more."""
    import datasets

    repository, *rest = name.split(":")
    if len(rest) > 2 or not all(rest):
        raise InputError(
            f"{name}: expected NAME, NAME:SPLIT or NAME:CONFIG:SPLIT; write it so, or give a path that exists"
        )
    config, split = (rest[0] if len(rest) == 2 else None), (rest[-1] if rest else None)
    try:
        with quiet_hub_log():
            loaded = datasets.load_dataset(repository, config, split=split)
    except Exception as error:  # the hub, the network and the builder raise errors of their own
        raise InputError(
            f"{name}: no such file or folder here, and {hub_failure(error)}; check the path, or the name, "
            "configuration and split"
        ) from error
    if isinstance(loaded, Mapping):
        splits = list(loaded)
        if len(splits) != 1:
            raise InputError(f"{name}: has the splits {', '.join(splits)}; name one as {name}:{splits[0]}")
        loaded = loaded[splits[0]]
    return [Record(dict(values), f"{name}, row {index}", True) for index, values in enumerate(loaded, start=1)]
