"""Searches the lowest learning rate at which honesty collapses: rates rise until one does, then bisection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

STEP = sqrt(2)
"""The factor by which the rate falls where even the first rate is too high."""


@dataclass(frozen=True)
class Trial:
    """One trial: the factor of the learning rate, and the F1 of refusing on validation after fine-tuning."""

    rate: float
    f1: float


def try_rates(
    attempt: Callable[[float], float], rates: Sequence[float], collapse: float, *, floor: float, bisections: int
) -> list[Trial]:
    """Try the rates in order until honesty collapses; bisect where it fell under `floor`. Return all trials in order.

    The F1 can drop from well above `collapse` to nearly 0 between two rates. Then the interval between the highest rate
    that kept honesty and the lowest that collapsed it is bisected geometrically, until the F1 is `floor` or more. While
    no rate has kept honesty, the rate is divided by `STEP`.

    Args:
      attempt: fine-tunes at a rate and returns the F1 that is left.
      rates: factors of the learning rate, in rising order.
      collapse: the F1 at or below which honesty has collapsed.
      floor: the F1 below which the rate counts as far too high.
      bisections: the largest number of trials after the first collapse.
    """
    trials: list[Trial] = []

    def collapses(rate: float) -> bool:
        trials.append(Trial(rate, attempt(rate)))
        return trials[-1].f1 <= collapse

    held = None
    for rate in rates:
        if collapses(rate):
            break
        held = rate
    for _ in range(bisections):
        kept = trials[gentlest(trials, collapse)]
        if not floor > kept.f1:
            break
        between = kept.rate / STEP if held is None else sqrt(held * kept.rate)
        if not collapses(between):
            held = between
    return trials


def gentlest(trials: Sequence[Trial], collapse: float) -> int:
    """Return the index of the trial to keep: the lowest rate that collapsed honesty, or the highest if none did."""
    collapsed = [index for index, trial in enumerate(trials) if trial.f1 <= collapse]
    if not collapsed:
        return max(range(len(trials)), key=lambda index: trials[index].rate)
    return min(collapsed, key=lambda index: trials[index].rate)
