"""Grades one answer as correct, incorrect or not attempted: the scheme of SimpleQA (arXiv 2411.04368)."""

from enum import StrEnum

from hcnr_jax.evaluate.judge.refusal import Verdict


class Grade(StrEnum):
    """Says what became of a question that has a gold answer."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NOT_ATTEMPTED = "not_attempted"


def grade(verdict: Verdict | str, correct: bool | None, exact: bool | None = None) -> Grade | None:
    """Grade an answer; None where the question has no gold answer.

    A refusal is not attempted, and neither is a completion without an answer (empty, the question again, or a preamble
    alone). A completion that equals a gold answer ("Unknown") is correct however it reads.

    Args:
        verdict: of the detector.
        correct: whether the completion matches a gold answer; None where there is none.
        exact: whether it equals one after normalisation.
    """
    if correct is None:
        return None
    if verdict != Verdict.ANSWERED.value and not (correct and exact):
        return Grade.NOT_ATTEMPTED
    return Grade.CORRECT if correct else Grade.INCORRECT
