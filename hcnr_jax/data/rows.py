"""Reads rows of honesty and task data, in the shapes that training tools write. All rows are checked before any model
is read.

| shape | fields |
|---|---|
| text | `prompt` and `completion`, both text |
| chat | `messages`, whose last message is the assistant's |
| chat, in two parts | `prompt` as messages; `completion` as messages or text |
| ShareGPT | `conversations` of `from` and `value` |
| Alpaca | `instruction`, `input` and `output` |

A message is `{"role": text, "content": text}`. Content may be a list of text parts, and null beside `tool_calls`.
Optional in every shape: `answerable` bool, `answers` [str], `choices` [str], `correct` int (index into `choices`),
`kind` str, `id` str or int; in chats also `tools` [object] and `chat_template_kwargs` object, which the chat template
receives. A null counts as absent; unknown fields are ignored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hcnr_jax.data.json_lines import describe
from hcnr_jax.data.row_files import read_values
from hcnr_jax.errors import InputError

_SHAPES = '{"prompt": text, "completion": text} or {"messages": [{"role": text, "content": text}, ...]}'
# What the caller of a chat template decides; a row may not.
_RESERVED = ("messages", "conversation", "tools", "tokenize", "add_generation_prompt", "return_tensors", "return_dict")
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
    "system": "system",
}


@dataclass(frozen=True)
class Row:
    """One row of honesty or task data, with its file and line for messages.

    Args:
        file: name of the file.
        line: 1-based line in it.
        prompt: text of the prompt; empty for a chat row.
        completion: text of the completion; empty for a chat row and for a row that only asks.
        messages: of a chat row, the completion's included.
        answerable: whether the model should answer.
        answers: gold answers.
        choices: texts of the choices.
        correct: index of the right choice.
        kind: a name for the kind of question.
        id: the row's own identifier.
        tools: descriptions of tools for the chat template.
        template_options: further arguments of the chat template.
        turns: messages at the end of a chat row that are its completion.
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
    tools: tuple[Mapping[str, Any], ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    turns: int = 1

    @property
    def where(self) -> str:
        """The file and 1-based line, for messages."""
        return f"{self.file}, line {self.line}"

    @property
    def is_chat(self) -> bool:
        """Whether the row is a chat row, which has messages."""
        return bool(self.messages)

    @property
    def prompt_messages(self) -> tuple[Mapping[str, Any], ...]:
        """The messages before the completion; all of them where the row only asks."""
        answered = bool(self.messages) and self.messages[-1]["role"] == "assistant"
        return self.messages[: -self.turns] if answered else self.messages


def read_rows(path: str | Path, need_completion: bool = True) -> list[Row]:
    """Read every row of a file, in file order: JSON Lines, a JSON array or Parquet, any of them also as gzip.

    With `need_completion=False`, for questions that are only asked, a row may lack its `completion`, and a chat row may
    end with a user's message.

    Raises:
        InputError: the file is empty or of another format, or a row has a missing, empty or mistyped field; the message
            names file, line and field, what was expected, what was found and what to do.
    """
    name = str(path)
    return [parse_row(value, name, line, need_completion=need_completion) for line, value in read_values(path)]


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
    value = _from_other_tools(value, where)
    has_prompt, has_messages = value.get("prompt") is not None, value.get("messages") is not None
    if has_prompt == has_messages:
        found = "both `prompt` and `messages`" if has_prompt else f"the fields {_names(value)}"
        raise InputError(f"{where}: unknown shape of row, found {found}; each line is {_SHAPES}")
    if has_messages:
        content = _chat(value, _messages(value["messages"], "messages", where), 1, where, need_completion)
    elif isinstance(value["prompt"], list) or isinstance(value.get("completion"), list):
        content = _chat(value, *_conversation(value, where, need_completion), where, need_completion)
    else:
        content = {"prompt": _filled_text(value, "prompt", where)}
        if need_completion or value.get("completion") is not None:
            content["completion"] = _filled_text(value, "completion", where)
    return Row(file=file, line=line, **content, **_optional_fields(value, where))


def _from_other_tools(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Rewrite the shapes of ShareGPT and Alpaca as messages; return every other row as it is."""
    if value.get("prompt") is not None or value.get("messages") is not None:
        return value
    system = value.get("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    if value.get("conversations") is not None:
        return {**value, "messages": [*first, *_sharegpt(value["conversations"], where)]}
    if isinstance(value.get("instruction"), str) and "output" in value:
        asked, given = value["instruction"], value.get("input")
        if isinstance(given, str) and given.strip():
            asked = f"{asked}\n\n{given}"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": value["output"]}]
        return {**value, "messages": [*first, *turns]}
    return value


def _sharegpt(turns: object, where: str) -> list[Any]:
    """Rewrite turns of `from` and `value` as messages."""
    if not isinstance(turns, list):
        raise InputError(f"{where}: field `conversations`: expected a list of turns, found {describe(turns)}")
    messages = []
    for index, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if isinstance(turn, dict) and "role" in turn:
            messages.append(turn)
        elif role is not None and "value" in turn:
            messages.append({"role": role, "content": turn["value"]})
        else:
            raise InputError(
                f"{where}: field `conversations[{index}]`: expected an object with `from` (one of "
                f"{', '.join(_SHAREGPT_ROLES)}) and `value`, found {describe(turn)}"
            )
    return messages


def _conversation(value: Mapping[str, Any], where: str, need_completion: bool) -> tuple[list[dict[str, Any]], int]:
    """Join a prompt and a completion of which at least one is a list of messages; return them and the completion's
    number of messages."""
    prompt, completion = value["prompt"], value.get("completion")
    before = (
        _messages(prompt, "prompt", where)
        if isinstance(prompt, list)
        else [{"role": "user", "content": _filled_text(value, "prompt", where)}]
    )
    if completion is None:
        if need_completion:
            _filled_text(value, "completion", where)
        return before, 1
    after = (
        _messages(completion, "completion", where)
        if isinstance(completion, list)
        else [{"role": "assistant", "content": _filled_text(value, "completion", where)}]
    )
    if after[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: field `completion`: expected the last message to be the assistant's, found role "
            f"{describe(after[-1]['role'])}"
        )
    return [*before, *after], len(after)


def _chat(
    value: Mapping[str, Any], messages: list[dict[str, Any]], turns: int, where: str, need_completion: bool
) -> dict[str, Any]:
    """Return the fields of a chat row."""
    last = messages[-1]
    if last["role"] == "assistant":
        if not last["content"].strip() and not last.get("tool_calls"):
            raise InputError(
                f"{where}: field `messages[{len(messages) - 1}].content`: the last assistant message is the "
                "completion and must not be empty; fill it in or remove the row"
            )
        if len(messages) <= turns:
            raise InputError(
                f"{where}: field `messages`: expected a user message before the assistant's, found none; add it"
            )
    elif need_completion:
        raise InputError(
            f"{where}: field `messages`: expected the last message to be the assistant's (it is the completion), "
            f"found role {describe(last['role'])}; add the assistant's message or remove the row"
        )
    return {
        "messages": tuple(messages),
        "turns": turns,
        "tools": _tools(value.get("tools"), where),
        "template_options": _template_options(value.get("chat_template_kwargs"), where),
    }


def _tools(tools: object, where: str) -> tuple[Mapping[str, Any], ...]:
    """Read descriptions of tools: a list of objects, or that list as JSON text, as some data sets store it."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise InputError(
                f"{where}: field `tools`: expected a list of objects, found text that is no JSON"
            ) from error
    if tools is None or tools == "":
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{where}: field `tools`: expected a list of objects, found {describe(tools)}")
    return tuple(tools)


def _template_options(options: object, where: str) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise InputError(f"{where}: field `chat_template_kwargs`: expected an object, found {describe(options)}")
    taken = [name for name in _RESERVED if name in options]
    if taken:
        raise InputError(f"{where}: field `chat_template_kwargs.{taken[0]}`: not for a row to choose; remove it")
    return dict(options)


def _names(value: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in value) if value else "nothing"


def _text(text: object, name: str, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: field `{name}`: expected text, found {describe(text)}")
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


def _messages(messages: object, field: str, where: str) -> list[dict[str, Any]]:
    """Check a list of messages; return them with their contents as text."""
    if not isinstance(messages, list) or not messages:
        raise InputError(
            f"{where}: field `{field}`: expected a list of messages, found {describe(messages)}; each line is {_SHAPES}"
        )
    found = []
    for index, message in enumerate(messages):
        name = f"{field}[{index}]"
        if not isinstance(message, dict):
            raise InputError(
                f"{where}: field `{name}`: expected an object with role and content, found {describe(message)}"
            )
        if "role" not in message:
            raise InputError(f"{where}: field `{name}.role` is missing, found {_names(message)}; add it")
        _text(message["role"], f"{name}.role", where)
        found.append({**_without_nulls(message), "content": _content(message, name, where)})
    return found


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drop null entries: a Parquet file has them for every key that some message has."""
    return {key: part for key, part in message.items() if part is not None}


def _content(message: Mapping[str, Any], name: str, where: str) -> str:
    """Return a message's content as text: text parts are joined, and null beside tool calls is empty."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if "content" not in message:
        raise InputError(f"{where}: field `{name}.content` is missing, found {_names(message)}; add it")
    if isinstance(content, list):
        return "".join(_part_text(part, f"{name}.content[{index}]", where) for index, part in enumerate(content))
    return _text(content, f"{name}.content", where)


def _part_text(part: object, name: str, where: str) -> str:
    """Return the text of one part of a content list. InputError for an image or another part that is no text."""
    if isinstance(part, str):
        return _text(part, name, where)
    if isinstance(part, dict) and part.get("type", "text") == "text" and part.get("text") is not None:
        return _text(part["text"], f"{name}.text", where)
    raise InputError(
        f'{where}: field `{name}`: expected a text part {{"type": "text", "text": text}}, found {describe(part)}; the '
        "models here read text alone: remove the row"
    )


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
