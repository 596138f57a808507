"""Checkpoints into parameter trees: right values, right dtypes, once read, and refused when they do not fit."""

import tracemalloc

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hcnr_jax.checkpoints import Checkpoint, check_finite, load_params, open_checkpoint, read_leaf, tensor_names
from hcnr_jax.checkpoints.load import transpose_into
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import spec_from_config
from tests.tiny import DTYPES, read_weights, write_tiny_model, write_weights

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "granite"]
FAMILIES += ["phi3", "glm4", "ministral3"]


def spec_of(checkpoint):
    return spec_from_config(checkpoint.config, str(checkpoint.folder))


def load(folder, **kwargs):
    checkpoint = open_checkpoint(folder)
    return load_params(checkpoint, spec_of(checkpoint), **kwargs)


def leaf_at(params, path):
    for key in path.split("/"):
        params = params[key]
    return params


def rewrite(folder, change):
    weights = read_weights(folder)
    change(weights)
    write_weights(folder, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_lands_in_its_place(tmp_path, family, dtype):
    folder = write_tiny_model(tmp_path / "m", family, dtype=dtype, shards=2)
    checkpoint, weights = open_checkpoint(folder), read_weights(folder)
    spec = spec_of(checkpoint)
    params = load_params(checkpoint, spec)
    for name, place in tensor_names(spec).items():
        leaf = leaf_at(params, place.path)
        assert leaf.dtype == DTYPES[dtype]
        one = np.asarray(leaf if place.layer is None else leaf[place.layer])
        expected = weights[name].T if place.transpose else weights[name]
        assert one.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert len(jax.tree.leaves(params)) == len({place.path for place in tensor_names(spec).values()})


def test_layers_of_different_dtypes_meet_in_float32(tmp_path):
    folder = write_tiny_model(tmp_path / "m", dtype="bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda w: w.update({name: w[name].astype(np.float16)}))
    up = load(folder)["blocks"]["mlp"]["up"]["kernel"]
    assert up.dtype == np.float32
    weights = read_weights(folder)
    for layer in (0, 1):
        expected = weights[f"model.layers.{layer}.mlp.up_proj.weight"].astype(np.float32).T
        np.testing.assert_array_equal(up[layer], expected)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(None, "x"), PartitionSpec(None, None, "x")])
def test_sharded_leaves_equal_whole_ones(tmp_path, spec):
    folder = write_tiny_model(tmp_path / "m")
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    whole = load(folder)
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, spec if leaf.ndim == 3 else PartitionSpec()), whole)
    parts = load(folder, sharding=shardings)
    for path, leaf in jax.tree.leaves_with_path(parts):
        expected = leaf_at(whole, "/".join(key.key for key in path))
        np.testing.assert_array_equal(leaf, expected)
        assert leaf.sharding.is_equivalent_to(leaf_at(shardings, "/".join(key.key for key in path)), leaf.ndim)
    one = load(folder, sharding=NamedSharding(mesh, PartitionSpec()))
    jax.tree.map(np.testing.assert_array_equal, one, whole)


def test_sharded_layers_read_each_tensor_once(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "m", num_hidden_layers=2))
    reads = []
    read = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: reads.append(name) or read(self, name))
    spec = spec_of(checkpoint)
    load_params(checkpoint, spec)
    assert sorted(reads) == sorted(tensor_names(spec))
    reads.clear()
    mesh = jax.make_mesh((2, 4), ("layer", "copy"))
    shard = NamedSharding(mesh, PartitionSpec("layer"))
    full = NamedSharding(mesh, PartitionSpec())
    tree = jax.tree.map(lambda leaf: shard if leaf.ndim == 3 else full, load(checkpoint.folder))
    reads.clear()
    load_params(checkpoint, spec, tree)
    assert sorted(reads) == sorted(tensor_names(spec))


def test_memory_stays_under_the_model_and_one_leaf(tmp_path):
    folder = write_tiny_model(tmp_path / "m", hidden_size=128, intermediate_size=512, num_hidden_layers=6, head_dim=32)
    checkpoint = open_checkpoint(folder)
    spec = spec_of(checkpoint)
    load_params(checkpoint, spec)
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    largest = 6 * 128 * 512 * 4
    tracemalloc.start()
    try:
        load_params(checkpoint, spec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < total + largest


def test_one_leaf(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "m", "qwen2"))
    spec, path = spec_of(checkpoint), "blocks/attention/q/kernel"
    whole = read_leaf(checkpoint, spec, path)
    np.testing.assert_array_equal(whole, load(checkpoint.folder)["blocks"]["attention"]["q"]["kernel"])
    np.testing.assert_array_equal(read_leaf(checkpoint, spec, path, layer=1), whole[1])
    np.testing.assert_array_equal(read_leaf(checkpoint, spec, "blocks/attention/q/bias", layer=0).shape, (32,))
    assert read_leaf(checkpoint, spec, "embed/embedding").shape == (64, 32)
    with pytest.raises(InputError, match="the model has no parameter blocks/attention/o/bias"):
        read_leaf(checkpoint, spec, "blocks/attention/o/bias")
    for layer in (2, -1):
        with pytest.raises(InputError, match=f"has no layer {layer}"):
            read_leaf(checkpoint, spec, path, layer=layer)
    with pytest.raises(InputError, match="has no layer 0"):
        read_leaf(checkpoint, spec, "embed/embedding", layer=0)


@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (300, 5), (128, 256)])
def test_tiled_transposition(shape):
    source = np.random.default_rng(0).standard_normal(shape)
    target = np.full(shape[::-1], np.nan)
    transpose_into(target, source)
    np.testing.assert_array_equal(target, source.T)


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    folder = write_tiny_model(tmp_path / "m", num_hidden_layers=3)

    def change(weights):
        for layer in range(3):
            for kernel in ("gate", "up"):
                del weights[f"model.layers.{layer}.mlp.{kernel}_proj.weight"]
        weights["model.extra.weight"] = np.zeros(2, np.float32)

    rewrite(folder, change)
    with pytest.raises(InputError) as caught:
        load(folder)
    message = str(caught.value)
    assert "missing model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight" in message
    assert "and 1 more" in message and "unexpected model.extra.weight" in message


def test_misshapen_tensor(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    rewrite(folder, lambda w: w.update({"model.layers.1.self_attn.k_proj.weight": np.zeros((32, 16), np.float32)}))
    with pytest.raises(InputError, match=r"layers.1.self_attn.k_proj.weight \(expected 16 x 32, found 32 x 16\)"):
        load(folder)


def test_padded_vocabulary(tmp_path):
    folder = write_tiny_model(tmp_path / "m", tie_word_embeddings=True)
    rewrite(folder, lambda w: w.update({"model.embed_tokens.weight": np.zeros((72, 32), np.float32)}))
    with pytest.raises(InputError, match=r"embed_tokens.weight has 72 rows, config.json says vocab_size 64 \(a padded"):
        load(folder)


def test_rotary_buffers_are_passed_over(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    expected = load(folder)
    rewrite(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))
    jax.tree.map(np.testing.assert_array_equal, load(folder), expected)


def test_head_beside_a_tied_embedding(tmp_path):
    folder = write_tiny_model(tmp_path / "m", tie_word_embeddings=True, dtype="bfloat16")
    expected = load(folder)
    rewrite(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].astype(np.float32)}))
    found = load(folder)
    assert "lm_head" not in found
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    rewrite(folder, lambda w: w.update({"lm_head.weight": w["lm_head.weight"] * np.float32(2)}))
    with pytest.raises(InputError, match=r"tie_word_embeddings is true, but lm_head.weight is stored and differs"):
        load(folder)


def test_absent_head(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    rewrite(folder, lambda w: w.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"tie_word_embeddings is false, but there is no lm_head.weight"):
        load(folder)


def test_quantised_and_double_weights(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    name = "model.layers.0.mlp.down_proj.weight"
    for dtype, called in ((np.int8, "I8"), (np.float64, "F64")):
        rewrite(folder, lambda w, dtype=dtype: w.update({name: w[name].astype(dtype)}))
        with pytest.raises(
            InputError, match=rf"not handled \(quantised\?\): {name} \({called}\); expected F32, BF16, F16"
        ):
            load(folder)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, dtype, value):
    folder = write_tiny_model(tmp_path / "m", dtype=dtype)
    check_finite(open_checkpoint(folder))
    name = "model.layers.1.self_attn.o_proj.weight"

    def change(weights):
        weights[name][3, 5] = value

    rewrite(folder, change)
    with pytest.raises(InputError, match=rf"tensor {name} has 1 NaN or infinite entries of 1,024"):
        check_finite(open_checkpoint(folder))
    check_finite(open_checkpoint(folder), ["model.norm.weight"])


def test_real_checkpoints_load(real_data):
    for name in ("stories260K", "stories3M"):
        folder = real_data / "models" / name
        params, weights = load(folder), read_weights(folder)
        np.testing.assert_array_equal(params["embed"]["embedding"], weights["model.embed_tokens.weight"])
        down = params["blocks"]["mlp"]["down"]["kernel"]
        np.testing.assert_array_equal(down[-1], weights[f"model.layers.{len(down) - 1}.mlp.down_proj.weight"].T)
