"""`hcnr data` from the command line on small files in official formats."""

import csv
import json

import pytest

from hcnr_jax.cli import main
from hcnr_jax.data import normalise_question, read_rows
from hcnr_jax.evaluate.ask.prompts import question_of
from tests.tiny import CHAT_TEMPLATE, write_rows, write_tiny_tokenizer


@pytest.fixture
def falseqa(tmp_path):
    path = tmp_path / "falseqa.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer", "label"])
        writer.writerows([f"why is the sky {i}?", f"because {i}", i % 2] for i in range(40))
    return path


@pytest.fixture
def nec(tmp_path):
    return write_rows(tmp_path / "nec.json", [{"prompt": f"q{i}?", "label": i % 2, "category": "a"} for i in range(10)])


def texts(path):
    return [normalise_question(question_of(row)) for row in read_rows(path, need_completion=False)]


def test_rows_to_restore_with_and_rows_to_evaluate_with_share_no_question(falseqa, tmp_path, capsys):
    out, asked = tmp_path / "h.jsonl", tmp_path / "e.jsonl"
    words = ["data", "falseqa", str(falseqa), "--out", str(out), "--out-evaluate", str(asked), "--samples", "10"]
    assert main(words) == 0
    rows, held_out = read_rows(out), read_rows(asked, need_completion=False)
    assert len(rows) == 10 and sum(bool(row.answerable) for row in rows) == 5
    assert all(row.completion.startswith(" because") == row.answerable for row in rows)
    assert len(held_out) == 30 and not any(row.completion for row in held_out)
    assert not set(texts(out)) & set(texts(asked))
    said = capsys.readouterr().err
    assert "20 answerable and 20 unanswerable questions kept" in said and "10 rows, 5 answerable and 5" in said


def test_the_same_seed_gives_the_same_bytes(falseqa, tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for path, seed in zip(files, ("1", "1", "2"), strict=True):
        assert main(["data", "falseqa", str(falseqa), "--out", str(path), "--samples", "8", "--seed", seed]) == 0
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_chat_rows_are_checked_with_the_models_tokenizer(falseqa, tmp_path, capsys):
    tokenizer = write_tiny_tokenizer(tmp_path / "chat", CHAT_TEMPLATE)
    out = tmp_path / "h.jsonl"
    words = ["data", "falseqa", str(falseqa), "--out", str(out), "--samples", "4", "--template", "chat"]
    assert main([*words, "--system", "Be honest.", "--tokenizer", str(tokenizer)]) == 0
    row = json.loads(out.read_text().splitlines()[0])
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert "tokens per row" in capsys.readouterr().err
    bare = write_tiny_tokenizer(tmp_path / "bare")
    assert main([*words[:4], str(tmp_path / "x"), *words[5:], "--tokenizer", str(bare)]) == 2
    assert "needs a chat template" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_avoided_questions_are_in_neither_file(falseqa, tmp_path):
    first, second, rest = (tmp_path / name for name in ("a", "b", "c"))
    assert main(["data", "falseqa", str(falseqa), "--out", str(first), "--samples", "20"]) == 0
    words = ["data", "falseqa", str(falseqa), "--out", str(second), "--out-evaluate", str(rest), "--samples", "10"]
    assert main([*words, "--avoid", str(first)]) == 0
    assert not set(texts(first)) & (set(texts(second)) | set(texts(rest)))
    assert len(texts(second)) == len(texts(rest)) == 10


def test_unanswerable_alone_needs_no_gold_answers(nec, tmp_path, capsys):
    out = tmp_path / "h.jsonl"
    assert main(["data", "nec", str(nec), "--out", str(out), "--samples", "4"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "no answerable question of nec has a gold answer to teach, so that --out has unanswerable ones alone" in said
    assert [row.answerable for row in read_rows(out)] == [False] * 4
    other = tmp_path / "other.jsonl"
    assert main(["data", "nec", str(nec), "--out", str(other), "--samples", "4", "--only", "unanswerable"]) == 0
    assert other.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out, --out-evaluate: expected one of them or both"),
        (["--out", "same", "--out-evaluate", "same"], "both name"),
        (["--out", "h", "--samples", "400"], "--samples asks for 400 balanced questions"),
        (["--out", "taken"], "taken exists; nothing is overwritten"),
        (["--out", "h", "--samples", "40", "--out-evaluate", "e"], "no question is left for it; lower --samples"),
    ],
)
def test_wrong_use_is_named_and_leaves_nothing(falseqa, tmp_path, capsys, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert main(["data", "falseqa", str(falseqa), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert {item.name for item in tmp_path.iterdir()} == {"taken", "falseqa.csv"}


def test_a_task_benchmark_has_no_unanswerable_questions(tmp_path, capsys):
    words = ["data", "nq_open", str(tmp_path / "nq.jsonl"), "--only", "unanswerable", "--out", str(tmp_path / "h")]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--only unanswerable: nq_open is a task benchmark and has no unanswerable questions" in said
    assert "falseqa" in said and "medmcqa" not in said
