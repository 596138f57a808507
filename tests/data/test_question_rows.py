"""Questions as rows: prompts, refusals, and the way through a file back to the same rows."""

from collections import Counter
from pathlib import Path

import pytest

from hcnr_jax.data import (
    REFUSALS,
    Question,
    encode_rows,
    load_tokenizer,
    read_dataset,
    read_rows,
    split_questions,
    to_rows,
    write_rows,
)
from hcnr_jax.data.encode import example_warnings
from hcnr_jax.errors import InputError

KNOWN = Question("Who sang?", True, ("Ada", "Ada L."), kind="squad", id="k1", source="f, line 1")
UNKNOWN = Question("Who sang Glorp?", False, id="u1", source="f, line 2")
CHOICE = Question("Which one?", True, ("two",), ("one", "two"), 1, id="c1", source="f, line 3")
BARE = Question("What eats a fox?", True, id="n1", source="NEC_answerable.json, line 9")


def test_plain_rows() -> None:
    known, unknown, choice = to_rows([KNOWN, UNKNOWN, CHOICE], refusals=["I don't know."])
    assert known == {
        "prompt": "Question: Who sang?\nAnswer:",
        "completion": " Ada",
        "answerable": True,
        "answers": ["Ada", "Ada L."],
        "kind": "squad",
        "id": "k1",
    }
    assert unknown == {
        "prompt": "Question: Who sang Glorp?\nAnswer:",
        "completion": " I don't know.",
        "answerable": False,
        "id": "u1",
    }
    assert choice["prompt"] == "Question: Which one?\nA. one\nB. two\nAnswer:"
    assert (choice["completion"], choice["choices"], choice["correct"]) == (" two", ["one", "two"], 1)


def test_chat_rows_with_a_system_message() -> None:
    known, unknown = to_rows([KNOWN, UNKNOWN], "chat", refusals=["No idea."], system="Be brief.")
    assert known["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who sang?"},
        {"role": "assistant", "content": "Ada"},
    ]
    assert unknown["messages"][-1] == {"role": "assistant", "content": "No idea."}
    assert to_rows([KNOWN], system="Be brief.")[0]["prompt"].startswith("Be brief.\n\nQuestion: Who")


def test_rows_that_only_ask_need_no_gold_answer(tmp_path: Path) -> None:
    for style in ("plain", "chat"):
        rows = to_rows([BARE, UNKNOWN], style, completions=False)
        write_rows(tmp_path / f"{style}.jsonl", rows)
        read = read_rows(tmp_path / f"{style}.jsonl", need_completion=False)
        assert [(row.completion, row.answerable, row.is_chat) for row in read] == [
            ("", True, style == "chat"),
            ("", False, style == "chat"),
        ]
        with pytest.raises(InputError, match="line 1"):
            read_rows(tmp_path / f"{style}.jsonl")
    with pytest.raises(
        InputError, match=r"^NEC_answerable.json, line 9: question 'What eats a fox\?' has no gold answer"
    ):
        to_rows([BARE])


def test_refusals_are_drawn_by_seed_and_all_used() -> None:
    questions = [Question(f"q{number}?", False) for number in range(200)]
    drawn = [row["completion"].strip() for row in to_rows(questions, seed=3)]
    assert drawn == [row["completion"].strip() for row in to_rows(questions, seed=3)]
    assert drawn != [row["completion"].strip() for row in to_rows(questions, seed=4)]
    assert set(Counter(drawn)) == set(REFUSALS)
    assert REFUSALS[0] == "I don't know."


def test_a_refusal_s_wording_does_not_depend_on_answerable_neighbours() -> None:
    questions = [Question(f"q{number}?", False) for number in range(20)]
    mixed = [Question(f"q{number}?", number % 2 == 0, ("a",) if number % 2 == 0 else ()) for number in range(20)]
    assert [row["completion"] for row in to_rows(questions)][1::2] == [row["completion"] for row in to_rows(mixed)][
        1::2
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refusals": []}, "refusals: expected at least one wording"),
        ({"refusals": ["No.", " "]}, "refusals: expected at least one wording"),
        ({"style": "xml"}, "style: expected plain or chat, got xml"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    # The annotated Literal is checked in tests only; a user's Python call meets the error of the function itself.
    with pytest.raises(InputError, match=message):
        getattr(to_rows, "__wrapped__", to_rows)([UNKNOWN], **options)


def test_written_rows_read_back_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = to_rows([KNOWN, UNKNOWN, CHOICE])
    write_rows(path, rows)
    read = read_rows(path)
    assert [(row.prompt, row.completion, row.id) for row in read] == [
        (row["prompt"], row["completion"], row["id"]) for row in rows
    ]
    assert read[2].choices == ("one", "two") and read[2].correct == 1 and read[0].answers == KNOWN.answers
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_rows(path, rows)
    assert path.read_bytes() == before


def test_rows_that_would_not_read_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match="line 2: field `completion`"):
        write_rows(path, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}])
    with pytest.raises(InputError, match="no rows to write"):
        write_rows(path, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["kuq", "falseqa", "refunq", "hotpotqa", "nq_open", "medmcqa", "bioasq", "selfaware"])
def test_real_questions_become_tokens(real_data: Path, tmp_path: Path, name: str) -> None:
    dataset = read_dataset(name, real_data / "data" / name)
    split = split_questions(dataset.questions, 16, None, seed=0)
    write_rows(tmp_path / "rows.jsonl", to_rows(split.scored))
    tokenizer = load_tokenizer(real_data / "models" / "stories3M")
    examples = encode_rows(read_rows(tmp_path / "rows.jsonl"), tokenizer, 512, max_positions=512, vocab_size=4096)
    assert len(examples) == 16 and not any(example.merged for example in examples)
    assert all(len(example.tokens) > example.completion_start for example in examples)
    assert example_warnings([example for example in examples if not example.cut]) == []
