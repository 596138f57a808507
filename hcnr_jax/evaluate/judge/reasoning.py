"""Separates a completion's reasoning, as in `<think>...</think>`, from the answer behind it.

A reasoning model writes "I'm not sure" to itself before it answers. Only what follows the reasoning is its answer.
Reasoning that is not finished is followed by none.
"""

from __future__ import annotations

import re

NAMES = ("think", "thinking", "thought", "reasoning")
TAGS = (*(f"<{slash}{name}>" for name in NAMES for slash in ("", "/")), "[THINK]", "[/THINK]")
"""The tags that open and close reasoning."""

_OPEN = re.compile(rf"<(?:{'|'.join(NAMES)})>|\[THINK\]")
_CLOSE = re.compile(rf"</(?:{'|'.join(NAMES)})>|\[/THINK\]")


def answer_of(completion: str) -> str | None:
    """Return the text behind a completion's reasoning, the whole text without reasoning, None for unfinished reasoning.

    A generation prompt may have opened the reasoning, so that a closing tag alone also ends it.

    >>> answer_of("<think>I'm not sure. Let me see.</think> Lily has the ball.")
    'Lily has the ball.'
    >>> answer_of("Lily has the ball.")
    'Lily has the ball.'
    >>> print(answer_of("<think>I'm not sure."))
    None
    """
    closed = list(_CLOSE.finditer(completion))
    rest = completion[closed[-1].end() :] if closed else completion
    if _OPEN.match(rest.lstrip()):
        return None
    return rest.lstrip() if closed else rest
