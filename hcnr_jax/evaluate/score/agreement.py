"""Compares a model judge with the detector of refusals: agreement, Cohen's kappa, and answers they disagree on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.evaluate.judge.judgement import Judgement
from hcnr_jax.evaluate.judge.refusal import refused_mask
from hcnr_jax.evaluate.score.scores import by_set
from hcnr_jax.evaluate.trait import TASK, TRAITS

EXAMPLES = 5
"""Answers of each kind of disagreement that are kept."""


def cohen_kappa(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> float | None:
    """Compute `(p_o - p_e) / (1 - p_e)`: agreement p_o beyond the agreement p_e of independent raters.

    None where there are no answers, or where both raters always give the same one verdict (p_e = 1).
    """
    count, yes, other_yes = len(first), int(first.sum()), int(second.sum())
    # Both sides times count^2 are whole numbers, so that chance agreement gives exactly 0.
    observed = count * int((first == second).sum())
    expected = yes * other_yes + (count - yes) * (count - other_yes)
    return None if expected == count**2 else (observed - expected) / (count**2 - expected)


def agreement_scores(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Compare both verdicts on the judged answers: role -> set -> scores, and "pooled" over several sets."""
    judged = [answer for answer in answers if answer.judgement is not None]
    found = {role: by_set(judged, role, _agreement) for role in (*TRAITS, TASK)}
    return {role: sets for role, sets in found.items() if sets}


def _agreement(answers: Sequence[Answer]) -> dict[str, Any]:
    """Compare both verdicts on one set. An undetermined completion is no refusal; unreadable replies do not count."""
    read = [answer for answer in answers if answer.judgement != Judgement.UNREADABLE]
    judge = np.array([answer.judgement == Judgement.REFUSED for answer in read], bool)
    detector = refused_mask([answer.verdict for answer in read])
    return {
        "questions": len(answers),
        "unreadable": len(answers) - len(read),
        "agreement": float((judge == detector).mean()) if read else None,
        "kappa": cohen_kappa(judge, detector),
        "refused_by_judge": float(judge.mean()) if read else None,
        "refused_by_detector": float(detector.mean()) if read else None,
        "only_judge_refused": _disagreement(read, judge & ~detector),
        "only_detector_refused": _disagreement(read, detector & ~judge),
    }


def _disagreement(answers: Sequence[Answer], chosen: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    places = np.flatnonzero(chosen)
    examples = [answers[place] for place in places[:EXAMPLES].tolist()]
    fields = ("set", "id", "question", "completion", "verdict", "evidence", "judge_reply")
    return {
        "count": len(places),
        "examples": [{name: getattr(answer, name) for name in fields} for answer in examples],
    }
