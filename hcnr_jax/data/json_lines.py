"""Reads text and JSON Lines files; errors name the file, the line and the value that was found."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hcnr_jax.errors import InputError

_SHOWN = 60
_LFS_POINTER = "version https://git-lfs"


def describe(value: object) -> str:
    """Describe a value for an error message: its JSON type, and its text, cut where it is long."""
    names = {str: "text", bool: "a boolean", int: "an integer", float: "a number", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "..."
    return f"{names.get(type(value), type(value).__name__)} {shown}"


def read_text(path: str | Path) -> str:
    """Read the whole file as text, without a byte-order mark.

    Raises:
        InputError: the file is missing, a folder, unreadable, empty, a Git-LFS pointer, or not UTF-8 (the message
            names line and byte).
    """
    return decode_text(read_bytes(path), path)


def read_bytes(path: str | Path) -> bytes:
    """Read the whole file. InputError where it is missing, a folder or unreadable."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected a file, found a folder; name one file in it")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def decode_text(raw: bytes, path: str | Path) -> str:
    """Decode UTF-8, without a byte-order mark. InputError as `read_text` raises it."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: expected UTF-8 text, found byte 0x{raw[error.start]:02x} at offset {error.start}; "
            "save the file as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path}: expected data, found an empty file")
    if text.startswith(_LFS_POINTER):
        raise InputError(f"{path}: expected data, found a Git-LFS pointer; fetch the file itself (git lfs pull)")
    return text


def parse_json_lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (1-based line number, value) for every line of JSON Lines text; blank lines are skipped but counted.

    Only a line feed ends a line; a carriage return before it is white space to JSON. `str.splitlines` would also break
    at U+2028, which JSON allows inside a string.

    Raises:
        InputError: a line is not JSON; the message names file, line, column and what to do.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = (
                f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
            )
            raise InputError(
                f"{name}, line {number}: expected one JSON object on the line, found {describe(line.strip())} "
                f"({reason}); write one complete object per line"
            ) from error
        yield number, value


def to_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format row dicts as JSON Lines text, one object a line; letters outside ASCII are not escaped."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
