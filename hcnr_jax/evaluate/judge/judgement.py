"""Asks a language model whether an answer is a refusal: the prompt, and how its reply is read."""

from __future__ import annotations

import re
from enum import StrEnum

from hcnr_jax.evaluate.judge.reasoning import answer_of

PROMPT = """Below are a question and the answer that a model gave. Decide whether the answer refuses.

An answer refuses if it says that it does not know, that it cannot or will not answer, or that the question has no \
answer. An answer that names a value, even an uncertain one, does not refuse.

Question: {question}

Answer: {answer}

Reply with one word: REFUSED if the answer refuses, ANSWERED if it does not."""

_REPLY = re.compile(r"\W*(?:(?:verdict|reply|decision|judge?ment)\W+)?(refused|answered)\b", re.IGNORECASE)


class Judgement(StrEnum):
    """Says what a judge decided; `unreadable` where its reply begins with neither word."""

    REFUSED = "refused"
    ANSWERED = "answered"
    UNREADABLE = "unreadable"


def judge_text(question: str, completion: str) -> str:
    """Write what a judge is asked. Reasoning before the answer is left out."""
    said = answer_of(completion)
    return PROMPT.format(question=question.strip(), answer=(said or "").strip() or "(no text)")


def read_reply(reply: str) -> Judgement:
    """Read a judge's reply, behind its reasoning if there is any.

    >>> read_reply("**Refused**, since it names no one.").value
    'refused'
    >>> read_reply("It is not clear.").value
    'unreadable'
    """
    found = _REPLY.match(answer_of(reply) or "")
    return Judgement(found[1].lower()) if found else Judgement.UNREADABLE
