"""Patches: applied they give the restored bytes, reverted TUNED's, and any other model is refused by name."""

import hashlib
import json

import numpy as np
import pytest

from hcnr_jax.checkpoints import (
    apply_patch,
    model_digest,
    open_checkpoint,
    save_like,
    sha256_file,
    sha256_files,
    tensor_digest,
    tensor_digests,
    write_patch,
)
from hcnr_jax.errors import InputError, RunError
from tests.tiny import is_kernel, read_weights, write_tiny_model, write_weights

PATCH = "hcnr.patch.safetensors"


def restore(checkpoint, granularity, seed=0):
    """(changed tensors, neuron indices): some neurons of every second kernel set to other values, none of the last."""
    rng = np.random.default_rng(seed)
    changed, neurons = {}, {}
    names = [name for name in checkpoint.tensors if is_kernel(name)][::2]
    for name in names:
        value = checkpoint.read(name).copy()
        size = {"input": value.shape[1], "output": value.shape[0], "weight": value.size}[granularity]
        index = np.sort(rng.choice(size, 0 if name == names[-1] else size // 3, replace=False))
        if granularity == "input":
            value[:, index] = rng.standard_normal((value.shape[0], index.size)).astype(value.dtype)
        elif granularity == "output":
            value[index] = rng.standard_normal((index.size, value.shape[1])).astype(value.dtype)
        else:
            value.reshape(-1)[index] = rng.standard_normal(index.size).astype(value.dtype)
        changed[name], neurons[name] = value, index
    return changed, neurons


def make(tmp_path, granularity="input", **model):
    """Folders tuned and restored, the patch beside them, and what write_patch returned."""
    tuned = open_checkpoint(write_tiny_model(tmp_path / "tuned", **model))
    changed, neurons = restore(tuned, granularity)
    digests = write_patch(tmp_path / PATCH, tuned, changed, neurons, granularity)
    save_like(tuned, tmp_path / "restored", changed)
    return digests


def weights_of(folder):
    return {name: (str(v.dtype), v.shape, v.tobytes()) for name, v in read_weights(folder).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("granularity", ["input", "output", "weight"])
def test_apply_and_revert(tmp_path, granularity, dtype):
    digests = make(tmp_path, granularity, dtype=dtype, shards=2)
    assert digests == tensor_digests(open_checkpoint(tmp_path / "restored"))
    applied = apply_patch(tmp_path / PATCH, tmp_path / "tuned", tmp_path / "applied")
    assert weights_of(applied) == weights_of(tmp_path / "restored") != weights_of(tmp_path / "tuned")
    reverted = apply_patch(tmp_path / PATCH, applied, tmp_path / "reverted", revert=True)
    assert weights_of(reverted) == weights_of(tmp_path / "tuned")
    for file in (tmp_path / "tuned").iterdir():
        assert (reverted / file.name).read_bytes() == file.read_bytes()


def test_it_holds_only_the_restored_neurons(tmp_path):
    make(tmp_path)
    tensors = {info.name: info for info in open_as_shard(tmp_path / PATCH).tensors}
    tuned, restored = read_weights(tmp_path / "tuned"), read_weights(tmp_path / "restored")
    assert len(tensors) == 2 * sum(is_kernel(name) for name in tuned) / 2
    name = "model.layers.0.mlp.down_proj.weight"
    index = np.flatnonzero((tuned[name] != restored[name]).any(0))
    from hcnr_jax.checkpoints.safetensors_file import read_tensor

    np.testing.assert_array_equal(read_tensor(tensors[f"{name}.neurons"]), index)
    xor = (tuned[name].view(np.uint32) ^ restored[name].view(np.uint32))[:, index].T
    np.testing.assert_array_equal(read_tensor(tensors[f"{name}.xor"]), xor)


def open_as_shard(path):
    from hcnr_jax.checkpoints.safetensors_file import read_header

    return read_header(path)


def test_digests_are_those_of_hashlib(tmp_path):
    digests = make(tmp_path)
    weights = read_weights(tmp_path / "restored")
    assert digests == {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in weights.items()}
    table = json.loads(open_as_shard(tmp_path / PATCH).metadata["hcnr_patch"])
    before = {name: tensor_digest(value) for name, value in read_weights(tmp_path / "tuned").items()}
    assert table["tuned"] == {"digest": model_digest(before), "tensors": before}
    assert table["restored"]["digest"] == model_digest(digests)
    lines = "".join(f"{name} {before[name]}\n" for name in sorted(before))
    assert model_digest(before) == hashlib.sha256(lines.encode()).hexdigest()


def test_another_model_is_refused_by_its_first_tensor(tmp_path):
    make(tmp_path)
    other = write_tiny_model(tmp_path / "other")
    weights = read_weights(other)
    name = "model.layers.1.self_attn.o_proj.weight"
    weights[name].view(np.uint32)[0, 0] ^= 1
    write_weights(other, weights)
    with pytest.raises(InputError, match=rf"made for another model: tensor {name} of .*\(1 of 21 tensors differ\)"):
        apply_patch(tmp_path / PATCH, other, tmp_path / "out")
    deeper = write_tiny_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"made for another model: .*deeper has in excess tensor model.layers.2."):
        apply_patch(tmp_path / PATCH, deeper, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_wrong_direction_is_named(tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match=r"restored is already the restored model of .*; with --revert"):
        apply_patch(tmp_path / PATCH, tmp_path / "restored", tmp_path / "out")
    with pytest.raises(InputError, match=r"tuned is already TUNED of .*; without --revert"):
        apply_patch(tmp_path / PATCH, tmp_path / "tuned", tmp_path / "out", revert=True)


def test_what_is_no_patch_or_no_whole_model_is_told_what_to_do(tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match=r"PATCH .*absent: there is no such file; expected hcnr.patch.safetensors"):
        apply_patch(tmp_path / "absent", tmp_path / "tuned", tmp_path / "out")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"MODEL .*adapter is a LoRA adapter; .* --revert on it gives"):
        apply_patch(tmp_path / PATCH, tmp_path / "adapter", tmp_path / "out")


def test_the_output_is_kept_clear_of_the_inputs(tmp_path):
    make(tmp_path)
    before = weights_of(tmp_path / "tuned")
    with pytest.raises(InputError, match="the input"):
        apply_patch(tmp_path / PATCH, tmp_path / "tuned", tmp_path / "tuned")
    assert weights_of(tmp_path / "tuned") == before


def test_a_damaged_patch(tmp_path):
    make(tmp_path)
    good = (tmp_path / PATCH).read_bytes()
    info = next(info for info in open_as_shard(tmp_path / PATCH).tensors if info.name.endswith("up_proj.weight.xor"))
    kernel = info.name.removesuffix(".xor")
    (tmp_path / PATCH).write_bytes(good[: info.start] + bytes([good[info.start] ^ 1]) + good[info.start + 1 :])
    with pytest.raises(InputError, match=rf"the rows for {kernel} are damaged"):
        apply_patch(tmp_path / PATCH, tmp_path / "tuned", tmp_path / "out")
    (tmp_path / PATCH).write_bytes(good.replace(b'input\\"', b'outpu\\"'))
    with pytest.raises(InputError, match="granularity 'outpu' is not known"):
        apply_patch(tmp_path / PATCH, tmp_path / "tuned", tmp_path / "out")
    at = good.index(b'embed_tokens.weight\\":\\"') + 30
    (tmp_path / PATCH).write_bytes(good[:at] + (b"0" if good[at : at + 1] != b"0" else b"1") + good[at + 1 :])
    with pytest.raises(InputError, match="its metadata are damaged"):
        apply_patch(tmp_path / PATCH, tmp_path / "tuned", tmp_path / "out")
    (tmp_path / PATCH).write_bytes(good[:-1])
    with pytest.raises(InputError, match="cut short"):
        apply_patch(tmp_path / PATCH, tmp_path / "tuned", tmp_path / "out")
    with pytest.raises(InputError, match="is not a patch that `hcnr restore` wrote"):
        apply_patch(tmp_path / "tuned" / "model.safetensors", tmp_path / "tuned", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_changes_outside_the_neurons_cannot_be_written(tmp_path):
    tuned = open_checkpoint(write_tiny_model(tmp_path / "tuned"))
    changed, neurons = restore(tuned, "input")
    name = next(iter(changed))
    with pytest.raises(RunError, match=f"tensor {name} differs from TUNED outside its restored neurons"):
        write_patch(tmp_path / PATCH, tuned, changed, neurons | {name: neurons[name][1:]})
    with pytest.raises(InputError, match="do not name the same kernels"):
        write_patch(tmp_path / PATCH, tuned, changed, {})


def test_no_kernel_at_all(tmp_path):
    tuned = open_checkpoint(write_tiny_model(tmp_path / "tuned"))
    write_patch(tmp_path / PATCH, tuned, {}, {}, digests=tensor_digests(tuned))
    out = apply_patch(tmp_path / PATCH, tuned, tmp_path / "out")
    assert weights_of(out) == weights_of(tmp_path / "tuned")


def test_files_are_hashed(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in (("a", b"abc"), ("b", b""))}
    assert sha256_files([tmp_path / "a", tmp_path / "b"]) == expected
    assert sha256_file(tmp_path / "a") == expected["a"]
    with pytest.raises(InputError, match="c: cannot be read"):
        sha256_file(tmp_path / "c")
