"""`HonestyCallback` in a real Trainer of transformers, and in TRL's SFTTrainer where TRL is installed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from hcnr_jax.data import read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import AnswerSettings, answer, encode_prompts, honesty_metrics
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.integrations.torch_generation import evaluation_mode, greedy_ids
from tests.tiny import honesty_rows, task_rows, write_rows, write_tiny_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
NEW_TOKENS = 8


def test_importing_the_package_does_not_import_pytorch() -> None:
    code = "import sys, hcnr_jax.integrations; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_trainers_process_opens_no_device_of_jax() -> None:
    """JAX would reserve most of a GPU's memory, which the trainer needs."""
    code = """
from jax._src import xla_bridge
from hcnr_jax.integrations import HonestyCallback
from hcnr_jax.integrations.lm_eval import utils
HonestyCallback(samples=4)
document = utils.builtin()["test"][0]
utils.refusal_delta([utils.process_results(document, ["I don't know."])["f1"], (False, not document["answerable"])])
assert not xla_bridge._backends, xla_bridge._backends
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Run these tiny models on one thread, which is faster than several on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture()
def callback_class():
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from hcnr_jax.integrations import HonestyCallback

    return HonestyCallback


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", "llama", attention_dropout=0.2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Six questions that the model learns to refuse, and six that it learns to answer."""
    refused = [row | {"completion": " I do not know."} for row in honesty_rows(6)]  # words that decode as one sentence
    values = refused + [row | {"answerable": True} for row in task_rows(6)]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", values)


def encoded(rows, tokenizer) -> list[dict]:
    examples = []
    for row in read_rows(rows):
        ids = [*tokenizer(row.prompt + row.completion)["input_ids"], tokenizer.eos_token_id]
        pad = 32 - len(ids)
        mask = [1] * len(ids) + [0] * pad
        examples.append({"input_ids": ids + [2] * pad, "attention_mask": mask, "labels": ids + [-100] * pad})
    return examples


def arguments(out, steps: int, **options):
    return transformers.TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=6, report_to=[], use_cpu=True, seed=1,
        disable_tqdm=True, save_strategy="no", **({"learning_rate": 0.01} | options),
    )  # fmt: skip


def trained(folder, rows, out, *, callbacks=(), steps=20, model=None, **options):
    torch.manual_seed(0)
    model = model or transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    trainer = transformers.Trainer(
        model=model, args=arguments(out, steps, **options), train_dataset=encoded(rows, tokenizer),
        processing_class=tokenizer, callbacks=list(callbacks),
        data_collator=transformers.default_data_collator,
    )  # fmt: skip
    return trainer


class Seen(transformers.TrainerCallback):
    """Keeps what a reporting callback gets."""

    def __init__(self) -> None:
        self.logs: list[dict] = []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        self.logs.append({**logs, "step": state.global_step})


def with_delta(logs) -> list[tuple[int, float]]:
    return [(entry["step"], entry["refusal_delta"]) for entry in logs if "refusal_delta" in entry]


def test_a_real_trainer_is_watched_and_trains_as_without(tmp_path, folder, rows, callback_class) -> None:
    callback = callback_class(rows, every=10, max_new_tokens=NEW_TOKENS, batch_size=5)
    later = Seen()
    watched = trained(folder, rows, tmp_path / "a", callbacks=[callback, later], activation_checkpointing=True)
    watched.train()
    assert [item.step for item in callback.history] == [0, 10, 20]
    assert callback.history[-1].refusal_delta > 0.5 > callback.history[0].refusal_delta == 0
    assert with_delta(watched.state.log_history) == [(item.step, item.refusal_delta) for item in callback.history]
    assert with_delta(later.logs) == [(item.step, item.refusal_delta) for item in callback.history[1:]]
    assert watched.model.training and callback.stopped_at is None

    alone = trained(folder, rows, tmp_path / "b", activation_checkpointing=True)
    alone.train()
    for one, two in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, two)  # dropout draws the same numbers, so that no random state was disturbed

    record = json.loads(callback.save(tmp_path / "deep" / "honesty.json").read_text())
    assert record["history"][-1] == callback.history[-1]._asdict() and record["questions"] == 12
    assert callback.plot(tmp_path / "honesty.png").read_bytes().startswith(b"\x89PNG")

    watched.model.config.attention_dropout = 0.0  # which hcnr's decoder does not have
    for part in (watched.model, watched.processing_class):
        part.save_pretrained(tmp_path / "saved")
    model = open_model(str(tmp_path / "saved"))
    prompts = encode_prompts(
        "honesty", "rows", read_rows(rows), tokenizer=model.tokenizer, vocab_size=64, max_tokens=100
    )
    found = answer(model.load(), prompts, AnswerSettings(NEW_TOKENS))
    scores = honesty_metrics([item.verdict for item in found], [item.answerable for item in found])
    assert callback.history[-1][1:] == (scores.refusal_delta, scores.recall, scores.over_refusal)


def test_attached_to_a_trainer_every_reporter_gets_each_measurement_once(tmp_path, folder, rows, callback_class):
    earlier = Seen()
    trainer = trained(folder, rows, tmp_path / "a", callbacks=[earlier], steps=4, logging_steps=2)
    callback = callback_class(rows, every=2, max_new_tokens=NEW_TOKENS).attach(trainer)
    trainer.train()
    assert [step for step, _ in with_delta(earlier.logs)] == [item.step for item in callback.history] == [0, 2, 4]
    assert [entry["step"] for entry in earlier.logs if "loss" in entry] == [2, 4]


def test_an_adapter_of_peft_is_watched(tmp_path, folder, rows, callback_class) -> None:
    peft = pytest.importorskip("peft")
    trainer = trained(folder, rows, tmp_path / "a", steps=20, learning_rate=0.05)
    callback = callback_class(rows, every=20, max_new_tokens=NEW_TOKENS)
    adapted = peft.get_peft_model(trainer.model, peft.LoraConfig(r=8, target_modules="all-linear"))
    trained(folder, rows, tmp_path / "b", model=adapted, callbacks=[callback], learning_rate=0.05).train()
    assert [item.step for item in callback.history] == [0, 20]
    assert callback.history[1].refusal_delta > callback.history[0].refusal_delta == 0


def test_a_resumed_run_keeps_the_first_measurement(tmp_path, folder, rows, callback_class) -> None:
    callback = callback_class(rows, every=2, max_new_tokens=NEW_TOKENS)
    state = transformers.TrainerState(
        global_step=4,
        log_history=[{"step": 0, "refusal_delta": 0.9, "refusal_on_unanswerable": 1.0, "over_refusal": 0.1}],
    )
    trainer = trained(folder, rows, tmp_path / "a")
    callback.on_train_begin(trainer.args, state, transformers.TrainerControl(), trainer.model, trainer.processing_class)
    assert [tuple(item) for item in callback.history] == [(0, 0.9, 1.0, 0.1)]


class Scripted(torch.nn.Module):
    """Answers every unanswerable question as its script says, one entry a measurement: refused or not."""

    def __init__(self, script, tokenizer) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(64, 1)
        self.script, self.asked = script, 0
        self.replies = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the sun", "I do not know.")
        ]

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, labels=None, **_):
        return {"loss": self.embed(input_ids).square().mean()}

    def generate(self, input_ids, **_):
        reply = torch.tensor(self.replies[self.script[self.asked]])
        refuses = (input_ids == 64 - 1).any(dim=1)
        self.asked += 1
        width = max(len(reply) for reply in self.replies)
        out = torch.full((len(input_ids), width), 2)
        out[:, :2] = torch.tensor(self.replies[0])
        out[refuses, :] = 2
        out[refuses, : len(reply)] = reply
        return torch.cat([input_ids, out], dim=1)


@pytest.mark.parametrize("patience", [1, 2])
def test_training_stops_when_the_refusal_delta_has_fallen(tmp_path, folder, callback_class, patience) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    last = tokenizer.convert_ids_to_tokens(63)  # the mark by which the scripted model knows unanswerable questions
    values = [{"prompt": "what is the sky ?", "answerable": True}, {"prompt": f"what is {last} ?", "answerable": False}]
    rows = write_rows(tmp_path / "rows.jsonl", values)
    model = Scripted([1, 1, 0, 0, 0, 0, 0, 0], tokenizer)
    callback = callback_class(rows, every=1, stop_below=0.1, patience=patience, batch_size=2, max_new_tokens=NEW_TOKENS)
    # step 0 and 1: refused; from step 2 on: answered
    trainer = transformers.Trainer(
        model=model, args=arguments(tmp_path / "out", 6), train_dataset=encoded_words(tokenizer),
        processing_class=tokenizer, callbacks=[callback], data_collator=transformers.default_data_collator,
    )  # fmt: skip
    trainer.train()
    expected = 2 + patience - 1
    assert callback.stopped_at == trainer.state.global_step == expected
    assert [item.refusal_delta for item in callback.history] == [1.0, 1.0, *[0.0] * patience]
    assert json.loads(callback.save(tmp_path / "h.json").read_text())["stopped_at"] == expected


def encoded_words(tokenizer) -> list[dict]:
    ids = tokenizer("the sky")["input_ids"]
    return [{"input_ids": ids, "labels": ids}] * 6


def test_generation_leaves_the_model_as_it_was(folder) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    model.model.layers[0].eval()  # a part that its owner keeps in evaluation
    model.config.use_cache = False
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    out = greedy_ids(model, [(1, 5, 9, 20), (1, 7), (1, 30, 31)], (2,), max_new_tokens=5, batch_size=2)
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert model.config.use_cache is False
    assert out == [
        *(greedy_ids(model, [ids], (2,), max_new_tokens=5, batch_size=1)[0] for ids in ((1, 5, 9, 20), (1, 7))),
        greedy_ids(model, [(1, 30, 31)], (2,), max_new_tokens=5, batch_size=1)[0],
    ]
    with pytest.raises(RuntimeError, match="stop"), evaluation_mode(model):
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == modes


def test_sampling_settings_of_the_model_do_not_make_answers_random(folder) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = greedy_ids(model, [(1, 5, 9, 20)], (2,), max_new_tokens=5, batch_size=1)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert greedy_ids(model, [(1, 5, 9, 20)], (2,), max_new_tokens=5, batch_size=1) == plain


@pytest.mark.parametrize(
    ("options", "words"),
    [({"every": 0}, "every"), ({"stop_below": 5.0}, "stop_below"), ({"batch_size": 0}, "batch_size"),
     ({"questions": "nowhere.jsonl"}, "nowhere.jsonl")],
)  # fmt: skip
def test_wrong_settings_are_refused_before_training(callback_class, options, words) -> None:
    with pytest.raises(InputError, match=words):
        callback_class(**options)


def test_a_sharded_model_and_a_missing_tokenizer_are_refused(callback_class) -> None:
    callback = callback_class(samples=4)
    control = transformers.TrainerControl()
    for args, words in ((Args(fsdp="full_shard"), "FSDP"), (Args(fsdp=None), "no tokenizer")):
        with pytest.raises(InputError, match=words):
            callback.on_train_begin(args, transformers.TrainerState(), control)
    with pytest.raises(InputError, match="no measurement to draw"):
        callback.plot("x.png")


class Args:
    def __init__(self, fsdp) -> None:
        self.fsdp = fsdp


def test_trl_trains_and_is_watched(tmp_path, folder, rows, callback_class) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets")
    values = [{"prompt": row.prompt, "completion": row.completion} for row in read_rows(rows)]
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=20, per_device_train_batch_size=6, learning_rate=0.01, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", bf16=False, logging_steps=10, max_length=64,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    trainer = trl.SFTTrainer(
        model=model, args=settings, train_dataset=datasets.Dataset.from_list(values), processing_class=tokenizer
    )
    callback = callback_class(rows, every=10, max_new_tokens=NEW_TOKENS).attach(trainer)
    trainer.train()
    deltas = [item.refusal_delta for item in callback.history]
    assert len(deltas) == 3 and deltas[0] == 0 and deltas[-1] > 0.5
    assert with_delta(trainer.state.log_history) == [(item.step, item.refusal_delta) for item in callback.history]
    assert np.isfinite([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]).all()
