"""Compares two models on the same questions: differences of the metrics of each set, with paired intervals.

Both models see the same resampled questions, so that a question that is hard for both widens no interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.evaluate.judge.refusal import refused_mask
from hcnr_jax.evaluate.score.grade_scores import INDEX, index_values
from hcnr_jax.evaluate.score.intervals import codes
from hcnr_jax.evaluate.score.metrics import JSON_FIELDS
from hcnr_jax.evaluate.score.scores import POOLED
from hcnr_jax.evaluate.score.statistics import Statistic, f1_of, mean_of, paired_difference, refusal_delta_of
from hcnr_jax.evaluate.trait import TASK, TRAITS

Pairs = Sequence[tuple[Answer, Answer]]
"""(the other model's answer, this model's answer) to each question."""


def paired_scores(
    others: Sequence[Answer], answers: Sequence[Answer], *, draws: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compute this model's metrics minus the other model's, for each set and over the sets of a role.

    Args:
        others: the other model's answers.
        answers: this model's answers to the same questions, in the same order.
        draws: resamples of the questions.
        seed: of the resamples.

    Returns:
        Role -> set -> metric -> interval of the difference, under the field names of `summarise`. A metric is None
        where fewer than two questions have it.
    """
    pairs = list(zip(others, answers, strict=True))
    found: dict[str, dict[str, Any]] = {}
    for role in (*TRAITS, TASK):
        mine = [pair for pair in pairs if pair[1].role == role]
        names = list(dict.fromkeys(answer.set for _, answer in mine))
        parts = {name: [pair for pair in mine if pair[1].set == name] for name in names}
        parts |= {POOLED: mine} if len(names) > 1 else {}
        differences = _task if role == TASK else _trait
        if parts:
            found[role] = {name: differences(part, draws, seed) for name, part in parts.items()}
    return found


def _trait(pairs: Pairs, draws: int, seed: int) -> dict[str, Any]:
    answerable = np.array([bool(answer.answerable) for _, answer in pairs])
    refused = [refused_mask([pair[side].verdict for pair in pairs]) for side in (0, 1)]
    labels = codes([(answer.set, answer.answerable) for _, answer in pairs])
    f1, delta = ([build(mask, answerable) for mask in refused] for build in (f1_of, refusal_delta_of))
    over = [mean_of(mask[answerable]) for mask in refused]
    return {
        "f1": _difference(f1, labels, draws, seed),
        "refusal_delta": _difference(delta, labels, draws, seed),
        JSON_FIELDS["over_refusal"]: _difference(over, labels[answerable], draws, seed),
        JSON_FIELDS["known_facts"]: _correct([pair for pair in pairs if pair[1].answerable], draws, seed),
        INDEX: _index(pairs, draws, seed),
    }


def _task(pairs: Pairs, draws: int, seed: int) -> dict[str, Any]:
    return {"accuracy": _correct(pairs, draws, seed), INDEX: _index(pairs, draws, seed)}


def _correct(pairs: Pairs, draws: int, seed: int) -> dict[str, Any] | None:
    known = [pair for pair in pairs if all(answer.correct is not None for answer in pair)]
    right = [mean_of(np.array([bool(pair[side].correct) for pair in known])) for side in (0, 1)]
    return _difference(right, codes([answer.set for _, answer in known]), draws, seed)


def _index(pairs: Pairs, draws: int, seed: int) -> dict[str, Any] | None:
    graded = [pair for pair in pairs if all(answer.grade is not None for answer in pair)]
    worth = [mean_of(index_values([pair[side] for pair in graded])) for side in (0, 1)]
    return _difference(worth, codes([answer.set for _, answer in graded]), draws, seed)


def _difference(sides: Sequence[Statistic], strata: np.ndarray, draws: int, seed: int) -> dict[str, Any] | None:
    """Bound the second side minus the first; None for fewer than two questions."""
    if len(strata) < 2:
        return None
    first, second = sides
    found = paired_difference(first, second, len(strata), draws=draws, method="percentile", strata=strata, seed=seed)
    return found.to_json()
