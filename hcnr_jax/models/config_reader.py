"""Reads typed values of a `config.json`; every refusal names the file, the attribute and the value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hcnr_jax.errors import InputError


@dataclass(frozen=True)
class ConfigReader:
    """Reads typed values of a config, with its family's defaults for absent attributes.

    Attributes:
        config: the parsed JSON object.
        defaults: maps each handled attribute to its default.
        source: the file as the user typed its name, for messages.
    """

    config: Mapping[str, Any]
    defaults: Mapping[str, Any]
    source: str

    def handles(self, name: str) -> bool:
        """Return whether the family reads the attribute."""
        return name in self.defaults

    def value(self, name: str) -> Any:
        """Return the attribute as it stands in the file, or its default."""
        return self.config.get(name, self.defaults.get(name))

    def refusal(self, name: str, expected: str) -> InputError:
        """Return the error that refuses the attribute's value."""
        return InputError(f"{self.source}: {name} = {self.value(name)!r} is not supported; expected {expected}")

    def positive_int(self, name: str, or_none: int | None = None) -> int:
        """Read an integer of at least 1; null gives `or_none` where that is given."""
        value = self.value(name)
        if value is None and or_none is not None:
            return or_none
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(name, "a positive integer")
        return value

    def positive_float(self, name: str, or_none: float | None = None) -> float:
        """Read a finite number above 0; null gives `or_none` where that is given."""
        value = self.value(name)
        if value is None and or_none is not None:
            return or_none
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.refusal(name, "a positive number")
        return float(value)

    def multiplier(self, name: str) -> float:
        """Read a positive factor; 1 where the family does not read the attribute."""
        return self.positive_float(name) if self.handles(name) else 1.0

    def cap(self, name: str) -> float | None:
        """Read a positive bound; None where the attribute is null, or where the family does not read it."""
        return None if not self.handles(name) or self.value(name) is None else self.positive_float(name)

    def boolean(self, name: str) -> bool:
        """Read true or false."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Read a token id, a list of them or null as a tuple."""
        value = self.value(name)
        ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise self.refusal(name, "an integer, a list of integers or null")
        return ids
