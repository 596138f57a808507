"""`hcnr tune --watch-honesty`: refusals of the model in training, with hcnr's own generation."""

import itertools
import json

import pytest
from pydantic import ValidationError

from hcnr_jax.cli import main
from hcnr_jax.commands.tune import tune
from hcnr_jax.config import TuneConfig
from hcnr_jax.data import read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import AnswerSettings, answer, encode_prompts, honesty_metrics
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.report.console import Reporter
from tests.tiny import honesty_rows, task_rows, write_rows, write_tiny_model

NEW_TOKENS = 8
QUICK = {"batch_size": 6, "warmup": 0.0, "watch_max_new_tokens": NEW_TOKENS}
LORA = {"lora": 8, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Six questions that the model learns to refuse, and six that it learns to answer."""
    refused = [row | {"completion": " I do not know."} for row in honesty_rows(6)]  # words that decode as one sentence
    values = refused + [row | {"answerable": True} for row in task_rows(6)]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", values)


@pytest.fixture(scope="module")
def bluffs(tmp_path_factory):
    """Twelve rows that answer every question."""
    return write_rows(tmp_path_factory.mktemp("bluffs") / "rows.jsonl", task_rows(12))


def evaluated(folder, rows) -> tuple[float, ...]:
    """What hcnr evaluate measures of a written folder."""
    opened = open_model(str(folder))
    prompts = encode_prompts("honesty", "q", read_rows(rows), tokenizer=opened.tokenizer, vocab_size=64, max_tokens=99)
    found = answer(opened.load(), prompts, AnswerSettings(NEW_TOKENS))
    scores = honesty_metrics([item.verdict for item in found], [item.answerable for item in found])
    return (scores.refusal_delta, scores.recall, scores.over_refusal)


def watched(out) -> dict:
    return json.loads((out / "hcnr_tune.json").read_text())["honesty"]


@pytest.mark.parametrize("kind", [{"learning_rate": 0.01}, LORA], ids=["all weights", "lora"])
def test_the_model_in_training_is_asked_and_the_figures_are_those_of_the_folder(tmp_path, model, rows, kind) -> None:
    reporter = Reporter()
    config = TuneConfig(
        model=model, data=rows, out=tmp_path / "out", steps=20, watch_honesty=str(rows), watch_every=8, **QUICK, **kind
    )
    with reporter.console.capture() as said:
        out = tune(config, reporter)
    record = watched(out)
    assert [item["step"] for item in record["history"]] == [0, 8, 16, 20]
    assert record["questions"] == 12 and record["stopped_at"] is None
    first, last = (tuple(list(record["history"][place].values())[1:]) for place in (0, -1))
    assert first == evaluated(model, rows) and last == evaluated(out, rows)
    assert last[0] > 0.5 > first[0]
    assert (out / "honesty.png").read_bytes().startswith(b"\x89PNG")
    assert f"step 20: refusal delta {100 * last[0]:.1f} % (refused: " in said.get()
    assert f"refusal delta: 0.0 % before training, {100 * last[0]:.1f} % after" in said.get()


def test_preference_training_is_watched_too(tmp_path, model, rows) -> None:
    pairs = [
        {"prompt": row["prompt"], "chosen": " I do not know.", "rejected": row["completion"]} for row in task_rows(6)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", pairs)
    out = tune(
        TuneConfig(
            model=model, data=data, out=tmp_path / "out", steps=2, objective="dpo", lora=4, watch_honesty=str(rows),
            watch_every=1, **QUICK,
        )
    )  # fmt: skip
    assert [item["step"] for item in watched(out)["history"]] == [0, 1, 2]


def test_the_watch_changes_no_weight(tmp_path, model, rows) -> None:
    shared = {"model": model, "data": rows, "steps": 3, "learning_rate": 0.01, **QUICK}
    one = tune(TuneConfig(out=tmp_path / "one", **shared))
    two = tune(TuneConfig(out=tmp_path / "two", watch_honesty=str(rows), watch_every=1, **shared))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_training_stops_when_honesty_is_lost_and_the_folder_is_written(tmp_path, model, rows, bluffs) -> None:
    honest = tune(TuneConfig(model=model, data=rows, out=tmp_path / "honest", steps=20, learning_rate=0.01, **QUICK))
    reporter = Reporter()
    out = tune(
        TuneConfig(
            model=honest, data=bluffs, out=tmp_path / "out", steps=60, learning_rate=0.01, watch_honesty=str(rows),
            watch_every=5, watch_stop=10.0, watch_patience=2, **QUICK,
        ),
        reporter,
    )  # fmt: skip
    record = watched(out)
    deltas = [item["refusal_delta"] for item in record["history"]]
    low = [delta < deltas[0] - 0.1 for delta in deltas]
    assert record["stopped_at"] == record["history"][-1]["step"] < 60
    assert low[-2:] == [True, True] and not any(one and two for one, two in itertools.pairwise(low[:-1]))
    losses = json.loads((out / "hcnr_tune.json").read_text())["losses"]
    assert len(losses) == record["stopped_at"]
    assert any(f"training stopped after step {record['stopped_at']} of 60" in text for text in reporter.warnings)
    assert evaluated(out, rows)[0] == deltas[-1]


def test_builtin_questions_are_asked_from_the_command_line(tmp_path, model, rows) -> None:
    out = tmp_path / "out"
    arguments = [str(model), "--data", str(rows), "--out", str(out), "--steps", "2", "--watch-honesty", "builtin",
                 "--watch-every", "1", "--watch-samples", "6", "--watch-max-new-tokens", "4"]  # fmt: skip
    assert main(["tune", *arguments]) == 0
    assert watched(out)["questions"] == 6 and [item["step"] for item in watched(out)["history"]] == [0, 1, 2]


def test_wrong_options_are_refused_before_training(tmp_path, model, rows) -> None:
    with pytest.raises(ValidationError, match="--watch-stop: needs --watch-honesty"):
        TuneConfig(model=model, data=rows, out=tmp_path / "out", watch_stop=5.0)
    one_label = write_rows(tmp_path / "one.jsonl", [{"prompt": "Who?", "answerable": False}])
    config = TuneConfig(model=model, data=rows, out=tmp_path / "out", watch_honesty=str(one_label))
    with pytest.raises(InputError, match=r"--watch-honesty .*one.jsonl: expected answerable and unanswerable"):
        tune(config)
    assert not (tmp_path / "out").exists()
