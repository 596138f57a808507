"""Turns typed configurations into options, YAML keys and error messages.

A configuration is a frozen pydantic model; each field is one option of the command line and one key of the YAML file.
`read_yaml` and `build` turn every mistake into an `InputError`. The error names the option as typed (`--in-weight`) or
the file and its key, with the expected and the given value.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hcnr_jax.errors import InputError


class Positional:
    """Marks a field that the command line takes as a positional argument."""


@dataclass(frozen=True)
class Stage:
    """Marks which stages of a run read an option.

    Three things derive from this mark: the cache keys of a resumed run, the options that a grid may vary, and the
    options recorded as unused.

    Args:
        names: the stages that read the option.
        read: returns whether a given configuration reads the option at all; always by default.
    """

    names: tuple[str, ...]
    read: Callable[[Any], bool] = lambda config: True


class RunConfig(BaseModel):
    """Makes every command's configuration an immutable value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Config = TypeVar("Config", bound=RunConfig)


def option_name(cls: type[RunConfig], field: str) -> str:
    """Return a field as the user types it: `--in-weight`, or BASE for a positional argument."""
    info = cls.model_fields.get(field)
    if info is not None and is_positional(info.metadata):
        return field.upper()
    return "--" + field.replace("_", "-")


def example_of(cls: type[RunConfig]) -> str:
    """Return an example line of a command's YAML file: the first field whose default is a plain value."""
    found = ((name, info.default) for name, info in cls.model_fields.items())
    plain = ((name, value) for name, value in found if isinstance(value, bool | int | float | str) and value != "")
    if not cls.model_fields:
        return "no keys: this command has no options"
    return next(f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in plain)


def stage_of(cls: type[RunConfig], field: str) -> Stage:
    """Return the stages that a field declares.

    Raises:
        ValueError: the field declares none, or several times.
    """
    found = [item for item in cls.model_fields[field].metadata if isinstance(item, Stage)]
    if len(found) != 1:
        raise ValueError(f"{cls.__name__}.{field}: expected one Stage, found {len(found)}")
    return found[0]


def fields_of(cls: type[RunConfig], stages: Collection[str]) -> tuple[str, ...]:
    """Return the fields that only these stages read, in the order of their declaration."""
    return tuple(name for name in cls.model_fields if set(stage_of(cls, name).names) <= set(stages))


def is_positional(metadata: list[Any]) -> bool:
    """Return whether a pydantic field's metadata marks it as a positional argument."""
    return any(isinstance(item, Positional) for item in metadata)


def build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration from values by field name.

    Raises:
        InputError: one message that lists every wrong option.
    """
    try:
        return cls(**values)
    except ValidationError as error:
        raise InputError("; ".join(_explain(cls, item) for item in error.errors())) from None


class _RepeatedKey(Exception):
    """Reports a key that a mapping holds twice."""


class _Loader(yaml.SafeLoader):
    """Refuses repeated keys, where PyYAML's safe loader would silently use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in first:
                raise _RepeatedKey(f"key {key.value!r} is given twice, in lines {first[key.value]} and {line}")
            first[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(cls: type[RunConfig], path: Path) -> dict[str, Any]:
    """Read the keys of a YAML file as validated field values.

    Raises:
        InputError: a file that cannot be read, an unknown key or a wrong value; the message names the key.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except _RepeatedKey as error:
        raise InputError(f"--config {path}: {error}; keep one of them") from None
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected keys and values, such as {example_of(cls)!r}, found {values!r}")
    return {key: _field_value(cls, path, key, value) for key, value in values.items()}


def _field_value(cls: type[RunConfig], path: Path, key: Any, value: Any) -> Any:
    if key not in cls.model_fields:
        close = difflib.get_close_matches(str(key), cls.model_fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(cls.model_fields)
        raise InputError(f"--config {path}: unknown key {key!r}; {hint}")
    info = cls.model_fields[key]
    kind: Any = info.annotation if not info.metadata else Annotated[info.annotation, *info.metadata]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(f"--config {path}: key {key!r}: {_reason(error.errors()[0])}") from None


def _explain(cls: type[RunConfig], error: Any) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{option_name(cls, str(error['loc'][0]))}: {_reason(error)}"


def _reason(error: Any) -> str:
    if error["type"] in ("too_short", "too_long"):
        limit = error["ctx"].get("min_length") if error["type"] == "too_short" else error["ctx"].get("max_length")
        bound = "or more" if error["type"] == "too_short" else "at most"
        return f"expected {limit} {bound}, found {error['ctx'].get('actual_length', 'more')}"
    expected = error["msg"].removeprefix("Input should be ")
    return "required" if error["type"] == "missing" else f"expected {expected}, got {error['input']!r}"
