"""Renders chat rows with the tokenizer's chat template.

A chat row becomes three texts: the prompt as the model is asked it (all messages before the completion, and the header
of the assistant's turn), the answer, and what the template writes behind an answer.

    text = prompt + answer + end of turn

Where the template renders the whole conversation as that prompt followed by more, the text is the template's own
rendering. Other templates change the prompt once an answer follows. Mistral's writes the system text only into the last
user turn, and a reasoning model's generation prompt opens `<think>`. The prompt is then the one that is asked, and the
answer and the end of the turn are taken from the whole rendering.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hcnr_jax.data.rows import Row
from hcnr_jax.data.tokenizer import Tokenizer, tokenizer_name
from hcnr_jax.errors import InputError

# Stands for the answer where the end of a turn is looked for; no template and no text holds it.
_MARK = "\ue000answer\ue001"
# Fewer characters than these in common do not say where a template's answer begins.
_LEAST_OVERLAP = 4
THINK, END_THINK = "<think>", "</think>"

# A call with a literal format, as in Llama 3.2.
_STRFTIME = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")

_run_date = datetime.datetime.now()


class ChatText(NamedTuple):
    """Holds a chat row as text.

    Args:
        prompt: what the model is asked, with the header of the assistant's turn.
        text: prompt, answer and end of turn.
        header_in_completion: whether the template writes a header before answers but no generation prompt, so that the
            header counts as completion.
        open_thinking: whether the generation prompt opens `<think>` and the answer does not close it.
    """

    prompt: str
    text: str
    header_in_completion: bool = False
    open_thinking: bool = False


def set_date(date: datetime.datetime | None) -> datetime.datetime:
    """Fix the date that templates print, for this process; None keeps the date of its start. Return the date."""
    global _run_date
    if date is not None:
        _run_date = date
    return _run_date


def prompt_text(row: Row, tokenizer: Tokenizer) -> str:
    """Render the messages before the completion and the header of the assistant's turn.

    Reasoning is switched off where the template can do that and the row's `chat_template_kwargs` do not say otherwise.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the messages.
    """
    return _render(row, tokenizer, row.prompt_messages, add_generation_prompt=True)


def chat_text(row: Row, tokenizer: Tokenizer) -> ChatText:
    """Render a row whose completion is the assistant's.

    Raises:
        InputError: the last message is not the assistant's, the tokenizer has no chat template, or the template refuses
            the messages or leaves the answer out.
    """
    if row.messages[-1]["role"] != "assistant":
        raise InputError(f"{row.where}: field `messages`: expected the last message to be the assistant's; add it")
    prompt = prompt_text(row, tokenizer)
    whole = _render(row, tokenizer, row.messages)
    answer = str(row.messages[-1].get("content") or "")
    before, answered, end = _parts(row, tokenizer, whole, answer)
    if whole.startswith(prompt):
        text, lead = whole, before[len(prompt) :]
        if answer.strip() and not _has_answer(text[len(prompt) :], answer):
            raise InputError(
                f"{row.where}: the chat template of {tokenizer_name(tokenizer)} leaves the assistant's answer out; use "
                "a template that renders it, or write the row as prompt and completion"
            )
    elif row.turns > 1:
        raise InputError(
            f"{row.where}: the chat template of {tokenizer_name(tokenizer)} renders the prompt otherwise once a "
            f"completion of {row.turns} messages follows; give the row a completion of one assistant message"
        )
    else:
        lead = _lead(prompt, before)
        # An answer that closes the reasoning which the prompt opens is kept whole, whatever the template drops of it.
        said = answer.strip() if _opens_thinking(prompt) and END_THINK in answer else answered
        text = prompt + lead + said + end
    unclosed = _opens_thinking(prompt) and END_THINK not in text[len(prompt) :]
    return ChatText(prompt, text, bool(lead.strip()) and not _has_generation_prompt(row, tokenizer, prompt), unclosed)


def _parts(row: Row, tokenizer: Tokenizer, whole: str, answer: str) -> tuple[str, str, str]:
    """Split the whole rendering into what stands before the answer, the answer, and the end of the turn."""
    marked_messages = (*row.messages[:-1], {**row.messages[-1], "content": _MARK})
    try:
        marked = _render(row, tokenizer, marked_messages)
    except InputError:  # a template may demand something of the answer's text
        marked = ""
    before, found, end = marked.partition(_MARK)
    if found and whole.startswith(before) and whole.endswith(end) and len(whole) >= len(before) + len(end):
        return before, whole[len(before) : len(whole) - len(end)], end
    said = answer.strip()
    before, found, end = whole.rpartition(said) if said else (whole, "", "")
    return (before, found, end) if found else (whole, "", "")


def _lead(prompt: str, before: str) -> str:
    """Return the white space that the template writes between the header and an answer.

    before: the whole rendering up to the answer. The header ends where `before` has most characters in common with the
    end of the prompt.
    """
    best, place = 0, len(before)
    for end in range(len(before), max(len(before) - 64, 0), -1):
        if before[end:].strip():
            break
        overlap = _common_suffix(prompt, before[:end])
        if overlap > best:
            best, place = overlap, end
    return before[place:] if best >= _LEAST_OVERLAP else ""


def _common_suffix(left: str, right: str) -> int:
    count = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        count += 1
    return count


def _has_answer(completion: str, answer: str) -> bool:
    """Return whether the completion holds the answer, or what a template leaves of it behind its reasoning."""
    said = answer.strip()
    return said in completion or (END_THINK in said and said.rsplit(END_THINK, 1)[1].strip() in completion)


def _opens_thinking(prompt: str) -> bool:
    return prompt.rstrip().endswith(THINK)


def _has_generation_prompt(row: Row, tokenizer: Tokenizer, prompt: str) -> bool:
    try:
        return _render(row, tokenizer, row.prompt_messages) != prompt
    except InputError:  # such a template refuses a conversation that ends with the user
        return True


def _render(row: Row, tokenizer: Tokenizer, messages: Any, add_generation_prompt: bool = False) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{row.where}: a row of messages needs a chat template, and the tokenizer in {tokenizer_name(tokenizer)} "
            "has none; add the model's chat template there (chat_template.jinja), or write the row as prompt and "
            "completion"
        )
    tools = [dict(tool) for tool in row.tools] or None
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            chat_template=_dated(tokenizer.get_chat_template(tools=tools)),
            **{"enable_thinking": False, **row.template_options},
        )
    except Exception as error:  # templates raise Jinja's errors, and their code may raise any
        raise InputError(
            f"{row.where}: the chat template of {tokenizer_name(tokenizer)} refuses the messages ({error}); "
            "write them as the template expects (roles in turn, the user's first)"
        ) from error
    return text


def _dated(template: str) -> str:
    """Write the run's date into a template in place of its calls of `strftime_now`, so that rows keep their tokens."""
    return _STRFTIME.sub(lambda call: json.dumps(_run_date.strftime(call[2])), template)


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, which is empty beside tool calls."""
    return str(message.get("content") or "")
