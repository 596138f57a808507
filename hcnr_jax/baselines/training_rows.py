"""Makes the rows of the training baselines from the honesty and task rows that the restoration reads.

rait         refusals alone                                         refusal-aware tuning, arXiv 2311.09677
rait_mixed   refusals, known answers and task rows                  the same with what must not be lost
rehearsal    the mixed rows, from BASE: fine-tuning done again      experience replay
dpo, orpo    refusal over bluff, answer over refusal                arXiv 2401.13275, section 4.3
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hcnr_jax.data import Row
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.prompts import with_completion


def refusal_rows(honesty: Sequence[Row]) -> list[Row]:
    """Select the honesty rows without an answer; a row without a label counts as such.

    InputError where there is none.
    """
    found = [row for row in honesty if row.answerable is not True]
    if not found:
        raise InputError(
            f"{honesty[0].file}: expected rows that are not answerable, to train refusals on, found none among "
            f"{len(honesty)}"
        )
    return found


def mixed_rows(honesty: Sequence[Row], task: Sequence[Row]) -> list[Row]:
    """Join all rows of both files: refusals, known answers, task answers."""
    return [*honesty, *task]


def preference_rows(
    honesty: Sequence[Row], task: Sequence[Row], bluffs: Sequence[str], *, seed: int
) -> tuple[list[Row], list[Row]]:
    """Make the rows of preference training, (chosen, rejected).

    For a question without an answer, the refusal is preferred to what the tuned model says. For every other question,
    the answer is preferred to a refusal that is drawn from the honesty rows. A bluff that is empty or equals the
    refusal makes no pair.

    Args:
        honesty: rows with refusals and known answers.
        task: rows with task answers.
        bluffs: what the tuned model says, one a refusal row.
        seed: of the drawn refusals.
    """
    refusals = refusal_rows(honesty)
    answered = [row for row in honesty if row.answerable is True]
    draws = np.random.default_rng(seed).integers(0, len(refusals), len(answered) + len(task))
    pairs = [
        (row, with_completion(row, bluff))
        for row, bluff in zip(refusals, bluffs, strict=True)
        if bluff.strip() and bluff.strip() != said(row)
    ]
    pairs += [
        (row, with_completion(row, said(refusals[draw]))) for row, draw in zip([*answered, *task], draws, strict=True)
    ]
    return [chosen for chosen, _ in pairs], [rejected for _, rejected in pairs]


def said(row: Row) -> str:
    """Return a row's completion as bare text."""
    return (row.messages[-1]["content"] if row.is_chat else row.completion).strip()
