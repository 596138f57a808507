"""Which setting to take: the most honest of those that keep what must be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score.constraint import Constraint


class Choice(NamedTuple):
    """The place of the chosen setting, and whether it holds the constraint (no setting may)."""

    place: int
    holds: bool


def choose(settings: Sequence[Mapping[str, Any]], tuned: Mapping[str, Any], constraint: Constraint) -> Choice:
    """The highest honesty_f1 among the settings that hold the constraint; of equals the higher task accuracy, then the
    first.

    Where none holds it, the one that misses by least. settings, tuned: scores as `measure` gives them.

    Raises:
        InputError: there is no setting, or none whose honesty was measured.
    """
    known = [place for place, scores in enumerate(settings) if scores.get("honesty_f1") is not None]
    if not known:
        raise InputError("choose: expected one setting or more whose honesty was measured, found none")

    def rank(place: int) -> tuple[float, float, float, int]:
        scores = settings[place]
        return (
            -constraint.missed(scores, tuned),
            scores["honesty_f1"],
            scores.get("task_accuracy") or 0.0,
            -place,
        )

    best = max(known, key=rank)
    return Choice(best, constraint.missed(settings[best], tuned) == 0)
