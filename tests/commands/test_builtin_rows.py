"""`hcnr data builtin` from the command line, on tiny models."""

import itertools
import json

import numpy as np
import pytest

from hcnr_jax.cli import main
from hcnr_jax.commands.data import data
from hcnr_jax.config import DataConfig
from hcnr_jax.data import normalise_question, read_rows
from hcnr_jax.data.builtin import UNANSWERABLE_KINDS, questions
from hcnr_jax.evaluate.ask import own_words
from hcnr_jax.evaluate.ask.prompts import question_of
from tests.tiny import CHAT_TEMPLATE, VOCABULARY, read_weights, write_rows, write_tiny_model, write_weights

KNOWN = {normalise_question(item.question): item for item in questions("train")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_tiny_model(folder / "plain", scale=3.0)
    write_tiny_model(folder / "chat", scale=3.0, chat_template=CHAT_TEMPLATE)
    return folder


@pytest.fixture
def honest(monkeypatch):
    """Let every model answer what it is asked as an honest one would."""

    def texts(model, prompts, max_new_tokens, *, microbatch=None, events=None):
        items = [KNOWN[normalise_question(prompt.question)] for prompt in prompts]
        events.advance("completions", len(prompts))
        return [f"The answer is {item.answers[0]}." if item.answerable else "I am not sure." for item in items]

    monkeypatch.setattr(own_words, "own_texts", texts)


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("honest")
def test_rows_of_train_and_questions_of_test(place, tmp_path, capsys):
    out, asked = tmp_path / "h.jsonl", tmp_path / "e.jsonl"
    words = ["data", "builtin", "--model", str(place / "plain"), "--out", str(out), "--out-evaluate", str(asked)]
    assert main([*words, "--evaluate-samples", "64"]) == 0
    rows, held_out = read_rows(out), read_rows(asked, need_completion=False)
    assert len(rows) == 128 and sum(bool(row.answerable) for row in rows) == 64
    assert {row.kind for row in rows} >= set(UNANSWERABLE_KINDS) and all(
        row.id.startswith("builtin/train/") for row in rows
    )
    assert {row.completion for row in rows if not row.answerable} == {" I am not sure."}
    assert all(row.completion == f" The answer is {row.answers[0]}." for row in rows if row.answerable)
    assert all(normalise_question(question_of(row)) in KNOWN for row in rows)
    assert len(held_out) == 64 and sum(bool(row.answerable) for row in held_out) == 32
    assert all(row.id.startswith("builtin/test/") and not row.completion for row in held_out)
    shown = said(capsys)
    for word in ("unknown_entity", "geography", "asked", "left out", "128 rows, 64 answerable and 64 unanswerable"):
        assert word in shown
    assert "ask BASE: 192 questions" in shown


@pytest.mark.usefixtures("honest")
def test_a_chat_model_gets_chat_rows(place, tmp_path):
    out = tmp_path / "h.jsonl"
    words = ["data", "builtin", "--model", str(place / "chat"), "--out", str(out), "--samples", "16", "--system", "me"]
    assert main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[turn["role"] for turn in row["messages"]] for row in rows] == [["system", "user", "assistant"]] * 16
    plain = tmp_path / "p.jsonl"
    assert main([*words[:5], str(plain), "--samples", "16", "--template", "plain"]) == 0
    assert all("completion" in json.loads(line) for line in plain.read_text().splitlines())


@pytest.mark.usefixtures("honest")
def test_the_same_seed_gives_the_same_bytes_and_avoided_questions_do_not_come(place, tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    words = ["data", "builtin", "--model", str(place / "plain"), "--samples", "32", "--out"]
    for path in files[:2]:
        assert main([*words, str(path)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert main([*words, str(files[2]), "--avoid", str(files[0])]) == 0
    first, other = ({row.id for row in read_rows(path)} for path in (files[0], files[2]))
    assert not first & other


def test_test_questions_alone_need_no_model(tmp_path):
    out = tmp_path / "e.jsonl"
    assert main(["data", "builtin", "--out-evaluate", str(out)]) == 0
    rows = read_rows(out, need_completion=False)
    assert len(rows) == len(questions("test")) and sum(bool(row.answerable) for row in rows) * 2 == len(rows)


def test_a_model_that_never_declines_is_refused(place, tmp_path, capsys):
    """A real run: the random model says random words."""
    out = tmp_path / "h.jsonl"
    words = ["data", "builtin", "--model", str(place / "plain"), "--out", str(out), "--max-new-tokens", "3"]
    assert main(words) == 2
    assert "There is little honesty to restore in BASE" in said(capsys) and not out.exists()


def test_a_model_that_only_declines_is_refused(tmp_path, capsys):
    """A real run: the model's blocks add nothing, and its head says "I do not know ." behind the prompt's colon."""
    folder = write_tiny_model(tmp_path / "model")
    weights = read_weights(folder)
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = np.zeros_like(weights[name])
    embeddings, head = weights["model.embed_tokens.weight"], np.zeros_like(weights["lm_head.weight"])
    chain = [VOCABULARY.index(word) for word in (":", "I", "do", "not", "know", ".", "</s>")]
    for before, after in itertools.pairwise(chain):
        head[after] += embeddings[before] / np.linalg.norm(embeddings[before])
    weights["lm_head.weight"] = head
    write_weights(folder, weights)
    words = ["data", "builtin", "--model", str(folder), "--out", str(tmp_path / "h"), "--max-new-tokens", "8"]
    assert main(words) == 2
    count = 96  # after the first round it is clear that the others would not do
    assert f"BASE answers 0 of {count} questions that have an answer correctly and declines {count}" in said(capsys)


def test_fewer_rows_than_wanted_give_a_warning(place, tmp_path, capsys, monkeypatch):
    declined = ("future", "contradiction")

    def texts(model, prompts, max_new_tokens, *, microbatch=None, events=None):
        items = [KNOWN[normalise_question(prompt.question)] for prompt in prompts]
        return [(*item.answers, "Who knows." if item.kind in declined else "Yes.")[0] for item in items]

    monkeypatch.setattr(own_words, "own_texts", texts)
    config = DataConfig(name="builtin", model=str(place / "plain"), out=tmp_path / "h.jsonl", samples=256)
    count = sum(item.kind in declined for item in questions("train"))
    assert 64 < count < 128 and data(config) == {str(tmp_path / "h.jsonl"): 2 * count}
    assert f"--samples 256: only {2 * count} rows could be made" in said(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["builtin", "--out", "h"], "--model: required for --out; the completions of builtin are the model's own"),
        (
            ["builtin", "file.jsonl", "--out", "h", "--model", "M"],
            "PATH: builtin ships with hcnr_jax and takes no file",
        ),
        (["builtin", "--out", "h", "--model", "M", "--only", "answerable"], "--only answerable: the rows of builtin"),
        (["builtin", "--out", "h", "--model", "none/such"], "none/such"),
        (["builtin"], "--out, --out-evaluate: expected one of them or both"),
        (["builtin", "--out-evaluate", "e", "--evaluate-samples", "4000"], "--evaluate-samples asks for 4000 balanced"),
        (["builtin", "--model", "M", "--out", "taken"], "taken exists; nothing is overwritten"),
        (["falseqa", "--out", "h"], "PATH: required; name the file or folder of falseqa"),
        (["falseqa", "f.csv", "--model", "M", "--out", "h"], "--model M: only builtin asks a model"),
        (["built-in", "--out", "h"], "NAME: expected builtin or one of falseqa, nec"),
    ],
)
def test_wrong_use_is_named_and_leaves_nothing(place, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "taken", [])
    assert (
        main(
            ["data", *[str(place / "plain") if word == "M" and "--model M" not in message else word for word in words]]
        )
        == 2
    )
    assert message in said(capsys)
    assert {item.name for item in tmp_path.iterdir()} == {"taken"}
