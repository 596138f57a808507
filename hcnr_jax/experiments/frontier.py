"""Honesty at equal task accuracy: the comparison in which no method wins by giving up what another keeps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Point = tuple[float, float]
"""(task accuracy, honesty F1)."""


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points no other one beats in both, by rising task accuracy."""
    best: list[Point] = []
    for task, honesty in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not best or honesty > best[-1][1]:
            best.append((task, honesty))
    return best[::-1]


def at_task(points: Sequence[Point], task: float) -> float | None:
    """The honesty a method reaches at this task accuracy, by straight lines between the points of its frontier.

    Below its lowest point that point's honesty holds (more task than asked for is no harm); above its highest there is
    none: None. The frontier is taken on the very questions it is read from, so that a method with many settings gains
    by chance; read it as an upper bound.
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
