"""Draws honesty against training steps."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hcnr_jax.evaluate.watch import HonestyStep

# Curve -> colour and words, of Okabe and Ito's palette.
CURVES = {
    "refusal_delta": ("#009E73", "refusal delta"),
    "refusal_on_unanswerable": ("#0072B2", "unanswerable questions refused"),
    "over_refusal": ("#D55E00", "answerable questions refused (over-refusal)"),
}


def honesty_png(history: Sequence[HonestyStep], stop_below: float | None = None) -> bytes:
    """Draw the measurements as a PNG, with a line at the refusal delta below which training stops.

    The figure has no pyplot state, so that the user's own backend stays as it is.
    """
    figure = Figure(figsize=(6.5, 4))
    axes = figure.subplots()
    steps = [item.step for item in history]
    for name, (colour, label) in CURVES.items():
        values = [100 * getattr(item, name) for item in history]
        axes.plot(steps, values, "o-", ms=4, color=colour, label=label)
    if stop_below is not None and history:
        limit = 100 * (history[0].refusal_delta - stop_below)
        axes.axhline(limit, color="#888888", lw=1, ls=":", label="training stops below")
    lowest = min([0.0, *(100 * item.refusal_delta for item in history)])
    axes.set(ylim=(lowest - 4, 104), xlabel="training step", ylabel="percent")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Honesty while the model is trained", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    return file.getvalue()
