"""`hcnr probe` and `hcnr diagnose` from the command line on a pair whose knowledge is known to be there."""

import json
import shutil
from io import StringIO

import pytest
from rich.console import Console

from hcnr_jax.cli import main
from hcnr_jax.commands.diagnose import premise, tell
from hcnr_jax.config import DiagnoseConfig, build
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.report.console import Reporter
from tests.tiny import CONTENT, honesty_rows, task_rows, write_rows, write_tiny_model


def questions(count):
    """Questions whose last word tells whether they are answerable, so that any model's states separate them."""
    return [
        {
            "prompt": f"question : {CONTENT[i % 8]} {CONTENT[8 + i // 8]} {'sky' if i % 2 else 'Mars'}",
            "completion": " city ." if i % 2 else " I don't know.",
            "answerable": bool(i % 2),
            **({"answers": ["city"]} if i % 2 else {}),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    base = write_tiny_model(folder / "base", scale=2.0)
    write_tiny_model(folder / "tuned", base=base, delta=0.05)
    write_tiny_model(folder / "restored", base=base, delta=0.02)
    write_tiny_model(folder / "other", num_hidden_layers=3)
    write_rows(folder / "h.jsonl", questions(64))
    write_rows(folder / "bare.jsonl", [{k: v for k, v in row.items() if k != "answerable"} for row in honesty_rows(30)])
    write_rows(folder / "t.jsonl", task_rows(64))
    return folder


def pair(place, tuned="tuned"):
    return [str(place / "base"), str(place / tuned)]


def test_probes_transfer(place, tmp_path, capsys):
    out = tmp_path / "probe.json"
    words = ["--honesty", f"kuq={place / 'h.jsonl'}", "--out", str(out), "--restored", str(place / "restored")]
    assert main(["probe", *pair(place), *words]) == 0
    found = json.loads(out.read_text())
    assert set(found["auroc"]) == {"base", "tuned", "restored"} and len(found["auroc"]["base"]) == 3
    assert all(found["auroc_best_layer"][name]["value"] > 0.95 for name in found["auroc"])
    assert found["train_questions"] == found["test_questions"] == 32
    said = capsys.readouterr().err
    assert "(chosen)" in said and "chosen layer: base 1.000" in said
    assert main(["probe", *pair(place), *words]) == 2 and "nothing is overwritten" in capsys.readouterr().err


def test_probes_of_another_architecture_are_refused(place, tmp_path, capsys):
    words = ["--honesty", f"kuq={place / 'h.jsonl'}", "--out", str(tmp_path / "p.json")]
    assert main(["probe", *pair(place, "other"), *words]) == 2
    assert "BASE and TUNED are not a pair: num_hidden_layers" in capsys.readouterr().err


def test_too_few_questions_of_a_class_are_named(place, tmp_path, capsys):
    file = write_rows(tmp_path / "few.jsonl", questions(4))
    assert main(["probe", *pair(place), "--honesty", str(file), "--out", str(tmp_path / "p.json")]) == 2
    assert "expected 4 different questions or more of either class" in capsys.readouterr().err


def diagnose(place, out, honesty, *more):
    words = ["diagnose", *pair(place), "--honesty", str(place / honesty), "--task", str(place / "t.jsonl")]
    return main([*words, "--out", str(out), "--max-new-tokens", "3", *more])


def test_a_pair_that_is_well_and_a_restoration_that_is_not(place, tmp_path, capsys):
    out = tmp_path / "d.json"
    assert diagnose(place, out, "h.jsonl", "--samples", "40", "--restored", str(place / "restored")) == 0
    found = json.loads(out.read_text())
    findings = {item["check"]: item for item in found["findings"]}
    assert findings["premise"]["ok"] and findings["premise"]["value"] > 0.95
    assert findings["conditioning of moments"]["ok"] and len(found["moments"]["conditions"]) == 8
    assert len(found["stability_honesty"]["kernels"]) == 14
    for name in ("honesty", "task"):
        assert findings[f"stability of {name} scores"]["value"] > 0.5
        assert -1 <= found[f"stability_{name}"]["all_neurons"] <= 1
    # A random model never refuses: its F1 is 0, which is a warning and no failure.
    assert findings["honesty restored"]["ok"] is False and findings["honesty restored"]["value"] == 0.0
    # Where TUNED answers nothing right, there is no task to keep.
    assert findings["task kept"]["ok"] is None and found["restored"]["tuned"]["task_accuracy"] == 0.0
    said = capsys.readouterr().err
    assert "24 rows that --samples left are asked" in said and "warning: honesty restored: F1" in said
    assert any("honesty restored" in text for text in found["warnings"])


@pytest.mark.parametrize(("file", "found"), [("bare.jsonl", "0 and 0"), ("few.jsonl", "2 and 6")])
def test_rows_without_labels_leave_the_premise_open(place, tmp_path, file, found):
    write_rows(place / "few.jsonl", [row for i, row in enumerate(questions(12)) if i % 2 == 0 or i < 4])
    values = {name: place / name for name in ("base", "tuned")} | {"honesty": place / file, "task": place / "t.jsonl"}
    config = build(DiagnoseConfig, {name: str(path) for name, path in values.items()} | {"out": tmp_path / "d.json"})
    model = open_model(config.base).load()
    finding = premise(config, model, model, reporter=Reporter())[0][0]
    assert finding.ok is None and f"found {found}; add the field" in finding.text
    reporter = Reporter(Console(file=StringIO(), width=100))
    tell([finding], reporter)
    assert "not checked" in reporter.console.file.getvalue() and not reporter.warnings


def test_advice_knows_how_the_model_was_restored(place, tmp_path):
    restored = shutil.copytree(place / "restored", tmp_path / "restored")
    made = {"compensation": "two_sided", "inputs": "propagated", "cross_weight": 1.0, "task_weight": 2.0}
    (restored / "hcnr.json").write_text(json.dumps({"config": made}))
    assert diagnose(place, tmp_path / "d.json", "h.jsonl", "--samples", "40", "--restored", str(restored)) == 0
    findings = {item["check"]: item["text"] for item in json.loads((tmp_path / "d.json").read_text())["findings"]}
    said = findings["honesty restored"]
    assert said.endswith("lower --task-weight (2 was used), see that the premise holds") and "--cross" not in said


def test_what_restore_refuses_diagnose_refuses(place, tmp_path, capsys):
    assert diagnose(place, tmp_path / "d.json", "h.jsonl", "--samples", "400") == 2
    assert "--samples asks for 400 rows, the file has 64" in capsys.readouterr().err
    assert not (tmp_path / "d.json").exists()
