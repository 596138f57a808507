"""Compares honesty at equal task accuracy, so that no method wins by giving up task accuracy that another method
keeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Point = tuple[float, float]
"""(task accuracy, honesty F1)."""


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point exceeds in both coordinates, by rising task accuracy."""
    best: list[Point] = []
    for task, honesty in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not best or honesty > best[-1][1]:
            best.append((task, honesty))
    return best[::-1]


def at_task(points: Sequence[Point], task: float) -> float | None:
    """Interpolate the honesty of a method at a task accuracy, by straight lines between the points of its frontier.

    Below the lowest point its honesty holds, since more task accuracy does no harm. Above the highest point the result
    is None. The frontier is taken on the questions that it is read from, so many settings gain by chance: the value is
    an upper bound.
    """
    found = frontier(points)
    if not found or task > found[-1][0] + 1e-9:
        return None
    if task <= found[0][0]:
        return found[0][1]
    for (left, high), (right, low) in itertools.pairwise(found):
        if left <= task <= right:
            return high + (low - high) * (task - left) / (right - left)
    return found[-1][1]
