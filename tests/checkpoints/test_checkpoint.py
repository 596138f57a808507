"""Opening folders: what is read, what is left alone, and what is refused."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from hcnr_jax.checkpoints import is_adapter, open_checkpoint, save_like
from hcnr_jax.errors import InputError
from tests.tiny import read_weights, write_tiny_model, write_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path) -> Path:
    return write_tiny_model(tmp_path / "model", shards=3)


def edit_index(folder: Path, **changes: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
def test_opens_what_the_library_reads(tmp_path, shards):
    folder = write_tiny_model(tmp_path / "model", shards=shards, dtype="bfloat16")
    checkpoint = open_checkpoint(folder)
    weights = read_weights(folder)
    assert set(checkpoint.tensors) == set(weights) and len(checkpoint.shards) == shards
    assert checkpoint.config == json.loads((folder / "config.json").read_text())
    for name, expected in weights.items():
        assert checkpoint.read(name).tobytes() == expected.tobytes()
    with pytest.raises(InputError, match="there is no tensor x"):
        checkpoint.read("x")


def test_absent_shard(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"names 3 shards, 1 of them absent: model-00002-of-00003.safetensors"):
        open_checkpoint(sharded)


def test_tensor_of_the_index_that_its_shard_lacks(sharded):
    edit_index(sharded, ghost="model-00001-of-00003.safetensors")
    with pytest.raises(InputError, match=r"says ghost is in model-00001-of-00003.safetensors, which does not hold it"):
        open_checkpoint(sharded)


def test_tensor_that_the_index_does_not_list(sharded):
    index = json.loads((sharded / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"holds tensor model.norm.weight, which .* does not send there"):
        open_checkpoint(sharded)


def test_one_tensor_in_two_shards(sharded):
    weights = read_weights(sharded)
    write_weights(sharded / "part", {"model.norm.weight": weights["model.norm.weight"], "other": np.zeros(1, "f4")})
    (sharded / "part" / "model.safetensors").rename(sharded / "extra.safetensors")
    edit_index(sharded, **{"model.norm.weight": "extra.safetensors", "other": "extra.safetensors"})
    with pytest.raises(InputError, match=r"tensor model.norm.weight is in two shards, .* keep one of them"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "value", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\x.safetensors"]
)
def test_weight_map_may_not_leave_the_folder(sharded, value):
    edit_index(sharded, **{"model.norm.weight": value})
    with pytest.raises(InputError, match=r"weight_map sends model.norm.weight to .*paths are refused"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("value", [3, None, "..", "weights.bin", ""])
def test_weight_map_values_must_be_safetensors_names(sharded, value):
    edit_index(sharded, **{"model.norm.weight": value})
    with pytest.raises(InputError, match="expected the plain name"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "{", "\xff"])
def test_broken_index(sharded, text):
    (sharded / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=INDEX):
        open_checkpoint(sharded)


def test_symlinked_shards_are_followed(sharded, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    expected = read_weights(sharded)
    for i, path in enumerate(sorted(sharded.glob("*.safetensors"))):
        shutil.move(path, blobs / str(i))
        path.symlink_to(blobs / str(i))
    checkpoint = open_checkpoint(sharded)
    assert all(checkpoint.read(name).tobytes() == value.tobytes() for name, value in expected.items())


def test_all_headers_are_checked_before_any_body(sharded, monkeypatch):
    import hcnr_jax.checkpoints.checkpoint as module

    def never(info):
        raise RuntimeError("a body was read")

    monkeypatch.setattr(module, "read_tensor", never)
    last = sharded / "model-00003-of-00003.safetensors"
    last.write_bytes(last.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"model-00003-of-00003.safetensors .*cut short.*7 missing"):
        open_checkpoint(sharded)


def test_only_pickled_weights(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\).*save_pretrained"):
        open_checkpoint(folder)


def test_no_weights_and_shards_without_index(sharded):
    (sharded / INDEX).unlink()
    with pytest.raises(InputError, match=r"found only model-00001-of-00003.safetensors"):
        open_checkpoint(sharded)
    for path in sharded.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match=r"no weights; expected model.safetensors"):
        open_checkpoint(sharded)


def test_not_a_model_folder(tmp_path):
    with pytest.raises(InputError, match=r"no config.json; expected a model folder"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="does not exist; expected a model folder"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; expected a model folder"):
        open_checkpoint(tmp_path / "file")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_adapter(tmp_path)
    with pytest.raises(InputError, match="is a LoRA adapter"):
        open_checkpoint(tmp_path)


def test_broken_config(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    (folder / "config.json").write_text('{"a":\n oops}')
    with pytest.raises(InputError, match=r"config.json: is not JSON \(line 2"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("no route"), r"hub could not be reached .*\(ConnectionError: no route\)"),
        (LocalEntryNotFoundError("not in the cache"), "hub could not be reached"),
        (RepositoryNotFoundError("401", response=SimpleNamespace(headers={}, request=None)), "hub has nothing public"),
        (OSError("odd"), r"hub did not give it \(OSError: odd\)"),
    ],
)  # fmt: skip
def test_hub_name_that_cannot_be_had(monkeypatch, error, words):
    def snapshot_download(name, ignore_patterns):
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s [Retry 1/5].")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with pytest.raises(InputError, match=f"nobody/nothing is not a folder here, and the Hugging Face {words}"):
        open_checkpoint("nobody/nothing")
    assert logged == []


def test_hub_name_is_downloaded_without_pickles(monkeypatch, tmp_path):
    folder = write_tiny_model(tmp_path / "snapshot")
    asked = {}

    def snapshot_download(name, ignore_patterns):
        asked.update(name=name, ignore=ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_checkpoint("org/tiny-model").folder == folder
    assert asked["name"] == "org/tiny-model" and "*.bin" in asked["ignore"]


def test_companions_leave_weights_and_earlier_runs_behind(sharded):
    keep = [
        "README.md",
        "LICENSE",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "tokenizer.model",
    ]
    drop = [
        "notes.md",
        "sub/params.json",
        "custom_code.py",
        "adapter_config.json",
        "training_args.bin",
        "trainer_state.json",
        "rng_state_0.pth",
        "scheduler.pt",
        "pytorch_model_fsdp_0/__0_0.distcp",
        "optimizer_0/__0_0.distcp",
        "global_step10/mp_rank_00_model_states.pt",
        "runs/Nov27/events.out",
        "wandb/run.log",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "optimizer.pt",
        "consolidated.00.pth",
        "flax_model.msgpack",
        "tf_model.h5",
        "hcnr.json",
        "hcnr.patch.safetensors",
        ".git/config",
        ".cache/huggingface/x",
        "checkpoint-100/trainer_state.json",
        "model.gguf",
    ]
    for name in keep + drop:
        (sharded / name).parent.mkdir(parents=True, exist_ok=True)
        (sharded / name).write_text("x")
    checkpoint = open_checkpoint(sharded)
    found = set(checkpoint.companions())
    base = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX}
    assert found == base | set(keep)
    named = {name.split("/")[0] + "/" * ("/" in name) for name in drop if not name.startswith((".", "hcnr"))}
    assert set(checkpoint.leftovers()) == named


def test_whole_weights_win_over_an_adapter_config_left_by_a_merge(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    checkpoint = open_checkpoint(folder)
    assert not is_adapter(folder) and "adapter_config.json" not in checkpoint.companions()
    assert [note for note in checkpoint.notes if "adapter_config.json beside whole weights" in note]


@pytest.mark.parametrize("there", [False, True], ids=["shards gone", "equal shards there"])
def test_a_stale_index_beside_whole_weights(tmp_path, there):
    folder = write_tiny_model(tmp_path / "m")
    weights = read_weights(folder)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = {name: shards[i % 2] for i, name in enumerate(weights)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    if there:
        for shard in shards:
            part = {name: weights[name] for name, file in names.items() if file == shard}
            write_weights(tmp_path / "part", part)
            (tmp_path / "part" / "model.safetensors").rename(folder / shard)
    checkpoint = open_checkpoint(folder)
    assert [shard.name for shard in checkpoint.shards] == ["model.safetensors"] and INDEX not in checkpoint.companions()
    (note,) = checkpoint.notes
    assert f"{INDEX} is stale: model.safetensors is whole and is used, as transformers does; delete the index" in note
    out = save_like(checkpoint, tmp_path / "out", {})
    assert json.loads((out / INDEX).read_text())["weight_map"].keys() == weights.keys()


def test_two_models_in_one_folder_are_refused(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    weights = {name: value + 1 for name, value in read_weights(folder).items()}
    write_weights(tmp_path / "part", weights)
    (tmp_path / "part" / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}))
    with pytest.raises(InputError, match=r"holds two models: model.safetensors and the shards .* differ at .*: delete"):
        open_checkpoint(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_training_wrappers_are_stripped(tmp_path, prefix):
    folder = write_tiny_model(tmp_path / "m")
    weights = read_weights(folder)
    write_weights(folder, {prefix + name: value for name, value in weights.items()})
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.tensors) == set(weights) and "prefixes `module.`" in checkpoint.notes[0]
    out = save_like(checkpoint, tmp_path / "out", {})
    written = read_weights(out)
    assert all(np.array_equal(written[name], weights[name]) for name in weights) and written.keys() == weights.keys()


def test_a_quantization_config_over_plain_tensors_may_go(tmp_path):
    folder = write_tiny_model(tmp_path / "m", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match=r"all 21 tensors are plain F32; remove the key `quantization_config`"):
        open_checkpoint(folder)
