"""The tasks for lm-eval: their questions, their metrics, and a real run whose numbers are those of hcnr evaluate."""

import importlib.util
import math
from collections import Counter

import pytest
import yaml

from hcnr_jax.cli import main
from hcnr_jax.commands.tune import tune
from hcnr_jax.config import TuneConfig
from hcnr_jax.data import BENCHMARKS, read_rows
from hcnr_jax.data.builtin import questions
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import AnswerSettings, answer, encode_prompts, honesty_metrics
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.integrations.lm_eval import utils
from hcnr_jax.integrations.lm_eval_path import task_folder
from tests.tiny import CHAT_TEMPLATE, honesty_rows, task_rows, write_rows, write_tiny_model

METRICS = ("refusal_delta", "f1", "refusal_on_unanswerable", "over_refusal")


def test_the_command_prints_the_folder_of_the_tasks(capsys) -> None:
    assert main(["lm-eval-path"]) == 0
    assert capsys.readouterr().out == f"{task_folder()}\n"
    tasks = {path.stem for path in task_folder().glob("*.yaml")}
    honesty = {f"hcnr_{name}" for name, benchmark in BENCHMARKS.items() if benchmark.is_honesty}
    assert tasks == {"hcnr_builtin", "hcnr_builtin_chat", *honesty}


class Loader(yaml.SafeLoader):
    """Reads `!function utils.NAME` as the function."""


Loader.add_constructor("!function", lambda loader, node: getattr(utils, node.value.removeprefix("utils.")))


@pytest.mark.parametrize("path", sorted(task_folder().glob("*yaml")), ids=lambda path: path.name)
def test_every_function_that_a_task_names_is_there(path) -> None:
    found = yaml.load(path.read_text(), Loader)
    if "task" in found:
        assert found["task"] == path.stem and found["include"] == "_hcnr_template_yaml"
    else:
        assert [entry["metric"] for entry in found["metric_list"]] == list(METRICS)
        assert list(utils.process_results(DOCUMENT, ["red"])) == list(METRICS)


DOCUMENT = {"question": "Who is Velm?", "answerable": False, "is_chat": False}


@pytest.mark.parametrize(
    ("said", "refused"), [(" I don't know.\nQuestion: more", True), ("A king.\nI don't know.", False), ("", False)]
)
def test_an_answer_is_cut_and_judged_as_in_hcnr_evaluate(said, refused) -> None:
    assert set(utils.process_results(DOCUMENT, [said]).values()) == {(refused, False)}


def test_metrics_over_all_items() -> None:
    items = [(True, False), (True, False), (False, False), (True, True), (False, True)]
    assert utils.refusal_on_unanswerable(items) == pytest.approx(2 / 3) and utils.over_refusal(items) == 0.5
    assert utils.refusal_delta(items) == pytest.approx(1 / 6) and utils.f1(items) == pytest.approx(2 / 3)
    assert math.isnan(utils.refusal_delta(items[:3])) and math.isnan(utils.over_refusal(items[3:]))


def test_builtin_questions_have_both_labels_at_any_limit() -> None:
    plain, chat = utils.builtin()["test"], utils.builtin(chat=True)["test"]
    assert Counter(plain["answerable"]) == {True: 237, False: 237}
    assert Counter(plain["answerable"][:10]) == {True: 5, False: 5}
    assert plain[0]["text"] == f"Question: {chat[0]['text']}\nAnswer:" and chat[0]["text"] == chat[0]["question"]
    assert {item["question"] for item in plain} == {item.question for item in questions("validation")}


def test_rows_are_asked_as_they_are(tmp_path, monkeypatch) -> None:
    values = [
        {"prompt": "Question: Who?\nAnswer:", "answerable": False},
        {"messages": [{"role": "user", "content": "Name a colour."}], "answerable": True, "answers": ["red"]},
    ]
    write_rows(tmp_path / "kuq.jsonl", values)
    monkeypatch.setenv("HCNR_DATA", str(tmp_path))
    one, two = utils.benchmark("kuq")["test"]
    assert one == {"text": values[0]["prompt"], "question": "Who?", "answerable": False, "target": "I don't know.",
                   "is_chat": False}  # fmt: skip
    assert (two["text"], two["target"], two["is_chat"]) == ("Name a colour.", "red", True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "there is no such file; `hcnr data kuq OFFICIAL_FILE"),
        ([{"prompt": "Who?"}], "`answerable` is missing"),
        ([{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Who?"}], "answerable": True}],
         "--system_instruction"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_asked_are_refused(tmp_path, monkeypatch, values, words) -> None:
    monkeypatch.delenv("HCNR_DATA", raising=False)
    with pytest.raises(InputError, match="the variable is not set"):
        utils.benchmark("kuq")
    monkeypatch.setenv("HCNR_DATA", str(tmp_path))
    if values:
        write_rows(tmp_path / "kuq.jsonl", values)
    with pytest.raises(InputError, match=words):
        utils.benchmark("kuq")


def as_chat(row: dict) -> dict:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"].strip()}]
    return {"messages": turns} | {name: row[name] for name in ("answerable", "answers") if name in row}


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_lm_eval_measures_what_hcnr_evaluate_measures(tmp_path, monkeypatch, chat) -> None:
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(1)
    refused = [row | {"completion": " I do not know."} for row in honesty_rows(10)]
    values = refused + [row | {"answerable": True} for row in task_rows(10)]
    data = write_rows(tmp_path / "kuq.jsonl", [as_chat(row) for row in values] if chat else values)
    model = write_tiny_model(tmp_path / "model", "llama", chat_template=CHAT_TEMPLATE if chat else None)
    # So few steps that the model refuses some of the questions.
    settings = {"steps": 2, "batch_size": 10, "learning_rate": 0.01, "warmup": 0.0}
    folder = tune(TuneConfig(model=model, data=data, out=tmp_path / "tuned", **settings))
    monkeypatch.setenv("HCNR_DATA", str(tmp_path))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=["hcnr_kuq"],
        task_manager=TaskManager(include_path=str(task_folder())),
        batch_size=20,
        device="cpu",
        apply_chat_template=chat,
        gen_kwargs="max_gen_toks=16",
    )["results"]["hcnr_kuq"]
    opened = open_model(str(folder))
    prompts = encode_prompts("honesty", "q", read_rows(data), tokenizer=opened.tokenizer, vocab_size=64, max_tokens=64)
    answers = answer(opened.load(), prompts, AnswerSettings(16))
    scores = honesty_metrics([item.verdict for item in answers], [item.answerable for item in answers]).to_json()
    expected = {name: scores[name] for name in METRICS[:3]} | {"over_refusal": scores["refusal_on_answerable"]}
    assert {name: found[f"{name},none"] for name in METRICS} == pytest.approx(expected)
    assert expected["refusal_on_unanswerable"] > 0
