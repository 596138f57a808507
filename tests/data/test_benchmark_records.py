"""Containers and places: CSV, JSON Lines under any name, lists, objects with a list, folders and the hub."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hcnr_jax.data import BENCHMARKS, read_dataset
from hcnr_jax.data.benchmark_records import Record, read_records
from hcnr_jax.errors import InputError

ITEMS = [{"question": "q1", "answer": ["a"]}, {"question": "q2", "answer": ["b"]}]
LINES = "".join(json.dumps(item) + "\n" for item in ITEMS)


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("x.jsonl", LINES, ["line 1", "line 2"]),
        ("x.json", "\ufeff\n" + LINES.replace("\n", "\r\n"), ["line 2", "line 3"]),
        ("x.json", json.dumps(ITEMS), ["item 1", "item 2"]),
        ("x.json", json.dumps(ITEMS, indent=1), ["item 1", "item 2"]),
        ("x.json", json.dumps({"name": "x", "list": ITEMS}), ["item 1", "item 2"]),
        ("x.json", json.dumps({"name": "x", "list": ITEMS}, indent=2), ["item 1", "item 2"]),
    ],
)
def test_every_container_gives_the_same_records(tmp_path: Path, name: str, text: str, places: list[str]) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    files, records = read_records(str(path), "list")
    assert files == [str(path)]
    assert [record.values for record in records] == ITEMS
    assert [record.where for record in records] == [f"{path}, {place}" for place in places]


def test_csv_with_quotes_line_breaks_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffquestion,label\r\n"a, ""b""\r\nc",1\r\nd,0\r\n'.encode())
    _, records = read_records(str(path), None)
    assert [record.values for record in records] == [
        {"question": 'a, "b"\r\nc', "label": "1"},
        {"question": "d", "label": "0"},
    ]
    assert [record.where for record in records] == [f"{path}, line 2", f"{path}, line 4"]


def test_folder_is_all_its_data_files_in_name_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "README.md"):
        (tmp_path / name).write_text(LINES)
    files, records = read_records(str(tmp_path), None)
    assert files == [str(tmp_path / "a.json"), str(tmp_path / "b.jsonl")] and len(records) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"expected a folder with .csv, .json, .jsonl files, found none"):
        read_records(str(tmp_path / "empty"), None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n1\n", "line 3: expected 2 columns (a, b), found another number"),
        ("x.csv", "a,b\n1,2,3\n", "line 2: expected 2 columns (a, b), found another number"),
        ("x.csv", 'a,b\n1,"2\n', "not CSV"),
        ("x.json", "<html>", "line 1: not JSON (Expecting value)"),
        ("x.json", '[{"a": 1},\n{"a": }]', "line 2: not JSON"),
        ("x.json", "[" * 100_000, "nested too deep"),
        ("x.json", '{\n"other": []}', "or an object with the list `list`, found an object"),
        ("x.json", "[1]", "item 1: expected an object, found an integer 1"),
        ("x.jsonl", LINES + "3\n", "line 3: expected an object, found an integer 3"),
        ("x.jsonl", LINES + "{\n", "line 3: expected one JSON object on the line"),
    ],
)
def test_what_is_no_container_is_refused_by_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_records(str(path), "list")
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_missing_file_is_not_taken_for_a_hub_name(tmp_path: Path) -> None:
    for path in (str(tmp_path / "absent"), "data/absent.jsonl", "./absent"):
        with pytest.raises(InputError, match="no such file"):
            read_records(path, None)


def test_record_fields_are_checked() -> None:
    record = Record(
        {"blank": " ", "number": 3, "flag": True, "many": ["a ", "", "a", "b"], "one": "x", "none": None}, "here"
    )
    assert record.texts("many") == ("a", "b") and record.texts("one") == ("x",) and record.texts("none") == ()
    assert record.flag("flag") is True
    assert [record.optional_text(name) for name in ("number", "one", "blank", "none", "flag", "absent")] == [
        "3",
        "x",
        None,
        None,
        None,
        None,
    ]
    for read, name, message in (
        (record.text, "blank", 'field `blank`: expected text, found text " "'),
        (record.text, "absent", "field `absent` is missing, found `blank`, `number`"),
        (record.flag, "number", "field `number`: expected true or false, found an integer 3"),
        (record.texts, "number", "field `number`: expected text or a list of texts, found an integer 3"),
    ):
        with pytest.raises(InputError) as error:
            read(name)
        assert str(error.value).startswith("here: ") and message in str(error.value)


class Hub:
    """A stand-in for `datasets.load_dataset` that remembers how it was called."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, []

    def __call__(self, name: str, config: str | None, split: str | None) -> Any:
        self.calls.append((name, config, split))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("owner/set:validation", ("owner/set", None, "validation")),
        ("owner/set:main:test", ("owner/set", "main", "test")),
    ],
)
def test_hub_name_with_split_and_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str, call: tuple[str, str | None, str]
) -> None:
    hub = Hub(datasets.Dataset.from_list(ITEMS))
    monkeypatch.setattr(datasets, "load_dataset", hub)
    dataset = read_dataset("nq_open", name)
    assert hub.calls == [call]
    assert [question.answers for question in dataset.questions] == [("a",), ("b",)]
    assert dataset.questions[1].source == f"{name}, row 2"
    assert dataset.report.files == (name,)


def test_hub_without_split_takes_the_only_one_or_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    one = datasets.Dataset.from_list(ITEMS)
    monkeypatch.setattr(datasets, "load_dataset", Hub(datasets.DatasetDict({"test": one})))
    assert len(read_dataset("nq_open", "owner/set").questions) == 2
    monkeypatch.setattr(datasets, "load_dataset", Hub(datasets.DatasetDict({"train": one, "test": one})))
    with pytest.raises(InputError, match="has the splits train, test; name one as owner/set:train"):
        read_dataset("nq_open", "owner/set")


def test_hub_failure_is_one_message_that_also_doubts_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Hub(ConnectionError("offline\nsecond line")))
    with pytest.raises(InputError, match=r"no such file .*be reached.*\(ConnectionError: offline\); check the path"):
        read_dataset("nq_open", "owner/set")
    with pytest.raises(InputError, match="expected NAME, NAME:SPLIT or NAME:CONFIG:SPLIT"):
        read_dataset("nq_open", "owner/set:a:b:c")


def test_medmcqa_on_the_hub_counts_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    item = {"question": "q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "id": "i"}
    items = [item | {"cop": 0, "question": "first"}, item | {"cop": 3}, item | {"cop": -1, "question": "test"}]
    monkeypatch.setattr(datasets, "load_dataset", Hub(datasets.Dataset.from_list(items)))
    assert [question.correct for question in read_dataset("medmcqa", "owner/set:train").questions] == [0, 3, None]
    monkeypatch.setattr(datasets, "load_dataset", Hub(datasets.Dataset.from_list([item | {"cop": 4}])))
    with pytest.raises(InputError, match="row 1: field `cop`: expected a whole number from 0 to 3, found an integer 4"):
        read_dataset("medmcqa", "owner/set:train")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"^triviaqa: expected one of the data sets falseqa, nec, refunq, kuq, selfaware"
    ):
        read_dataset("triviaqa", "x.json")
    assert [name for name, benchmark in BENCHMARKS.items() if benchmark.is_honesty] == [
        "falseqa",
        "nec",
        "refunq",
        "kuq",
        "selfaware",
        "squad2",
        "xstest",
    ]
