"""Rows: both shapes, the optional fields, and a refusal with line and field for everything else."""

import json
from pathlib import Path
from typing import Any

import pytest

from hcnr_jax.data import Row, parse_row, read_rows
from hcnr_jax.errors import InputError
from tests.tiny import write_rows

GOOD = {"prompt": "Q?", "completion": " A."}
CHAT = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]


def test_both_shapes_are_read_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps(GOOD) + "\n\n" + json.dumps({"messages": CHAT, "extra": 1}) + "\r\n\n", encoding="utf-8-sig"
    )
    plain, chat = read_rows(path)
    assert plain == Row(file=str(path), line=1, prompt="Q?", completion=" A.")
    assert (chat.line, chat.is_chat, chat.messages, chat.prompt) == (3, True, tuple(CHAT), "")
    assert chat.where == f"{path}, line 3"


def test_optional_fields_are_kept_and_null_counts_as_absent() -> None:
    row = parse_row(
        GOOD | {"answerable": False, "answers": ["A", "B"], "choices": ["x", "y"], "correct": 1, "kind": "k", "id": 7},
        "f",
        1,
    )
    assert (row.answerable, row.answers, row.choices, row.correct, row.kind, row.id) == (
        False,
        ("A", "B"),
        ("x", "y"),
        1,
        "k",
        "7",
    )
    nulls = dict.fromkeys(("answerable", "answers", "choices", "correct", "kind", "id", "messages"))
    assert parse_row(GOOD | nulls, "f", 1) == parse_row(GOOD, "f", 1)


@pytest.mark.parametrize(
    ("value", "field", "found"),
    [
        ([1], "expected an object", "a list [1]"),
        ("text", "expected an object", 'text "text"'),
        ({}, "unknown shape", "nothing"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "`completion` is missing", "`prompt`, `chosen`, `rejected`"),
        ({"question": "Q", "answer": "a"}, "unknown shape", "`question`, `answer`"),
        (GOOD | {"messages": CHAT}, "unknown shape", "both `prompt` and `messages`"),
        ({"prompt": "Q?"}, "`completion` is missing", "`prompt`"),
        ({"prompt": "Q?", "completion": None}, "`completion` is missing", ""),
        ({"prompt": 3, "completion": "a"}, "`prompt`: expected text", "an integer 3"),
        ({"prompt": 1, "completion": "a"}, "`prompt`: expected text", "an integer 1"),
        ({"prompt": CHAT[:1], "completion": CHAT[:1]}, "`completion`: expected the last message", 'text "user"'),
        ({"prompt": CHAT[:1], "completion": " "}, "`completion`: expected text", 'text " "'),
        ({"prompt": "", "completion": "a"}, "`prompt`: expected text", 'text ""'),
        ({"prompt": "Q", "completion": " \n"}, "`completion`: expected text", 'text " \\n"'),
        ({"prompt": "Q", "completion": "\ud800"}, "`completion`: expected text", "surrogate"),
        ({"messages": []}, "`messages`: expected a list of messages", "a list []"),
        ({"messages": "hi"}, "`messages`: expected a list of messages", 'text "hi"'),
        ({"messages": ["hi"]}, "`messages[0]`: expected an object", 'text "hi"'),
        ({"messages": [{"role": "user"}]}, "`messages[0].content` is missing", "`role`"),
        (
            {"messages": [{"role": "user", "content": [1]}]},
            "`messages[0].content[0]`: expected a text part",
            "an integer 1",
        ),
        ({"messages": CHAT[:1]}, "the last message to be the assistant's", 'text "user"'),
        ({"messages": CHAT[1:]}, "expected a user message before", "none"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": ""}]}, "`messages[1].content`", "must not be empty"),
        (GOOD | {"answerable": 1}, "`answerable`: expected true or false", "an integer 1"),
        (GOOD | {"answers": "A"}, "`answers`: expected a list of texts", 'text "A"'),
        (GOOD | {"answers": ["A", 2]}, "`answers[1]`: expected text", "an integer 2"),
        (GOOD | {"choices": {}}, "`choices`: expected a list of texts", "an object {}"),
        (GOOD | {"correct": True, "choices": ["a", "b"]}, "`correct`: expected the index", "a boolean true"),
        (GOOD | {"correct": 2, "choices": ["a", "b"]}, "`correct`: expected an index from 0 below the 2", "2"),
        (GOOD | {"correct": 0}, "`correct`: expected an index from 0 below the 0", "0"),
        (GOOD | {"kind": 1}, "`kind`: expected text", "an integer 1"),
        (GOOD | {"id": 1.5}, "`id`: expected text", "a number 1.5"),
    ],
)
def test_bad_row_is_refused_with_file_line_field_and_finding(
    tmp_path: Path, value: Any, field: str, found: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [GOOD])
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value) + "\n")
    with pytest.raises(InputError) as error:
        read_rows(path)
    message = str(error.value)
    assert message.startswith(f"{path}, line 2: ")
    assert field in message
    assert found in message


def test_questions_without_completion_are_read_only_where_asked() -> None:
    assert parse_row({"prompt": "Q"}, "f", 1, need_completion=False).completion == ""
    assert parse_row({"messages": CHAT[:1]}, "f", 1, need_completion=False).messages == tuple(CHAT[:1])
    with pytest.raises(InputError, match="`completion`: expected text"):
        parse_row({"prompt": "Q", "completion": ""}, "f", 1, need_completion=False)


ASKED = {"role": "user", "content": "Who?"}
SAID = {"role": "assistant", "content": "Me."}


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [ASKED, SAID]},
        {"prompt": [ASKED], "completion": [SAID]},
        {"prompt": [ASKED], "completion": "Me."},
        {"prompt": "Who?", "completion": [SAID]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]},
                SAID,
            ]
        },
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
        {"instruction": "Who?", "input": "", "output": "Me."},
    ],
    ids=["messages", "two lists", "text answer", "text prompt", "content parts", "ShareGPT", "Alpaca"],
)
def test_shapes_of_other_tools_are_the_same_chat(value) -> None:
    row = parse_row(value, "f", 1)
    assert [dict(message) for message in row.messages] == [ASKED, SAID] and row.prompt_messages == (ASKED,)


def test_alpaca_and_sharegpt_keep_input_and_system() -> None:
    alpaca = parse_row({"instruction": "Sum.", "input": "1 2", "output": "3", "system": "Be brief."}, "f", 1)
    assert [m["content"] for m in alpaca.messages] == ["Be brief.", "Sum.\n\n1 2", "3"]
    shared = parse_row(
        {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "f", 1
    )
    assert [m["role"] for m in shared.messages] == ["system", "user", "assistant"]
    with pytest.raises(InputError, match=r"`conversations\[0\]`: expected an object with `from`"):
        parse_row({"conversations": [{"from": "narrator", "value": "Q"}]}, "f", 1)


def test_tools_and_template_options_are_read() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    value = {"messages": [ASKED, call], "tools": tools, "chat_template_kwargs": {"thinking": True}}
    row = parse_row(value, "f", 1)
    assert (
        row.tools == tuple(tools) and row.template_options == {"thinking": True} and row.messages[-1]["content"] == ""
    )
    assert parse_row(value | {"tools": json.dumps(tools)}, "f", 1).tools == tuple(tools)
    with pytest.raises(InputError, match=r"`messages\[0\].content\[0\]`: expected a text part .* found an object"):
        parse_row({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, SAID]}, "f", 1)


def test_a_completion_of_several_messages_begins_behind_the_prompt() -> None:
    turns = [{"role": "assistant", "content": "Wait."}, {"role": "user", "content": "Well?"}, SAID]
    row = parse_row({"prompt": [ASKED], "completion": turns}, "f", 1)
    assert row.prompt_messages == (ASKED,) and len(row.messages) == 4
