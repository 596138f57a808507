"""`hcnr chat`: one question, every model's answer, in the terminal."""

import io

import pytest

from hcnr_jax.cli import main
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    return [str(write_tiny_model(folder / name, seed=seed, scale=3.0)) for name, seed in (("base", 0), ("tuned", 1))]


def test_every_model_answers_in_a_column_of_its_own(folders, capsys):
    assert main(["chat", *folders, "--prompt", "what is [red]x[/red]?", "--max-new-tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert "what is [red]x[/red]?" in said, "a question is text and never markup"
    assert "base" in said and "tuned" in said


def test_questions_are_read_until_exit(folders, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n two \nexit\nthree\n"))
    assert main(["chat", folders[0], "--max-new-tokens", "2"]) == 0
    said = capsys.readouterr().out
    assert "one" in said and "two" in said and "three" not in said


def test_an_answer_is_no_longer_than_the_models_positions(folders, capsys):
    assert main(["chat", folders[0], "--prompt", "a", "--max-new-tokens", "100000"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "MODELS: expected 1 or more, found 0"),
        (["a", "a", "--prompt", "x"], "a model is named twice"),
        (["nowhere/at/all", "--prompt", "x"], "nowhere/at/all"),
    ],
)
def test_wrong_use_is_told(words, message, capsys):
    assert main(["chat", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_question_and_a_missing_template_are_told(folders, capsys):
    assert main(["chat", folders[0], "--prompt", " "]) == 2
    assert "--prompt is empty" in capsys.readouterr().err
    assert main(["chat", folders[0], "--prompt", "x", "--template", "chat"]) == 2
    assert "chat template" in capsys.readouterr().err
