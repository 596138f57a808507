"""A LoRA adapter in, a LoRA adapter out: what `hcnr restore` writes loads in PEFT and merges to the restored model."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.checkpoints.test_lora import ALL, edit_config, write_adapter
from tests.checkpoints.test_lora import edit_weights as edit_adapter
from tests.restoration.worlds import (
    World,
    call,
    edit_weights,
    make_world,
    record_of,
    refused,
    restore,
    text_of,
    weights_of,
)

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

METHODS = {
    "none": ("--compensation", "none"),
    "paper": ("--compensation", "paper", "--inputs", "local", "--priority", "raw"),
    "exact": ("--compensation", "exact", "--inputs", "local"),
    "two_sided": ("--compensation", "two_sided", "--inputs", "local"),
}


def adapted_world(folder, family="llama", **options) -> World:
    world = make_world(folder, family)
    write_adapter(world.base, folder / "adapter", **{"target_modules": ALL} | options)
    return World(folder, world.base, folder / "adapter", world.honesty, world.task)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return adapted_world(tmp_path_factory.mktemp("adapter"))


def merged(base, adapter) -> dict[str, np.ndarray]:
    """The tensors of PEFT's own merge, after the adapter has generated text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter)
    made = model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
    assert made.shape[0] == 1
    return {name: value.detach().numpy() for name, value in model.merge_and_unload().state_dict().items()}


def check_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        assert error <= 1e-5, (name, error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_adapter_merges_to_the_restored_model(tmp_path, family, method) -> None:
    world = adapted_world(tmp_path / "in", family)
    out = restore(world, tmp_path / "out", *METHODS[method])
    whole = restore(world, tmp_path / "whole", *METHODS[method], "--output", "model")
    assert {path.name for path in out.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "hcnr.json"}
    assert not list(out.glob("model*"))
    check_same(merged(world.base, out), weights_of(whole))
    # B and the columns of the other neurons are as they were, bit for bit.
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (world.tuned, out))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before if "lora_B" in name)
    assert any(before[name].tobytes() != after[name].tobytes() for name in before if "lora_A" in name)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "down_proj": 8}},
        {"target_modules": ["q_proj", "down_proj"]},
        {"bias": "all"},
    ],
)
def test_kinds_of_adapters(tmp_path, options) -> None:
    family = "qwen2" if "bias" in options else "llama"
    world = adapted_world(tmp_path / "in", family, **options)
    out = restore(world, tmp_path / "out", *METHODS["two_sided"])
    whole = restore(world, tmp_path / "whole", *METHODS["two_sided"], "--output", "model")
    check_same(merged(world.base, out), weights_of(whole))


def test_a_kernel_whose_b_is_zero_stays(tmp_path) -> None:
    world = adapted_world(tmp_path / "in")

    def clear(weights) -> None:
        for name in weights:
            if "lora_B" in name and "q_proj" in name:
                weights[name] = np.zeros_like(weights[name])

    edit_adapter(world.tuned, clear)
    out = restore(world, tmp_path / "out")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (world.tuned, out))
    assert all(before[name].tobytes() == after[name].tobytes() for name in before if "q_proj" in name)
    assert not any(line["kept"] for line in record_of(out)["kernels"] if "q_proj" in line["tensor"])


def test_apply_and_revert(world, tmp_path) -> None:
    out = restore(world, tmp_path / "out")
    again, back = tmp_path / "again", tmp_path / "back"
    assert call("apply", out, world.tuned, "--out", again).code == 0
    assert call("apply", out, out, "--revert", "--out", back).code == 0
    for left, right in ((again, out), (back, world.tuned)):
        name = "adapter_model.safetensors"
        found, expected = load_file(left / name), load_file(right / name)
        assert found.keys() == expected.keys()
        assert all(found[key].tobytes() == expected[key].tobytes() for key in found)
        assert json.loads((left / "adapter_config.json").read_text()) == json.loads(
            (right / "adapter_config.json").read_text()
        )
    assert "the patch was made for a LoRA adapter" in text_of(call("apply", out, world.base, "--out", again).err)


@pytest.mark.parametrize("options", [("--stream",), ("--mesh", "data=1")])
def test_streamed_and_on_a_mesh(world, tmp_path, options) -> None:
    plain = restore(world, tmp_path / "plain")
    other = restore(world, tmp_path / "other", *options)
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (other, plain))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max(), err_msg=name)


def test_refused_by_name(world, tmp_path) -> None:
    whole = make_world(tmp_path / "whole")
    assert "is a whole model, not a LoRA adapter (--rank N makes" in text_of(refused(whole, "--output", "adapter"))
    dora = adapted_world(tmp_path / "dora", use_dora=True)
    assert "is a DoRA adapter" in text_of(refused(dora, "--output", "adapter"))
    output = ("--granularity", "output", "--compensation", "none")
    assert "--output adapter goes with --granularity input" in text_of(refused(world, "--output", "adapter", *output))
    # Without --output a whole model is written, and the plan says why.
    said = call(*dora.arguments("--out", tmp_path / "out")).err
    assert "a whole model:" in text_of(said) and "is a DoRA adapter" in text_of(said)
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("folder", ["adapter", "model"])
def test_steps_towards_two_teachers(world, tmp_path, folder) -> None:
    out = restore(world, tmp_path / "out", "--refine", 6, "--refine-solver", "adamw", "--output", folder)
    steps = record_of(out)["refine"]
    judged = [line for line in steps if "step" in line]
    kept = next(line["kept_step"] for line in steps if "kept_step" in line)

    def total(line) -> float:
        return line["honesty_kl"] + 2 * line["task_kl"]

    assert total(next(line for line in judged if line["step"] == kept)) == min(map(total, judged))
    if folder == "adapter":
        merged(world.base, out)
    else:
        transformers.AutoModelForCausalLM.from_pretrained(out)
    back = tmp_path / "back"
    assert call("apply", out, out, "--revert", "--out", back).code == 0


def test_gauss_newton_moves_whole_weights_alone(world) -> None:
    said = refused(world, "--refine", 1, "--refine-solver", "gauss_newton", "--output", "adapter")
    assert "which an adapter does not hold" in text_of(said)


def test_names_of_a_training_wrapper_are_left_out(tmp_path) -> None:
    world = adapted_world(tmp_path / "in")
    edit_adapter(world.tuned, lambda weights: weights.update({f"_orig_mod.{n}": weights.pop(n) for n in list(weights)}))
    out = restore(world, tmp_path / "out")
    assert all(name.startswith("base_model.model.") for name in load_file(out / "adapter_model.safetensors"))
    merged(world.base, out)


def test_the_base_in_16_bits_rounds_nothing_away(tmp_path) -> None:
    world = make_world(tmp_path / "in", dtype="bfloat16")
    write_adapter(world.base, tmp_path / "in" / "adapter", scale=0.001)
    edit_config(tmp_path / "in" / "adapter", base_model_name_or_path=str(world.base))
    run = World(world.folder, world.base, tmp_path / "in" / "adapter", world.honesty, world.task)
    ended = call(*run.arguments("--out", tmp_path / "out"))
    assert ended.code == 0 and "in 16-bit storage" not in text_of(ended.err)


def test_a_whole_model_as_an_adapter_of_limited_rank(tmp_path) -> None:
    world = make_world(tmp_path / "in")
    whole = weights_of(restore(world, tmp_path / "whole"))
    full, half = (restore(world, tmp_path / str(rank), "--output", "adapter", "--rank", rank) for rank in (32, 16))
    check_same(merged(world.base, full), whole)
    lost = record_of(half)["truncation"]["lost"]
    base, found = weights_of(world.base), merged(world.base, half)
    kernels = [name for name in base if "_proj" in name]
    left = sum(np.square(found[name] - whole[name]).sum() for name in kernels)
    assert lost == pytest.approx(left / sum(np.square(whole[name] - base[name]).sum() for name in kernels), rel=1e-3)
    assert 0 < lost < 0.5 and not (half / "hcnr.patch.safetensors").exists()


def test_what_an_adapter_does_not_hold_is_named(tmp_path) -> None:
    world = make_world(tmp_path / "in")
    edit_weights(world.tuned, lambda weights: weights.update({"model.norm.weight": weights["model.norm.weight"] + 1}))
    ended = call(*world.arguments("--out", tmp_path / "out", "--output", "adapter", "--rank", 4))
    assert ended.code == 0 and "such as model.norm.weight" in text_of(ended.err)
    assert "--rank goes with --output adapter" in text_of(refused(world, "--rank", 4))
