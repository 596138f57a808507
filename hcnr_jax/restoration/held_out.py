"""Finds the rows of a data file that a restoration does not read."""

from __future__ import annotations

from collections.abc import Sequence

from hcnr_jax.data import Row, choose_rows, normalise_question
from hcnr_jax.evaluate.ask.prompts import question_of


def held_out(rows: Sequence[Row], scored: Sequence[Row], seed: int | None) -> list[Row]:
    """Return the rows that are not scored, without repeated questions, in the order of the shuffle of `--samples`."""
    seen = {normalise_question(question_of(row)) for row in scored}
    found = []
    for row in choose_rows(rows, None, seed):
        text = normalise_question(question_of(row))
        if text not in seen:
            seen.add(text)
            found.append(row)
    return found
