"""The five question-answering tasks: tiny files of our own in each official format, and the real files' counts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hcnr_jax.data import read_dataset
from hcnr_jax.errors import InputError

OPTIONS = {"opa": "one", "opb": "two", "opc": "three", "opd": "four"}


def test_hotpotqa_full_simplified_and_test_files(tmp_path: Path) -> None:
    full = {
        "_id": "5a8b",
        "question": "Same place?",
        "answer": "yes",
        "type": "comparison",
        "level": "hard",
        "context": [["Title", ["A sentence."]]],
        "supporting_facts": [["Title", 0]],
    }
    (tmp_path / "hotpot_train_v1.1.json").write_text(json.dumps([full]))
    (tmp_path / "simplified.json").write_text(json.dumps([{"question": "Which?", "answer": "this", "type": "bridge"}]))
    (tmp_path / "test.json").write_text(json.dumps([{"_id": "5a8c", "question": "Hidden?", "context": []}]))
    dataset = read_dataset("hotpotqa", tmp_path)
    assert [(q.id, q.question, q.answers, q.kind, q.answerable) for q in dataset.questions] == [
        ("5a8b", "Same place?", ("yes",), "comparison", True),
        ("hotpotqa/simplified.json:1", "Which?", ("this",), "bridge", True),
        ("5a8c", "Hidden?", (), None, True),
    ]
    assert dataset.report.without_answer == 1


def test_nq_open_answers_are_aliases_and_tests_have_none(tmp_path: Path) -> None:
    path = tmp_path / "NQ-open.train.jsonl"
    path.write_text('{"question": "who", "answer": ["A", "B", "A"]}\n{"question": "when"}\n')
    assert [q.answers for q in read_dataset("nq_open", path).questions] == [("A", "B"), ()]


def test_medmcqa_counts_cop_from_one_and_reads_tests_without_it(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    items = [OPTIONS | {"question": f"q{cop}", "cop": cop, "id": f"i{cop}", "exp": None} for cop in (1, 4)]
    items.append(OPTIONS | {"question": "test", "id": "i5", "subject_name": "Anatomy"})
    # One wording with other choices is another question; the same in all is a repeat.
    items += [items[0] | {"opd": "five", "id": "i6"}, items[0] | {"id": "i7"}]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    dataset = read_dataset("medmcqa", path)
    assert [(q.id, q.correct, q.answers) for q in dataset.questions] == [
        ("i1", 0, ("one",)),
        ("i4", 3, ("four",)),
        ("i5", None, ()),
        ("i6", 0, ("one",)),
    ]
    assert dataset.questions[2].kind == "Anatomy" and dataset.questions[0].choices == ("one", "two", "three", "four")
    assert (dataset.report.repeats_answerable, dataset.report.without_answer) == (1, 1)


@pytest.mark.parametrize("cop", [0, 5, -1, "1", True])
def test_medmcqa_file_that_does_not_count_from_one_is_refused(tmp_path: Path, cop: Any) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(OPTIONS | {"question": "q", "cop": cop}) + "\n")
    with pytest.raises(InputError, match="line 1: field `cop`: expected a whole number from 1 to 4"):
        read_dataset("medmcqa", path)


def test_bioasq_four_types_old_and_new_shapes(tmp_path: Path) -> None:
    def item(name: str, kind: str, **answers: Any) -> dict[str, Any]:
        return {"id": name, "body": f"{name}?", "type": kind, "documents": [], "snippets": []} | answers

    items = [
        item("yes", "yesno", exact_answer="no", ideal_answer=["No, it is not."]),
        item("fact", "factoid", exact_answer=[["XIa", "factor XIa"], [" "]], ideal_answer=["It is XIa."]),
        item("old", "factoid", exact_answer=["BRCA1", "BRCA-1"]),
        item("list", "list", exact_answer=[["BCMA", "B-cell antigen"], ["CD3"]]),
        item("sum", "summary", ideal_answer=["Long prose."]),
        item("text", "summary", ideal_answer="Older prose."),
        item("test", "list"),
    ]
    path = tmp_path / "golden.json"
    path.write_text(json.dumps({"questions": items}))
    dataset = read_dataset("bioasq", path)
    assert {q.id: q.answers for q in dataset.questions} == {
        "yes": ("no",),
        "fact": ("XIa", "factor XIa"),
        "old": ("BRCA1", "BRCA-1"),
        "list": ("BCMA, CD3",),
        "sum": ("Long prose.",),
        "text": ("Older prose.",),
        "test": (),
    }
    assert [q.kind for q in dataset.questions][:4] == ["yesno", "factoid", "factoid", "list"]
    assert dataset.report.without_answer == 1


def test_simpleqa_topic_is_the_kind(tmp_path: Path) -> None:
    path = tmp_path / "simple_qa_test_set.csv"
    path.write_text(
        "metadata,problem,answer\n"
        "\"{'topic': 'Rivers', 'answer_type': 'Place', 'urls': ['https://x.invalid/a,b']}\",Which river?,The Ob\n"
        ",What next?,42\n"
    )
    assert [(q.id, q.question, q.answers, q.kind) for q in read_dataset("simpleqa", path).questions] == [
        ("simpleqa/simple_qa_test_set.csv:2", "Which river?", ("The Ob",), "Rivers"),
        ("simpleqa/simple_qa_test_set.csv:3", "What next?", ("42",), None),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("metadata,problem\n{},q\n", "line 2: field `answer` is missing, found `metadata`, `problem`"),
        ("metadata,problem,answer\nRivers,q,a\n", "field `metadata`: expected a Python dict as text, found text"),
        ("metadata,problem,answer\n[1],q,a\n", "field `metadata`: expected a Python dict as text, found a list [1]"),
    ],
)
def test_simpleqa_files_of_another_format_are_refused_by_line(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(row)
    with pytest.raises(InputError) as error:
        read_dataset("simpleqa", tmp_path / "x.csv")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("hotpotqa", {"query": "q"}, "`question` is missing, found `query`"),
        ("hotpotqa", {"question": "q", "answer": 3}, "`answer`: expected text or a list of texts, found an integer 3"),
        ("nq_open", {"question": "q", "answer": [1]}, "`answer`: expected text or a list of texts, found a list [1]"),
        ("medmcqa", {"question": "q", "cop": 1}, "`opa` is missing"),
        ("bioasq", {"body": "q", "type": "essay"}, "`type`: expected yesno, factoid, list or summary"),
        ("bioasq", {"body": "q", "type": "list", "exact_answer": [[1]]}, "`exact_answer`: expected text, a list of"),
    ],
)
def test_records_of_another_format_are_refused_by_item_and_field(
    tmp_path: Path, name: str, item: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([item]))
    with pytest.raises(InputError) as error:
        read_dataset(name, path)
    assert str(error.value).startswith(f"{path}, item 1: field ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("hotpotqa/hotpot_dev_v1_simplified.json", 7405),
        ("nq_open/NQ-open.dev.jsonl", 3610),
        ("nq_open/NQ-open.efficientqa.dev.1.1.jsonl", 1800),
        ("nq_open", 5410),
        ("medmcqa/dev.json", 4183),
        ("bioasq/10B1_golden.sample24.json", 24),
    ],
)
def test_real_files_have_the_known_counts(real_data: Path, name: str, records: int) -> None:
    dataset = read_dataset(name.split("/")[0], real_data / "data" / name)
    report = dataset.report
    assert (report.records, report.answerable, report.unanswerable, report.without_answer) == (records, records, 0, 0)
    assert (report.repeats_answerable, report.contradictions) == (0, ())
    assert len({question.id for question in dataset.questions}) == records


def test_real_medmcqa_and_bioasq_labels(real_data: Path) -> None:
    medmcqa = read_dataset("medmcqa", real_data / "data" / "medmcqa" / "dev.json").questions
    assert Counter(question.correct for question in medmcqa) == {0: 1348, 1: 1085, 2: 925, 3: 825}
    assert all(question.answers == (question.choices[question.correct],) for question in medmcqa)
    bioasq = read_dataset("bioasq", real_data / "data" / "bioasq").questions
    assert Counter(question.kind for question in bioasq) == {"factoid": 9, "yesno": 6, "summary": 5, "list": 4}
    listed = next(question for question in bioasq if question.question.startswith("Where does REGN5458"))
    assert listed.answers == ("B-cell maturation antigen, CD3",)


def test_a_record_with_an_empty_option_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"Q{i}?",
            "opa": "a",
            "opb": "b",
            "opc": "" if i == 1 else "c",
            "opd": None if i == 2 else "d",
            "cop": 1,
        }
        for i in range(4)
    ]
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = read_dataset("medmcqa", path)
    assert [question.question for question in dataset.questions] == ["Q0?", "Q3?"]
    (line,) = [line for line in dataset.report.lines() if "empty field" in line]
    assert "left out 2 records with an empty field (the first: " in line and "line 2: field `opc`" in line
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(InputError, match="field `opc`: expected text"):
        read_dataset("medmcqa", path)
