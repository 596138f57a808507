"""Reads preference rows: one prompt with a chosen and a rejected completion, in the shapes that TRL uses.

`{"prompt": str, "chosen": str, "rejected": str}`, or the same three as lists of messages: the conversation so far, and
the assistant's turn that follows it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hcnr_jax.data.json_lines import describe
from hcnr_jax.data.row_files import read_values
from hcnr_jax.data.rows import Row, parse_row
from hcnr_jax.errors import InputError

_SHAPES = '{"prompt": text, "chosen": text, "rejected": text}, or lists of messages in their place'


def read_preferences(path: str | Path) -> list[tuple[Row, Row]]:
    """Read (chosen, rejected) from every line: two rows that differ only in their completion.

    Raises:
        InputError: the file cannot be read, or a line lacks a field, or a field is empty or of another type. The
            message names file, line and field.
    """
    name = str(path)
    return [parse_preference(value, name, line) for line, value in read_values(path)]


def parse_preference(value: object, file: str, line: int) -> tuple[Row, Row]:
    """Convert one decoded JSON value to its two rows. Raises InputError as `read_preferences` does."""
    where = f"{file}, line {line}"
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {describe(value)}; each line is {_SHAPES}")
    for field in ("prompt", "chosen", "rejected"):
        if value.get(field) is None:
            raise InputError(f"{where}: field `{field}` is missing; each line is {_SHAPES}")
    chosen, rejected = (_side(value, field, file, line) for field in ("chosen", "rejected"))
    return chosen, rejected


def _side(value: Mapping[str, Any], field: str, file: str, line: int) -> Row:
    prompt, completion = value["prompt"], value[field]
    where = f"{file}, line {line}"
    if isinstance(prompt, str):
        if not isinstance(completion, str) or not completion.strip():
            raise InputError(f"{where}: field `{field}`: expected text, found {describe(completion)}")
        return parse_row({"prompt": prompt, "completion": completion}, file, line)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise InputError(
            f"{where}: field `{field}`: expected a list of messages as `prompt` is, found {describe(completion)}"
        )
    rest = {name: value[name] for name in ("tools", "chat_template_kwargs") if value.get(name) is not None}
    return parse_row({"prompt": prompt, "completion": completion, **rest}, file, line)
