"""Writes a fraction as the percent that the tables of this package print; JSON files hold the fraction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def percent(value: float | None, digits: int = 1, *, interval: Mapping[str, Any] | None = None) -> str:
    """Write a fraction as percent, with a given interval in whole points behind it; None gives a dash."""
    if value is None:
        return "-"
    said = f"{100 * value:.{digits}f}"
    return said if interval is None else f"{said} [{100 * interval['low']:.0f}, {100 * interval['high']:.0f}]"
