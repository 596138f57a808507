"""The page on the built-in questions: its tables say what the bank holds, and its example runs."""

import re
from collections import Counter

from hcnr_jax.data.builtin import ANSWERABLE_KINDS, SPLITS, UNANSWERABLE_KINDS, questions
from tests.docs.pages import DOCS, run

PAGE = DOCS / "builtin.md"
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


def test_the_tables_say_what_the_bank_holds():
    counts = {split: Counter(item.kind for item in questions(split)) for split in SPLITS}
    kinds = UNANSWERABLE_KINDS | ANSWERABLE_KINDS
    rows = {kind: rest for kind, *rest in ROW.findall(PAGE.read_text("utf-8"))}
    assert list(rows) == list(kinds)
    for kind, (content, example, *numbers) in rows.items():
        assert content == kinds[kind]
        assert any(item.question == example and item.kind == kind for item in questions("train")), example
        assert [int(number) for number in numbers] == [counts[split][kind] for split in SPLITS]
    total = sum(len(questions(split)) for split in SPLITS)
    assert f"ships with {total:,} questions, half of them" in PAGE.read_text("utf-8")


def test_the_example_runs():
    assert run(PAGE).train == questions("train")
