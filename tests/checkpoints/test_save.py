"""Folders out: the bytes that went in, transformers' own reading of them, and nothing half-written."""

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from hcnr_jax.checkpoints import HFTensors, load_params, open_checkpoint, save_like, save_new, tensor_names
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import spec_from_config
from tests.tiny import DTYPES, read_weights, tiny_config, write_tiny_model, write_tiny_tokenizer, write_weights

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "granite"]
FAMILIES += ["phi3", "glm4", "ministral3"]
INDEX = "model.safetensors.index.json"


def spec_of(checkpoint):
    return spec_from_config(checkpoint.config, str(checkpoint.folder))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").float()
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 9, 20, 33], [1, 40, 3, 2, 7]])).logits.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "shards"), [(family, 1 + i % 3) for i, family in enumerate(FAMILIES)])
def test_load_then_save_gives_the_same_bytes(tmp_path, family, shards, dtype):
    source = write_tiny_model(tmp_path / "in", family, dtype=dtype, shards=shards)
    checkpoint = open_checkpoint(source)
    spec = spec_of(checkpoint)
    params = load_params(checkpoint, spec)
    stored = {name: checkpoint.tensors[name].dtype for name in tensor_names(spec)}
    out = save_like(checkpoint, tmp_path / "out", HFTensors(params, spec, stored))
    before, after = files_of(source), files_of(out)
    if shards == 1:
        index = json.loads(after.pop(INDEX))
        assert index["weight_map"] == dict.fromkeys(checkpoint.tensors, "model.safetensors")
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in read_weights(source).values())
    assert after == before


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_what_was_saved(tmp_path, family, tied):
    source = write_tiny_model(tmp_path / "in", family, tie_word_embeddings=tied, shards=2, dtype="bfloat16")
    checkpoint = open_checkpoint(source)
    spec = spec_of(checkpoint)
    params = load_params(checkpoint, spec)
    like = save_like(checkpoint, tmp_path / "like", {})
    new = save_new(tmp_path / "new", params, spec, checkpoint.config, source, "bfloat16", max_shard_bytes=20_000)
    expected = logits(source)
    for out in (like, new):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not any(report.values()) and model.dtype == torch.bfloat16
        np.testing.assert_array_equal(logits(out), expected)
        ids = [transformers.AutoTokenizer.from_pretrained(f)("I do not know")["input_ids"] for f in (source, out)]
        assert ids[0] == ids[1]
        assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == 2


def test_only_what_changed_changes(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "in", shards=2, dtype="float16"))
    name = "model.layers.1.mlp.gate_proj.weight"
    value = np.random.default_rng(0).standard_normal((48, 32)).astype(np.float16)
    out = save_like(checkpoint, tmp_path / "out", {name: value}, {"hcnr.json": b"{}"})
    before, after = read_weights(checkpoint.folder), read_weights(out)
    assert after[name].tobytes() == value.tobytes() and (out / "hcnr.json").read_bytes() == b"{}"
    assert all(after[other].tobytes() == before[other].tobytes() for other in before if other != name)


def test_mixed_dtypes_buffers_and_metadata_are_kept(tmp_path):
    source = write_tiny_model(tmp_path / "in", dtype="bfloat16", tie_word_embeddings=True)
    weights = read_weights(source)
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] = weights[name].astype(np.float32)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.arange(4, dtype=np.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt", "author": "someone", "note": "ü"})
    checkpoint = open_checkpoint(source)
    spec = spec_of(checkpoint)
    stored = {name: checkpoint.tensors[name].dtype for name in tensor_names(spec)}
    out = save_like(checkpoint, tmp_path / "out", HFTensors(load_params(checkpoint, spec), spec, stored))
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


@pytest.mark.parametrize("metadata", [None, {"format": "np", "author": "someone"}])
def test_format_pt_is_ensured(tmp_path, metadata):
    source = write_tiny_model(tmp_path / "in")
    weights = read_weights(source)
    save_file(weights, source / "model.safetensors", metadata=metadata)
    out = save_like(open_checkpoint(source), tmp_path / "out", {})
    shard = open_checkpoint(out).shards[0]
    assert dict(shard.metadata) == {**(metadata or {}), "format": "pt"}
    assert {name: value.tobytes() for name, value in read_weights(out).items()} == {
        name: value.tobytes() for name, value in weights.items()
    }
    logits(out)


def test_saving_twice_does_not_change_a_thing(tmp_path):
    first = save_like(open_checkpoint(write_tiny_model(tmp_path / "in")), tmp_path / "a", {})
    second = save_like(open_checkpoint(first), tmp_path / "b", {})
    assert files_of(first) == files_of(second)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((32, 48), np.float16), r"expected F16 \[48, 32\] as in .*, found F16 \[32, 48\]; cast and orient"),
        (np.zeros((48, 32), np.float32), r"found F32 \[48, 32\]"),
    ],
)
def test_uncast_or_turned_tensors_are_refused(tmp_path, value, message):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "in", dtype="float16"))
    with pytest.raises(InputError, match=message):
        save_like(checkpoint, tmp_path / "out", {"model.layers.0.mlp.up_proj.weight": value})
    with pytest.raises(InputError, match="has no tensor nothing, which was to be replaced"):
        save_like(checkpoint, tmp_path / "out", {"nothing": value})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_inputs_and_full_folders_are_safe(tmp_path):
    source = write_tiny_model(tmp_path / "in")
    base = write_tiny_model(tmp_path / "base", seed=2)
    checkpoint, before = open_checkpoint(source), files_of(tmp_path)
    for out in (source, source / "out", base / "out"):
        with pytest.raises(InputError, match="the input"):
            save_like(checkpoint, out, {}, inputs=[base])
    with pytest.raises(InputError, match="exists and is not empty"):
        save_like(checkpoint, tmp_path, {})
    with pytest.raises(InputError, match="exists and is not empty"):
        save_like(checkpoint, base, {})
    assert files_of(tmp_path) == before


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "in", shards=2))

    class Lazy(Mapping):
        def __iter__(self):
            return iter(["model.norm.weight"])

        def __len__(self):
            return 1

        def __getitem__(self, name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"No space left on device.*nothing is left there; free some space"):
        save_like(checkpoint, tmp_path / "out", Lazy())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_real_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "in"))
    from hcnr_jax.checkpoints import staged_folder, write_like

    with pytest.raises(InputError, match="No space left on device"), staged_folder(tmp_path / "out") as stage:
        (stage / "model.safetensors").symlink_to("/dev/full")
        write_like(checkpoint, stage, {})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_never_more_than_a_tensor_in_memory(tmp_path):
    source = write_tiny_model(
        tmp_path / "in", hidden_size=128, intermediate_size=1024, num_hidden_layers=6, head_dim=32
    )
    checkpoint = open_checkpoint(source)
    spec = spec_of(checkpoint)
    largest = 128 * 1024 * 4
    params = load_params(checkpoint, spec)
    changed = HFTensors(params, spec, {name: "F32" for name, place in tensor_names(spec).items() if place.transpose})
    save_like(checkpoint, tmp_path / "warm", changed)
    for out, tensors, bound in (("copied", {}, 0.5), ("changed", changed, 2.5)):
        tracemalloc.start()
        try:
            save_like(checkpoint, tmp_path / out, tensors)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < bound * largest, (out, peak / largest)


def test_new_folder_single_and_split(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    checkpoint = open_checkpoint(source)
    spec, weights = spec_of(checkpoint), read_weights(source)
    params = load_params(checkpoint, spec)
    config = {key: value for key, value in checkpoint.config.items() if key not in ("architectures", "torch_dtype")}
    one = save_new(tmp_path / "one", params, spec, config, None, "float32")
    assert {path.name for path in one.iterdir()} == {"config.json", "model.safetensors"}
    written = json.loads((one / "config.json").read_text())
    assert written["architectures"] == ["Qwen2ForCausalLM"] and written["torch_dtype"] == "float32"
    many = save_new(tmp_path / "many", params, spec, config | {"dtype": "x"}, source, "float32", max_shard_bytes=9000)
    shards = sorted(path.name for path in many.glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    for shard in open_checkpoint(many).shards:
        assert sum(info.nbytes for info in shard.tensors) <= 9000 or len(shard.tensors) == 1
    assert json.loads((many / "config.json").read_text())["dtype"] == "float32"
    for out in (one, many):
        found = read_weights(out)
        assert set(found) == set(weights)
        assert all(found[name].tobytes() == value.tobytes() for name, value in weights.items())


def test_new_folder_rounds_to_its_dtype(tmp_path):
    source = write_tiny_model(tmp_path / "in")
    checkpoint = open_checkpoint(source)
    spec, params = spec_of(checkpoint), load_params(checkpoint, spec_of(checkpoint))
    for dtype in ("float16", "bfloat16"):
        out = save_new(tmp_path / dtype, params, spec, checkpoint.config, source, dtype)
        for name, value in read_weights(source).items():
            expected = torch.from_numpy(value).to(getattr(torch, dtype)).view(torch.int16).numpy()
            np.testing.assert_array_equal(read_weights(out)[name].view(np.int16), expected)
    with pytest.raises(InputError, match="dtype 'int8' is not one of float32, float16, bfloat16"):
        save_new(tmp_path / "x", params, spec, checkpoint.config, None, "int8")


def test_overflow_and_wrong_trees_are_refused(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "in"))
    spec, params = spec_of(checkpoint), load_params(checkpoint, spec_of(checkpoint))
    big = jax.tree.map(lambda leaf: leaf, params)
    big["final_norm"]["scale"] = params["final_norm"]["scale"] * np.float32(1e6)
    with pytest.raises(InputError, match=r"tensor model.norm.weight has values that overflow F16"):
        save_new(tmp_path / "out", big, spec, checkpoint.config, None, "float16")
    lacking = {key: value for key, value in params.items() if key != "final_norm"}
    with pytest.raises(InputError, match=r"missing \['final_norm/scale'\]"):
        save_new(tmp_path / "out", lacking, spec, checkpoint.config, None)
    turned = {**params, "lm_head": {"kernel": params["lm_head"]["kernel"].T}}
    with pytest.raises(InputError, match=r"lm_head/kernel has shape \(64, 32\), expected \(32, 64\)"):
        save_new(tmp_path / "out", turned, spec, checkpoint.config, None)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_sharded_parameters_are_saved_whole(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "in"))
    spec = spec_of(checkpoint)
    mesh = jax.make_mesh((8,), ("x",))
    where = jax.tree.map(
        lambda leaf: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * (leaf.ndim - 1), "x")),
        load_params(checkpoint, spec),
    )
    params = load_params(checkpoint, spec, where)
    out = save_new(tmp_path / "out", params, spec, checkpoint.config, checkpoint.folder, "float32")
    weights = read_weights(checkpoint.folder)
    assert all(value.tobytes() == weights[name].tobytes() for name, value in read_weights(out).items())


def test_a_folder_that_vllm_style_loaders_read(tmp_path):
    """Loaders that take every *.safetensors must be kept to the index once a patch lies beside the weights."""
    source = write_tiny_model(tmp_path / "in")
    out = save_like(open_checkpoint(source), tmp_path / "out", {}, {"hcnr.patch.safetensors": b"patch"})
    assert set(json.loads((out / INDEX).read_text())["weight_map"].values()) == {"model.safetensors"}
    assert set(open_checkpoint(out).tensors) == set(read_weights(source))


def test_real_checkpoint_round_trip(tmp_path, real_data):
    source = real_data / "models" / "stories260K"
    checkpoint = open_checkpoint(source)
    spec = spec_of(checkpoint)
    stored = {name: checkpoint.tensors[name].dtype for name in tensor_names(spec)}
    out = save_like(checkpoint, tmp_path / "out", HFTensors(load_params(checkpoint, spec), spec, stored))
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_symlinked_inputs_become_files(tmp_path):
    source, blobs = write_tiny_model(tmp_path / "in", shards=2), tmp_path / "blobs"
    blobs.mkdir()
    expected = files_of(source)
    for path in list(source.iterdir()):
        shutil.move(path, blobs / path.name)
        path.symlink_to(blobs / path.name)
    out = save_like(open_checkpoint(source), tmp_path / "out", {})
    assert files_of(out) == expected and not any(path.is_symlink() for path in out.iterdir())


def test_config_of_no_weights_and_tokenizer(tmp_path):
    config = tiny_config("llama")
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "in"))
    tokenizer = write_tiny_tokenizer(tmp_path / "tokenizer", chat_template="{{ messages }}")
    (tokenizer / "notes.md").write_text("x")
    write_weights(tokenizer, {"a": np.zeros(1, np.float32)})
    spec = spec_of(checkpoint)
    out = save_new(tmp_path / "out", load_params(checkpoint, spec), spec, config, tokenizer)
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
