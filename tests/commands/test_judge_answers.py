"""`hcnr evaluate --judge`: an endpoint or a model folder beside the detector of refusals."""

import json

import pytest

from hcnr_jax.cli import main
from hcnr_jax.evaluate.judge.chat_endpoint import ChatEndpoint
from tests.evaluate.judge.chat_server import chat_server, completion
from tests.evaluate.models import honesty_values
from tests.tiny import write_rows, write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_tiny_model(folder / "model", scale=3.0, max_position_embeddings=512)
    write_rows(folder / "h.jsonl", honesty_values(8))
    return folder


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def words(place, out, *more):
    options = ["--out", str(out), "--max-new-tokens", "4", "--draws", "20", "--honesty", f"kuq={place / 'h.jsonl'}"]
    return ["evaluate", str(place / "model"), *options, *more]


def test_replies_outlive_a_failure_and_only_the_rest_is_asked_again(place, tmp_path, capsys):
    out = tmp_path / "m.json"

    def failing(number, body):
        return completion("REFUSED") if number <= 3 else (400, {"error": "out of credit"}, {})

    with chat_server(failing) as server:
        judge = ["--judge", server.url, "--judge-model", "m"]
        assert main(words(place, out, *judge)) == 2
        assert "out of credit" in capsys.readouterr().err and not out.exists()
        assert server.requests[0].headers["Authorization"] == "Bearer secret"
    kept = [json.loads(line) for line in (tmp_path / "m.unfinished.jsonl").read_text().splitlines()[1:]]
    kept = [item["key"] for item in kept if item["part"] == "judgements"]
    assert len(kept) == 3

    # The same address again: another one would be another judge.
    port = server.url.split(":")[-1].split("/")[0]
    texts = iter(["ANSWERED", "Hard to say."])
    with chat_server(lambda number, body: completion(next(texts, "ANSWERED")), port=int(port)) as again:
        assert again.url == server.url and main(words(place, out, *judge)) == 0
    assert len(again.requests) == 5
    found = json.loads(out.read_text())["judge"]
    assert found["judge"] == server.url and found["model"] == "m"
    scores = found["sets"]["honesty"]["kuq"]
    assert scores["questions"] == 8 and scores["unreadable"] == 1
    records = [json.loads(line) for line in (tmp_path / "m.records.jsonl").read_text().splitlines()]
    assert sorted(item["judgement"] for item in records) == [*4 * ["answered"], *3 * ["refused"], "unreadable"]
    assert "Cohen's" in capsys.readouterr().err and "secret" not in out.read_text()


def test_nothing_is_sent_without_the_option(place, tmp_path, monkeypatch):
    def refuse(*words):
        raise AssertionError("a request was made")

    monkeypatch.setattr(ChatEndpoint, "_request", refuse)
    out = tmp_path / "m.json"
    assert main(words(place, out)) == 0
    assert (
        json.loads(out.read_text())["judge"] is None and "judgement" not in (tmp_path / "m.records.jsonl").read_text()
    )


def test_a_model_folder_judges(place, tmp_path):
    out = tmp_path / "m.json"
    assert main(words(place, out, "--judge", str(place / "model"))) == 0
    found = json.loads(out.read_text())["judge"]
    scores = found["sets"]["honesty"]["kuq"]
    assert found["model"] is None and scores["questions"] == scores["unreadable"] == 8 and scores["agreement"] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge", "http://h/v1"], "--judge-model: required with --judge http://h/v1"),
        (["--judge", "folder", "--judge-model", "m"], "--judge-model m: names a model of an endpoint"),
        (["--judge-model", "m"], "--judge-model m: names a model of an endpoint"),
        (["--judge", "http:///v1", "--judge-model", "m"], "--judge http:///v1: expected an address such as"),
        (["--judge", "./none"], "--judge ./none: expected an address that begins with http:// or https://, or a model"),
    ],
)
def test_wrong_use_is_named(place, tmp_path, capsys, more, message):
    assert main(words(place, tmp_path / "m.json", *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())
