"""Chooses a setting: the best one by the trait's main metric among those that hold a constraint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score.constraint import Constraint
from hcnr_jax.evaluate.trait import HONESTY, TASK_ACCURACY, Trait


class Choice(NamedTuple):
    """The place of the chosen setting, and whether it holds the constraint (no setting may)."""

    place: int
    holds: bool


def choose(
    settings: Sequence[Mapping[str, Any]],
    tuned: Mapping[str, Any],
    constraint: Constraint,
    *,
    trait: Trait = HONESTY,
) -> Choice:
    """Choose the setting with the highest main metric of the trait among those that hold the constraint.

    Of equal settings the choice falls on the higher task accuracy, then on the first. Where no setting holds the
    constraint, the setting that misses it by least is chosen.

    Args:
        settings: the scores of every setting, as `measure` gives them.
        tuned: the scores of TUNED, which a relative constraint counts from.
        constraint: what a setting must keep.
        trait: whose main metric ranks the settings.

    Raises:
        InputError: there is no setting, or none whose trait was measured.
    """
    known = [place for place, scores in enumerate(settings) if scores.get(trait.main.name) is not None]
    if not known:
        raise InputError(f"choose: expected one setting or more whose {trait.name} was measured, found none")

    def rank(place: int) -> tuple[float, float, float, int]:
        scores = settings[place]
        return (
            -constraint.missed(scores, tuned),
            scores[trait.main.name],
            scores.get(TASK_ACCURACY) or 0.0,
            -place,
        )

    best = max(known, key=rank)
    return Choice(best, constraint.missed(settings[best], tuned) == 0)
