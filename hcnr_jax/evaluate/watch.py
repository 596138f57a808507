"""Follows the honesty of a model while it is trained: which questions are asked, what is measured, when to stop.

`hcnr tune --watch-honesty` and the callback for transformers' trainers share this module. Each generates the
completions in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from hcnr_jax.data import Question, Row, asking_rows, read_rows
from hcnr_jax.data.builtin import NAME
from hcnr_jax.data.builtin import questions as builtin_questions
from hcnr_jax.data.splits import draw_evenly
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.completions import cut_text
from hcnr_jax.evaluate.ask.prompts import Prompt, is_answerable, sample_rows
from hcnr_jax.evaluate.score.metrics import honesty_metrics
from hcnr_jax.evaluate.trait import HONESTY

# The validation split shares no wording and no name with the split that `hcnr data builtin` trains and tests on.
SPLIT = "validation"


class HonestyStep(NamedTuple):
    """Holds the honesty of a model after a number of training steps, as fractions.

    refusal_delta: refusal_on_unanswerable minus over_refusal.
    refusal_on_unanswerable: share of the unanswerable questions that the model refuses.
    over_refusal: share of the answerable questions that the model refuses.
    """

    step: int
    refusal_delta: float
    refusal_on_unanswerable: float
    over_refusal: float


def watched_rows(
    source: str | Path | Sequence[Question],
    style: Literal["plain", "chat"],
    *,
    samples: int | None,
    seed: int,
    option: str,
) -> list[Row]:
    """Return the questions to ask at every measurement, with both labels among them.

    A row without the field `answerable` is unanswerable where its completion is a refusal, as in `hcnr restore`.

    Args:
        source: a file of rows, questions, or "builtin" for the validation split of the built-in questions.
        style: the format of questions that are no rows yet.
        samples: number of questions at most; None asks all. Built-in questions are then half of each label.
        seed: seed of the draw.
        option: name of the option that gave `source`, for messages.

    Raises:
        InputError: the file cannot be read, a row has neither label nor completion, or one label is missing.
    """
    if source == NAME or source == Path(NAME):
        rows = asking_rows(draw_evenly(builtin_questions(SPLIT), samples, seed=seed, option=option), style)
    elif isinstance(source, (str, Path)):
        rows = read_rows(source, need_completion=False)
    else:
        rows = asking_rows(source, style)
    rows = [_labelled(row, option) for row in rows]
    answerable = sum(bool(row.answerable) for row in rows)
    if answerable in (0, len(rows)):
        raise InputError(
            f"{option}: expected answerable and unanswerable questions, found {answerable} answerable and "
            f"{len(rows) - answerable} unanswerable; the refusal delta needs both"
        )
    return sample_rows(rows, samples, seed)


def honesty_step(step: int, prompts: Sequence[Prompt], texts: Sequence[str]) -> HonestyStep:
    """Judge the generated texts with the refusal detector of `hcnr evaluate`.

    Args:
        step: number of training steps before the measurement.
        prompts: the questions, with their labels.
        texts: the decoded continuation of every prompt.
    """
    said = [cut_text(text, prompt.row.is_chat) for prompt, text in zip(prompts, texts, strict=True)]
    verdicts = [HONESTY.detect(text, prompt.question).verdict for prompt, text in zip(prompts, said, strict=True)]
    found = honesty_metrics(verdicts, [bool(prompt.answerable) for prompt in prompts])
    return HonestyStep(step, found.refusal_delta, found.recall, found.over_refusal)


def has_fallen(history: Sequence[HonestyStep], stop_below: float | None, patience: int) -> bool:
    """Tell whether the last `patience` refusal deltas all lie more than `stop_below` below the first one.

    Args:
        history: the measurements in order, the first one from before the first step.
        stop_below: the fall that is allowed, a fraction; None allows any fall.
        patience: number of measurements.
    """
    if stop_below is None or len(history) <= patience:
        return False
    # The tolerance keeps a fall of exactly `stop_below` allowed: 0.9 - 0.8 is above 0.1 in floating point.
    lowest = history[0].refusal_delta - stop_below - 1e-9
    return all(item.refusal_delta < lowest for item in history[-patience:])


def check_stop(stop_below: float | None, patience: int, every: int) -> None:
    """Raise InputError for an early stop that cannot work."""
    if every < 1:
        raise InputError(f"every: expected 1 step or more between measurements, got {every}")
    if patience < 1:
        raise InputError(f"patience: expected 1 measurement or more, got {patience}")
    if stop_below is not None and not 0 <= stop_below <= 2:
        raise InputError(f"stop_below: expected a fraction from 0 to 2 (0.1 is ten points), got {stop_below}")


def _labelled(row: Row, option: str) -> Row:
    if row.answerable is not None:
        return row
    if not (row.completion or (row.is_chat and row.messages[-1]["role"] == "assistant")):
        raise InputError(
            f"{row.where}: field `answerable` is missing; every question of {option} needs true or false there, or a "
            "completion that refuses or answers"
        )
    return replace(row, answerable=is_answerable(row))
