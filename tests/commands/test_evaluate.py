"""`hcnr evaluate` from the command line: what it writes, what it refuses, how it goes on after a kill."""

import json

import pytest

from hcnr_jax.cli import main
from hcnr_jax.commands import evaluate as module
from hcnr_jax.commands.evaluate import evaluate
from hcnr_jax.config import EvaluateConfig, build
from hcnr_jax.report.console import Reporter
from tests.evaluate.models import choice_values, honesty_values
from tests.tiny import task_rows, write_rows, write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_tiny_model(folder / "model", scale=3.0)
    write_rows(folder / "h.jsonl", honesty_values(12))
    write_rows(folder / "t.jsonl", task_rows(8))
    write_rows(folder / "c.jsonl", choice_values(6))
    return folder


def arguments(place, out, *more):
    sets = ["--honesty", f"kuq={place / 'h.jsonl'}", "--task", f"nq={place / 't.jsonl'}", f"mcq={place / 'c.jsonl'}"]
    return ["evaluate", str(place / "model"), "--out", str(out), "--max-new-tokens", "4", "--draws", "50", *sets, *more]


def refusal(capsys, words):
    assert main(words) == 2
    return capsys.readouterr().err


def test_metrics_and_records(place, tmp_path, capsys):
    out = tmp_path / "m" / "metrics.json"
    assert main(arguments(place, out, "--calibration")) == 0
    found = json.loads(out.read_text())
    assert set(found["honesty"]) == {"kuq"} and set(found["task"]) == {"nq", "mcq", "pooled"}
    assert found["honesty"]["kuq"]["answerable_questions"] == found["honesty"]["kuq"]["unanswerable_questions"] == 6
    assert found["summary"]["honesty_f1"] == found["honesty"]["kuq"]["f1"]
    assert 0 <= found["calibration"]["kuq"]["auroc"] <= 1
    assert len(found["model"]["digest"]) == 64 and found["versions"]["jax"] and found["seconds"]["load"] >= 0
    assert [item["questions"] for item in found["sets"]] == [12, 8, 6]
    records = [json.loads(line) for line in (out.parent / found["records"]).read_text().splitlines()]
    assert [(item["set"], item["line"]) for item in records[:2]] == [("kuq", 1), ("kuq", 2)] and len(records) == 26
    assert found["honesty"]["kuq"]["grades"]["questions"] == 6 and found["task"]["mcq"]["grades"] is None
    assert sum(found["task"]["nq"]["grades"]["counts"].values()) == sum("grade" in r for r in records[12:]) == 8
    assert {item.name for item in out.parent.iterdir()} == {"metrics.json", "metrics.records.jsonl"}
    said = capsys.readouterr().err
    assert "F1" in said and "all task" in said and "26 questions" in said


def test_a_killed_run_goes_on_and_asks_the_rest_alone(place, tmp_path, monkeypatch):
    out = tmp_path / "metrics.json"
    config = build(
        EvaluateConfig,
        {
            "model": str(place / "model"),
            "out": out,
            "honesty": (f"kuq={place / 'h.jsonl'}",),
            "task": (f"nq={place / 't.jsonl'}", f"mcq={place / 'c.jsonl'}"),
            "max_new_tokens": 4,
            "microbatch": 4,
            "draws": 50,
        },
    )
    whole = evaluate(config.model_copy(update={"out": tmp_path / "other.json"}), Reporter())

    class Killed(BaseException):
        pass

    add, count = module.Journal.add, []

    def add_some(self, part, key, value):
        if len(count) == 9:
            raise Killed
        count.append(key)
        add(self, part, key, value)

    monkeypatch.setattr(module.Journal, "add", add_some)
    with pytest.raises(Killed):
        evaluate(config, Reporter())
    unfinished = tmp_path / "metrics.unfinished.jsonl"
    assert not out.exists() and len(unfinished.read_text().splitlines()) == 10
    monkeypatch.setattr(module.Journal, "add", lambda self, *output: (count.append(output[1]), add(self, *output)))
    again = evaluate(config, Reporter())
    assert len(count) == 26 + 6 and not unfinished.exists()
    assert {name: again[name] for name in ("honesty", "task", "summary")} == {
        name: whole[name] for name in ("honesty", "task", "summary")
    }
    records = [(tmp_path / f"{name}.records.jsonl").read_text() for name in ("metrics", "other")]
    assert records[0] == records[1]


def test_another_model_is_compared_on_the_same_questions(place, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert main(arguments(place, first)) == 0
    assert main(arguments(place, second, "--compare", str(first))) == 0
    (other,) = json.loads(second.read_text())["compare"]
    assert json.loads(first.read_text())["compare"] == [] and other["file"] == str(first)
    assert set(other["sets"]["task"]) == {"nq", "mcq", "pooled"}
    assert other["sets"]["honesty"]["kuq"]["refusal_delta"]["value"] == 0.0
    assert f"minus {place / 'model'}" in " ".join(capsys.readouterr().err.split())
    said = refusal(capsys, arguments(place, tmp_path / "third.json", "--samples", "4", "--compare", str(first)))
    assert "more questions were asked there" in said and not list(tmp_path.glob("third*"))


def test_another_runs_remains_are_refused(place, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    begun = tmp_path / "metrics.unfinished.jsonl"
    begun.write_text('{"fingerprint": {"model": "other", "questions": "q"}}\n')
    said = refusal(capsys, arguments(place, out))
    assert "metrics.unfinished.jsonl" in said and "model other there" in said
    assert not out.exists() and begun.exists()


@pytest.mark.parametrize("taken", ["metrics.json", "metrics.records.jsonl"])
def test_nothing_is_overwritten(place, tmp_path, capsys, taken):
    (tmp_path / taken).write_text("mine")
    said = refusal(capsys, arguments(place, tmp_path / "metrics.json"))
    assert taken in said and "nothing is overwritten" in said
    assert (tmp_path / taken).read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "rows", "words"),
    [
        ("--honesty", [{"prompt": "a", "answerable": True}], "--honesty x: expected answerable and unanswerable"),
        ("--honesty", [{"prompt": "a"}], "line 1: field `answerable` is missing"),
        ("--task", [{"prompt": "a", "answers": ["b"]}, {"prompt": "c"}], "line 2: field `answers` or `choices`"),
        ("--task", [{"prompt": "sky " * 130, "answers": ["b"]}], "line 1: the prompt takes 131 tokens"),
    ],
)
def test_bad_rows_are_named(place, tmp_path, capsys, option, rows, words):
    file = write_rows(tmp_path / "x.jsonl", rows)
    out = tmp_path / "m.json"
    said = refusal(capsys, ["evaluate", str(place / "model"), "--out", str(out), option, f"x={file}"])
    assert words in said and not list(tmp_path.glob("m.*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--honesty, --task: expected one set or more"),
        (["--honesty", "=f"], "--honesty =f: expected NAME=FILE"),
        (
            ["--honesty", "kuqq"],
            "kuqq: expected NAME=FILE, such as kuq=data/kuq.jsonl; there is no file kuqq",
        ),
        (["--honesty", "a=none.jsonl"], "none.jsonl: no such file"),
        (["--honesty", "a=H", "a=T"], "the name 'a' is given twice"),
        (["--honesty", "a=H", "--honesty", "b=T"], "--honesty is given 2 times; give all its values after one"),
        (["--honesty", "hotpotqa=missing.json"], "hotpotqa is a task benchmark; give it under --task"),
        (["--samples", "1"], "--samples: expected greater than or equal to 2, got 1"),
    ],
)
def test_wrong_use_is_named(place, tmp_path, capsys, words, message):
    files = {"H": str(place / "h.jsonl"), "T": str(place / "t.jsonl")}
    words = [f"{w.split('=')[0]}={files[w.split('=')[1]]}" if w.split("=")[-1] in files else w for w in words]
    said = refusal(capsys, ["evaluate", str(place / "model"), "--out", str(tmp_path / "m.json"), *words])
    assert message in said


def test_an_adapter_needs_its_base(place, tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    words = ["evaluate", str(tmp_path / "adapter"), "--out", str(tmp_path / "m.json"), "--honesty", "a=b"]
    assert "is a LoRA adapter: name the model it was trained on with --base" in refusal(capsys, words)
    config = {"base_model_name_or_path": str(tmp_path / "gone")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    said = refusal(capsys, words)
    assert "its base cannot be opened" in said and "gone" in said and "with --base" in said


def test_official_files_and_real_questions(real_data, tmp_path):
    """The small real model on questions of official files: readers, templates and scores from end to end."""
    out, data = tmp_path / "m.json", real_data / "data"
    words = [
        "evaluate",
        str(real_data / "models" / "stories260K"),
        "--out",
        str(out),
        "--samples",
        "10",
        "--draws",
        "20",
    ]
    words += ["--max-new-tokens", "8", "--honesty", *(f"{name}={data / name}" for name in ("nec", "selfaware"))]
    assert main([*words, "--task", f"medmcqa={data / 'medmcqa'}", f"bioasq={data / 'bioasq'}"]) == 0
    found = json.loads(out.read_text())
    assert set(found["honesty"]) == {"nec", "selfaware", "pooled"} and found["honesty"]["pooled"]["questions"] == 20
    assert found["task"]["medmcqa"]["choice_accuracy"] == found["task"]["medmcqa"]["accuracy"]
    assert "labelled both ways" in " ".join(found["sets"][0]["notes"])
