"""Reads rows of honesty and task data: JSON Lines in one of two shapes. All rows are checked before any model is read.

`{"prompt": str, "completion": str}` or `{"messages": [{"role": str, "content": str}, ...]}` whose last message is the
assistant's. Optional in both: `answerable` bool, `answers` [str], `choices` [str], `correct` int (index into
`choices`), `kind` str, `id` str or int. A null counts as absent; unknown fields are ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcnr_jax.data.json_lines import describe, parse_json_lines, read_text
from hcnr_jax.errors import InputError

_SHAPES = '{"prompt": text, "completion": text} or {"messages": [{"role": text, "content": text}, ...]}'


@dataclass(frozen=True)
class Row:
    """One row of honesty or task data, with its file and line for messages.

    `messages` is empty for a prompt/completion row; `prompt` and `completion` are empty for a chat row. `completion` is
    also empty where a row without one was read with `need_completion=False`.
    """

    file: str
    line: int
    prompt: str = ""
    completion: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    answerable: bool | None = None
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: int | None = None
    kind: str | None = None
    id: str | None = None

    @property
    def where(self) -> str:
        """The file and 1-based line, for messages."""
        return f"{self.file}, line {self.line}"

    @property
    def is_chat(self) -> bool:
        """Whether the row is a chat row, which has messages."""
        return bool(self.messages)


def read_rows(path: str | Path, need_completion: bool = True) -> list[Row]:
    """Read every row of a JSON Lines file, in file order.

    With `need_completion=False`, for questions that are only asked, a row may lack its `completion`, and a chat row may
    end with a user's message.

    Raises:
        InputError: the file is empty, not UTF-8 or not JSON Lines, or a row has a missing, empty or mistyped field; the
            message names file, line and field, what was expected, what was found and what to do.
    """
    name = str(path)
    return [
        parse_row(value, name, line, need_completion=need_completion)
        for line, value in parse_json_lines(read_text(path), name)
    ]


def parse_row(value: object, file: str, line: int, *, need_completion: bool = True) -> Row:
    """Convert one decoded JSON value to a `Row`. Raises InputError as `read_rows` does.

    Args:
        value: the decoded JSON value.
        file: name of the file, for messages.
        line: 1-based line, for messages.
        need_completion: whether a row without a completion is refused.
    """
    where = f"{file}, line {line}"
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {describe(value)}; each line is {_SHAPES}")
    has_prompt, has_messages = value.get("prompt") is not None, value.get("messages") is not None
    if has_prompt == has_messages:
        found = "both `prompt` and `messages`" if has_prompt else f"the fields {_names(value)}"
        raise InputError(f"{where}: unknown shape of row, found {found}; each line is {_SHAPES}")
    if has_messages:
        content: dict[str, Any] = {"messages": _messages(value["messages"], where, need_completion)}
    else:
        content = {"prompt": _filled_text(value, "prompt", where)}
        if need_completion or value.get("completion") is not None:
            content["completion"] = _filled_text(value, "completion", where)
    return Row(file=file, line=line, **content, **_optional_fields(value, where))


def _names(value: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in value) if value else "nothing"


def _text(text: object, name: str, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: field `{name}`: expected text, found {describe(text)}; write it as a JSON string")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(
            f"{where}: field `{name}`: expected text, found half of a surrogate pair (a \\ud8xx escape alone), which "
            "is no character; remove it"
        )
    return text


def _filled_text(value: Mapping[str, Any], name: str, where: str) -> str:
    if value.get(name) is None:
        raise InputError(f"{where}: field `{name}` is missing, found {_names(value)}; each line is {_SHAPES}")
    text = _text(value[name], name, where)
    if not text.strip():
        raise InputError(
            f"{where}: field `{name}`: expected text, found {describe(text)}; fill it in or remove the row"
        )
    return text


def _messages(messages: object, where: str, need_completion: bool) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise InputError(
            f"{where}: field `messages`: expected a list of messages, found {describe(messages)}; each line is "
            f"{_SHAPES}"
        )
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InputError(
                f"{where}: field `{name}`: expected an object with role and content, found {describe(message)}"
            )
        for part in ("role", "content"):
            if part not in message:
                raise InputError(f"{where}: field `{name}.{part}` is missing, found {_names(message)}; add it")
            _text(message[part], f"{name}.{part}", where)
    last = messages[-1]
    if last["role"] == "assistant":
        if not last["content"].strip():
            raise InputError(
                f"{where}: field `messages[{len(messages) - 1}].content`: the last assistant message is the "
                "completion and must not be empty; fill it in or remove the row"
            )
        if len(messages) == 1:
            raise InputError(
                f"{where}: field `messages`: expected a user message before the assistant's, found none; add it"
            )
    elif need_completion:
        raise InputError(
            f"{where}: field `messages`: expected the last message to be the assistant's (it is the completion), "
            f"found role {describe(last['role'])}; add the assistant's message or remove the row"
        )
    return tuple(messages)


def _optional_fields(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    answerable = value.get("answerable")
    if answerable is not None:
        if not isinstance(answerable, bool):
            raise InputError(f"{where}: field `answerable`: expected true or false, found {describe(answerable)}")
        found["answerable"] = answerable
    for name in ("answers", "choices"):
        if value.get(name) is not None:
            found[name] = _text_list(value[name], name, where)
    if value.get("correct") is not None:
        found["correct"] = _correct(value["correct"], found.get("choices", ()), where)
    if value.get("kind") is not None:
        found["kind"] = _text(value["kind"], "kind", where)
    if value.get("id") is not None:
        identity = value["id"]
        is_number = isinstance(identity, int) and not isinstance(identity, bool)
        found["id"] = str(identity) if is_number else _text(identity, "id", where)
    return found


def _text_list(items: object, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(items, list):
        raise InputError(
            f"{where}: field `{name}`: expected a list of texts, found {describe(items)}; write it in brackets"
        )
    return tuple(_text(item, f"{name}[{index}]", where) for index, item in enumerate(items))


def _correct(correct: object, choices: Sequence[str], where: str) -> int:
    if not isinstance(correct, int) or isinstance(correct, bool):
        raise InputError(f"{where}: field `correct`: expected the index of a choice, found {describe(correct)}")
    if not 0 <= correct < len(choices):
        raise InputError(
            f"{where}: field `correct`: expected an index from 0 below the {len(choices)} `choices`, found {correct}; "
            "count the choices from 0"
        )
    return correct
