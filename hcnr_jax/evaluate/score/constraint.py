"""Parses what a chosen setting must keep, as a user writes it: `task_accuracy >= -0.5pt`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score.measurement import METRICS

_FORM = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([+-]?)(\d+(?:\.\d+)?|\.\d+)\s*(pt|%|)\s*")


class Constraint(NamedTuple):
    """Holds `metric >= bound` or `<=`. relative: the bound counts from TUNED's own value; all fractions 0-1."""

    metric: str
    at_least: bool
    bound: float
    relative: bool

    def missed(self, scores: Mapping[str, Any], tuned: Mapping[str, Any]) -> float:
        """Return by how much `scores` miss the constraint, 0 where they hold it, infinity where nothing was
        measured.

        Fractions of counted questions are compared with a millionth of slack, so that rounding is no failure.
        """
        value = scores.get(self.metric)
        start = tuned.get(self.metric) if self.relative else 0.0
        if value is None or start is None:
            return float("inf")
        gap = start + self.bound - value if self.at_least else value - start - self.bound
        return gap if gap > 1e-6 else 0.0

    def in_words(self) -> str:
        """Write the constraint for a person: `task_accuracy at most 0.5 points below TUNED's`."""
        least, most = "at least", "at most"
        if not self.relative:
            return f"{self.metric} {least if self.at_least else most} {100 * self.bound:g} %"
        if self.bound == 0:
            return f"{self.metric} {least if self.at_least else most} TUNED's"
        below = self.bound < 0
        limit = least if self.at_least != below else most
        points = "point" if abs(self.bound) == 0.01 else "points"
        return f"{self.metric} {limit} {abs(100 * self.bound):g} {points} {'below' if below else 'above'} TUNED's"


def parse_constraint(text: str, option: str = "--choose") -> Constraint:
    """Parse a constraint: a sign or `pt` makes it relative to TUNED, `%` and `pt` are hundredths.

    `task_accuracy >= -0.5pt`: at most half a point below TUNED. `over_refusal <= 5%`: in all at most 5 %. InputError
    says what is expected; also of a signed number without a unit, which may mean points or a fraction a hundred times
    as large.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InputError(
            f'{option} {text!r}: expected METRIC >= VALUE or METRIC <= VALUE, such as "task_accuracy >= -0.5pt" '
            '(points against TUNED) or "over_refusal <= 5%"'
        )
    metric, compare, sign, number, unit = found.groups()
    if metric not in METRICS:
        raise InputError(f"{option} {text!r}: unknown metric {metric!r}; expected one of: {', '.join(METRICS)}")
    if sign and not unit:
        points, fraction = (
            Constraint(metric, compare == ">=", float(f"{sign}{number}") * part, True).in_words() for part in (0.01, 1)
        )
        raise InputError(
            f"{option} {text!r}: a signed number needs a unit, `pt` or `%`: write "
            f'"{metric} {compare} {sign}{number}pt" for {points}, '
            f'or "{metric} {compare} {sign}{100 * float(number):g}pt" for {fraction}'
        )
    bound = float(number) * (-1 if sign == "-" else 1) * (0.01 if unit else 1)
    if abs(bound) > 1:
        raise InputError(f"{option} {text!r}: {number}{unit} is more than a whole; fractions are 0-1, points need `pt`")
    return Constraint(metric, compare == ">=", bound, bool(sign) or unit == "pt")
