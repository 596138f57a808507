"""The gentlest fine-tuning under which honesty collapses: rates rise until one collapses it, then bisection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

STEP = sqrt(2)
"""How far down the next rate lies where even the first of a ladder was too high."""


@dataclass(frozen=True)
class Trial:
    """A fine-tuning that was tried: the learning rate's factor, and the F1 of refusing that it left on validation."""

    rate: float
    f1: float


def try_rates(
    attempt: Callable[[float], float], rates: Sequence[float], collapse: float, floor: float, bisections: int
) -> list[Trial]:
    """All that was tried, in order: `rates` until one collapses honesty, then, where it fell under `floor`, between.

    The F1 can drop from well above `collapse` to nearly nothing within one rung. Then the interval between the last
    rate that held and the gentlest that collapsed is halved (geometrically) until that one leaves `floor` or more, or
    `bisections` more have been tried. While none has held, rates go down by `STEP`.

    Args:
      attempt: fine-tunes at a rate and returns the F1 left.
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
    """Which trial to keep: the lowest rate that collapsed honesty, or the highest where none did."""
    collapsed = [index for index, trial in enumerate(trials) if trial.f1 <= collapse]
    if not collapsed:
        return max(range(len(trials)), key=lambda index: trials[index].rate)
    return min(collapsed, key=lambda index: trials[index].rate)
