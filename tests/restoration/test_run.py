"""`hcnr restore` and `hcnr apply` as a user runs them: whole runs on tiny folders, held against float64."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

import hcnr_jax.restoration as pipeline
from hcnr_jax.config import ApplyConfig, RestoreConfig
from tests.restoration import reference
from tests.restoration.worlds import (
    CROSS_WEIGHT,
    SAMPLES,
    World,
    call,
    digests,
    kernels_of,
    make_world,
    neurons_of,
    record_of,
    restore,
    same_bytes,
    weights_of,
)
from tests.tiny import CHAT_TEMPLATE, is_kernel, write_rows, write_weights

FILE_ORDER = ("--seed", "none")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """The default method, rows in file order."""
    return restore(world, tmp_path_factory.mktemp("plain") / "out", *FILE_ORDER)


def twin(world: World, out: Path) -> RestoreConfig:
    """What `plain` ran with, from Python."""
    given = {"honesty": world.honesty, "task": world.task, "seed": None}
    usual = {"samples": SAMPLES, "cross_weight": CROSS_WEIGHT}
    return RestoreConfig(base=str(world.base), tuned=str(world.tuned), out=out, **given, **usual)


def as_options(fields: dict) -> list[str]:
    return [str(part) for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", value)]


def relative(found: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(scale))


# ---------------------------------------------------------------- the numbers

CASES = {
    "the default": {"cross_weight": 1.0},
    "fewer kernels": {},
    "plain restoration": {"compensation": "none"},
    "exact, local": {"compensation": "exact", "inputs": "local"},
    "the paper": {"compensation": "paper", "inputs": "local", "priority": "raw"},
    "two-sided, local": {"compensation": "two_sided", "inputs": "local", "task_weight": 0.5},
    "exact, propagated": {"compensation": "exact", "damping": 0.1},
    "scored at base": {"scores_at": "base", "loss": "sum", "compensation": "none"},
    "moments at tuned, no task term": {
        "moments_at": "tuned",
        "priority": "honesty",
        "compensation": "exact",
        "inputs": "local",
    },
    "other ratios": {"in_weight": 0.3, "cross_weight": 0.15, "compensation": "none"},
    "output channels": {"granularity": "output", "compensation": "none"},
    "single weights": {"granularity": "weight", "compensation": "none"},
    "conjugate gradients": {"solver": "cg"},
}


@pytest.mark.parametrize("case", CASES)
def test_against_float64(world, tmp_path, case) -> None:
    options = {"cross_weight": CROSS_WEIGHT} | CASES[case]
    out = restore(world, tmp_path / "out", *FILE_ORDER, *as_options(options))
    expected = reference.restore(world.base, world.tuned, world.honesty, world.task, (SAMPLES, SAMPLES), options)
    lines, found = kernels_of(out), weights_of(out)
    for name, d in expected.d.items():
        assert lines[name]["perturbation"] == pytest.approx(d, rel=1e-5)
    neurons = neurons_of(out)
    assert neurons.keys() == expected.neurons.keys()
    tuned = weights_of(world.tuned)
    for name, weights in expected.weights.items():
        np.testing.assert_array_equal(neurons[name], expected.neurons[name])
        assert relative(found[name], weights, weights) < 1e-5
        assert relative(found[name], weights, weights - tuned[name]) < 1e-4  # of the change, which is the harder test


def test_fewer_tokens_than_restored_inputs(world, tmp_path) -> None:
    """The dual solve, with so few tokens that the moments are singular but for their damping."""
    options = {"compensation": "exact", "inputs": "local", "cross_weight": CROSS_WEIGHT}
    out = restore(world, tmp_path / "out", *FILE_ORDER, "--honesty-samples", 1, *as_options(options))
    assert {line["solve"] for line in kernels_of(out).values() if line["kept"]} == {"dual"}
    expected = reference.restore(world.base, world.tuned, world.honesty, world.task, (1, SAMPLES), options)
    found = weights_of(out)
    for name, weights in expected.weights.items():
        assert relative(found[name], weights, weights) < 1e-5


def test_everything_selected_gives_base_back(world, tmp_path) -> None:
    options = {"in_weight": 1.0, "cross_weight": 1.0, "compensation": "exact", "inputs": "local"}
    out = restore(world, tmp_path / "out", *as_options(options))
    base, tuned, found = (weights_of(folder) for folder in (world.base, world.tuned, out))
    for name in found:
        expected = base[name] if is_kernel(name) else tuned[name]
        np.testing.assert_array_equal(found[name], expected)
    assert all(line["kept"] and line["neurons_restored"] == line["neurons"] for line in kernels_of(out).values())


# ---------------------------------------------------------------- the folder


def test_transformers_loads_and_generates(world, plain) -> None:
    names = {path.name for path in world.tuned.iterdir()}
    added = {"hcnr.json", "hcnr.patch.safetensors", "model.safetensors.index.json", "README.md"}
    assert {path.name for path in plain.iterdir()} == names | added
    model, info = transformers.AutoModelForCausalLM.from_pretrained(plain, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    prompt = tokenizer("question : sky ? answer :", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    stored = weights_of(plain)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), stored[name])


def test_nothing_but_the_restored_rows_changes(world, plain) -> None:
    tuned, found, neurons = weights_of(world.tuned), weights_of(plain), neurons_of(plain)
    assert len(neurons) == round(0.4 * 14)
    for name, weights in found.items():
        others = np.ones(weights.shape[-1], bool)
        others[neurons.get(name, [])] = False
        assert weights[..., others].tobytes() == tuned[name][..., others].tobytes()
        assert (name in neurons) == bool((weights != tuned[name]).any())


def test_the_record(world, plain) -> None:
    record = record_of(plain)
    assert record["config"] == json.loads(twin(world, plain).model_dump_json())
    assert record["unused_options"] == ["refine_solver", "refine_rate", "moments_at"]
    assert record["format"] == 1
    assert record["versions"]["jax"] and record["versions"]["hcnr_jax"] and record["versions"]["python"]
    written = digests(plain)
    assert record["outputs"] == {name: digest for name, digest in written.items() if name != "hcnr.json"}
    for side in ("base", "tuned"):
        files = digests(world.folder / side)
        assert record["inputs"][side] == {name: files[name] for name in record["inputs"][side]}
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(record["inputs"][side])
    rows = digests(world.folder)
    assert record["inputs"]["honesty"] == {"honesty.jsonl": rows["honesty.jsonl"]}
    assert record["inputs"]["task"] == {"task.jsonl": rows["task.jsonl"]}
    assert {"load", "score honesty rows", "score task rows", "correct kernels"} <= set(record["seconds"])


def test_the_record_of_each_kernel(world, plain) -> None:
    lines = kernels_of(plain)
    weights = {name: value for name, value in weights_of(world.tuned).items() if is_kernel(name)}
    assert lines.keys() == weights.keys()
    x = reference.inputs(reference.load(world.base), reference.tokens_of(world.base, world.honesty, SAMPLES))
    base, tuned, found, neurons = weights_of(world.base), weights, weights_of(plain), neurons_of(plain)
    for name, line in lines.items():
        assert line["neurons"] == weights[name].shape[1] and line["kept"] == (name in neurons)
        if not line["kept"]:
            assert line["neurons_restored"] == 0
            continue
        assert line["neurons_restored"] == weights[name].shape[1] // 2 == len(neurons[name])
        assert line["residual"] < 1e-5 and line["condition"] >= 1
        unchanged = tuned[name].copy()
        unchanged[:, neurons[name]] = base[name][:, neurons[name]]
        second = reference.oracle.moment(x[name])
        for key, state in (("tuned", tuned[name]), ("uncompensated", unchanged), ("restored", found[name])):
            expected = reference.oracle.distance(state.astype(np.float64) - base[name], second)
            assert line["d_hon"][key] == pytest.approx(expected, rel=1e-4)
    losses = record_of(plain)["rows"]
    model = reference.load(world.tuned)
    for name, path in (("honesty", world.honesty), ("task", world.task)):
        rows = reference.tokens_of(world.tuned, path, SAMPLES)
        assert losses[name]["count"] == SAMPLES
        assert losses[name]["mean_loss"] == pytest.approx(reference.mean_loss(model, rows), rel=1e-5)


def test_inputs_are_read_and_not_touched(world, tmp_path) -> None:
    before = digests(world.folder)
    restore(world, tmp_path / "out")
    assert digests(world.folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---------------------------------------------------------------- formats

FORMATS = {
    "qwen3, tied, bfloat16, sharded": ("qwen3", "bfloat16", 3, {"tie_word_embeddings": True}, "two_sided"),
}


@pytest.mark.parametrize("case", FORMATS)
def test_sixteen_bits_and_shards(tmp_path, case) -> None:
    family, dtype, shards, config, method = FORMATS[case]
    here = make_world(tmp_path / "in", family, shards, dtype=dtype, num_hidden_layers=1, **config)
    options = {"compensation": method, "inputs": "local", "in_weight": 0.25, "cross_weight": CROSS_WEIGHT}
    out = restore(here, tmp_path / "out", *FILE_ORDER, *as_options(options))
    expected = reference.restore(here.base, here.tuned, here.honesty, here.task, (SAMPLES, SAMPLES), options)
    tuned, found, neurons = weights_of(here.tuned), weights_of(out), neurons_of(out)
    assert {n: (w.dtype, w.shape) for n, w in found.items()} == {n: (w.dtype, w.shape) for n, w in tuned.items()}
    assert "lm_head.weight" not in found or not config
    assert neurons.keys() == expected.neurons.keys()
    step = float(ml_dtypes.finfo(dtype).eps)
    for name, weights in expected.weights.items():
        np.testing.assert_array_equal(neurons[name], expected.neurons[name])
        # One rounding (half a step of the stored dtype) of a result that is exact to float32's 1e-6 of the weights.
        error = 1e-6 * np.abs(weights).max()
        np.testing.assert_allclose(found[name].astype(np.float64), weights, rtol=step, atol=error)
    for path in sorted(here.tuned.glob("*.safetensors")):
        with safe_open(path, "numpy") as ours, safe_open(out / path.name, "numpy") as theirs:
            assert list(ours.keys()) == list(theirs.keys()) and theirs.metadata() == {"format": "pt"}
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    _apply_and_revert(here, out, tmp_path)


def _apply_and_revert(here: World, out, tmp_path) -> None:
    assert call("apply", out / "hcnr.patch.safetensors", here.tuned, "--out", tmp_path / "applied").code == 0
    assert same_bytes(weights_of(tmp_path / "applied"), weights_of(out))
    assert call("apply", out, out, "--revert", "--out", tmp_path / "reverted").code == 0
    assert same_bytes(weights_of(tmp_path / "reverted"), weights_of(here.tuned))
    assert not (tmp_path / "reverted" / "hcnr.json").exists()
    assert not (tmp_path / "reverted" / "README.md").exists(), "the card describes the restored model"


def test_apply_and_revert_and_their_twin(world, plain, tmp_path) -> None:
    _apply_and_revert(world, plain, tmp_path)
    twin = pipeline.apply(ApplyConfig(patch=plain, model=str(world.tuned), out=tmp_path / "twin"))
    assert digests(twin) == digests(tmp_path / "applied")


def write_adapter(folder, base, rank: int = 4) -> dict[str, np.ndarray]:
    """A PEFT LoRA folder of random pairs, written by hand; returns BASE merged with it, in float32."""
    rng = np.random.default_rng(5)
    weights, pairs = weights_of(base), {}
    for name in [name for name in weights if name.split(".")[-2] in ("q_proj", "v_proj", "down_proj")]:
        out, into = weights[name].shape
        a, b = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((rank, into), (out, rank)))
        module = f"base_model.model.{name.removesuffix('.weight')}"
        pairs |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        weights[name] = weights[name].astype(np.float32) + np.float32(8 / rank) * (b @ a)
    folder.mkdir()
    save_file(pairs, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return weights


def test_an_adapter_is_the_float32_model_it_merges_to(tmp_path) -> None:
    world = make_world(tmp_path / "in", dtype="float16")
    adapter, merged, rounded = (tmp_path / name for name in ("adapter", "merged", "rounded"))
    weights = write_adapter(adapter, world.base)
    for folder, kind in ((merged, np.float32), (rounded, np.float16)):
        shutil.copytree(world.base, folder)
        write_weights(folder, {name: value.astype(kind) for name, value in weights.items()})
    here = World(world.folder, world.base, adapter, world.honesty, world.task)
    method = ("--compensation", "exact", "--inputs", "local")
    out = restore(here, tmp_path / "out", *method, "--output", "model")
    whole = restore(World(world.folder, world.base, merged, world.honesty, world.task), tmp_path / "whole", *method)
    # Scores and corrections read the merge in float32. It is rounded once, when the model is written.
    assert same_bytes(weights_of(out), {name: value.astype(np.float16) for name, value in weights_of(whole).items()})
    assert set(record_of(out)["inputs"]["tuned"]) == {"adapter_model.safetensors", "adapter_config.json"}
    transformers.AutoModelForCausalLM.from_pretrained(out)
    assert call("apply", out, rounded, "--out", tmp_path / "applied").code == 0
    assert same_bytes(weights_of(tmp_path / "applied"), weights_of(out))


def test_chat_rows(tmp_path) -> None:
    here = make_world(tmp_path / "in", chat_template=CHAT_TEMPLATE)
    for path in (here.honesty, here.task):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        chat = [
            {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in rows
        ]
        write_rows(path, chat)
    out = restore(here, tmp_path / "out", *FILE_ORDER, "--compensation", "none")
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(here.tuned), reference.load(here.tuned)
    rows = []
    for line in here.honesty.read_text().splitlines()[:SAMPLES]:
        messages = json.loads(line)["messages"]
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        prefix = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        rows.append(reference.Tokens(ids, len(prefix)))
    assert record_of(out)["rows"]["honesty"]["mean_loss"] == pytest.approx(reference.mean_loss(model, rows), rel=1e-5)


# ---------------------------------------------------------------- the same again


def test_same_seed_same_bytes_other_seed_other_rows(world, plain, tmp_path) -> None:
    first, second = (restore(world, tmp_path / name) for name in ("first", "second"))
    left, right = digests(first), digests(second)
    for folder in (left, right):  # both name the output folder
        assert folder.pop("hcnr.json") and folder.pop("README.md")
    assert left == right
    assert not same_bytes(weights_of(first), weights_of(plain))
    assert not same_bytes(weights_of(first), weights_of(restore(world, tmp_path / "third", "--seed", 3)))


def test_the_microbatch_changes_nothing_but_rounding(world, plain, tmp_path) -> None:
    out = restore(world, tmp_path / "out", *FILE_ORDER, "--microbatch", 3)
    expected, found = neurons_of(plain), neurons_of(out)
    assert expected.keys() == found.keys()
    before, after = weights_of(plain), weights_of(out)
    tuned = weights_of(world.tuned)
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
        assert relative(after[name], before[name].astype(np.float64), before[name] - tuned[name]) < 1e-4


def test_the_python_twin_writes_the_same_bytes(world, plain, tmp_path) -> None:
    result = pipeline.restore(twin(world, tmp_path / "twin"))
    assert result.folder == tmp_path / "twin" and result.warnings == [] and result.plan.kept == 6
    left, right = digests(plain), digests(result.folder)
    for folder in (left, right):  # both name the output folder
        assert folder.pop("hcnr.json") and folder.pop("README.md")
    assert left == right


def test_yaml_first_options_override(world, tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"compensation": "none", "in_weight": 0.25, "seed": None, "samples": SAMPLES}))
    restore(world, tmp_path / "out", "--config", file, "--in-weight", 0.75)
    config = record_of(tmp_path / "out")["config"]
    assert (config["compensation"], config["in_weight"], config["seed"]) == ("none", 0.75, None)
    assert {line["neurons_restored"] for line in kernels_of(tmp_path / "out").values() if line["kept"]} <= {24, 36}
    file.write_text("in_wieght: 0.25\n")
    ended = call(*world.arguments("--out", tmp_path / "none", "--config", file))
    assert ended.code == 2 and "unknown key 'in_wieght'; did you mean 'in_weight'?" in ended.err


def test_dry_run_says_the_plan_and_writes_nothing(world, tmp_path) -> None:
    ended = call(*world.arguments("--out", tmp_path / "deep" / "out", "--dry-run"))
    assert ended.code == 0 and list(tmp_path.iterdir()) == []
    for words in ("6 of 14 kept", "down 24 of 48", "8 rows x 24 tokens", "memory", "dry run: nothing was written"):
        assert words in ended.err
    assert call(*world.arguments("--out", tmp_path / "out", "--dry-run", "--in-weight", 0.001)).code == 2


def test_unused_options_are_taken_and_said(world, tmp_path) -> None:
    ended = call(
        *world.arguments("--out", tmp_path / "out", "--compensation", "none", "--task-weight", 3, "--solver", "cg")
    )
    assert ended.code == 0
    unused = record_of(tmp_path / "out")["unused_options"]
    plain = ["refine_solver", "refine_rate", "moments_at"]  # at their defaults, which nobody believes to count
    assert set(unused) == {"task_weight", "inputs", "solver", "damping", *plain}
    said = [name for name in unused if f"not used with these settings: --{name.replace('_', '-')}" in ended.err]
    assert said == ["task_weight", "solver"]


# ---------------------------------------------------------------- as a process


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hcnr_jax.cli", *arguments]
    # Tests started in the background of a shell ignore Ctrl-C, and so would the process; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def test_as_a_process(world, tmp_path) -> None:
    process = start(*world.arguments("--out", tmp_path / "out", "--compensation", "none"))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and out == "" and f"restored model: {tmp_path / 'out'}" in err
    assert (tmp_path / "out" / "hcnr.json").is_file()


def test_ctrl_c_leaves_nothing(world, tmp_path) -> None:
    process = start(*world.arguments("--out", tmp_path / "out", "--solver", "cg"))
    for line in process.stderr:
        if line.startswith("load"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "hcnr restore: stopped by Ctrl-C" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_restored_model_can_be_restored_again(world, plain, tmp_path) -> None:
    """Its record and patch speak of other weights, and are made anew."""
    again = World(world.folder, world.base, plain, world.honesty, world.task)
    out = restore(again, tmp_path / "out", "--compensation", "none")
    assert call("apply", out, plain, "--out", tmp_path / "applied").code == 0
    assert same_bytes(weights_of(tmp_path / "applied"), weights_of(out))
