"""tunix checkpoints as Hugging Face folders."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from hcnr_jax.checkpoints import open_checkpoint, open_tuned
from hcnr_jax.checkpoints.foreign import convert_checkpoint, open_orbax_tree
from hcnr_jax.errors import InputError
from tests.checkpoints.foreign.trees import tunix_tree, write_orbax
from tests.tiny import read_weights, write_tiny_model


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def pair(tmp_path, family="llama", **options):
    """BASE, TUNED and TUNED's tunix checkpoint."""
    base = write_tiny_model(tmp_path / "base", family, **options)
    tuned = write_tiny_model(tmp_path / "tuned", base=base, seed=5)
    tree = tunix_tree(read_weights(tuned), config_of(tuned))
    return base, tuned, write_orbax(tmp_path / "ckpt", tree)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"shards": 3}),
        ("llama", {"tie_word_embeddings": True, "dtype": "bfloat16"}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma3_text", {"tie_word_embeddings": True}),
    ],
)
def test_a_model_comes_back_bit_for_bit(tmp_path, family, options):
    base, tuned, checkpoint = pair(tmp_path, family, **options)
    done = convert_checkpoint(checkpoint, open_checkpoint(base), tmp_path / "out")
    assert (done.format, done.kind, done.source.parts[-2:]) == ("tunix", "model", ("3", "model_params"))
    assert_same(read_weights(tmp_path / "out"), read_weights(tuned))
    assert config_of(tmp_path / "out") == config_of(tuned)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert open_tuned(tmp_path / "out", open_checkpoint(base)).tensors


def test_the_checkpoints_dtype_is_kept(tmp_path):
    base = write_tiny_model(tmp_path / "base", dtype="bfloat16", shards=2)
    weights = {name: tensor.astype(np.float32) * np.float32(1.001) for name, tensor in read_weights(base).items()}
    checkpoint = write_orbax(tmp_path / "ckpt", tunix_tree(weights, config_of(base)))
    convert_checkpoint(checkpoint, open_checkpoint(base), tmp_path / "out")
    assert_same(read_weights(tmp_path / "out"), weights)
    assert config_of(tmp_path / "out")["torch_dtype"] == "float32"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    open_checkpoint(tmp_path / "out")


def test_fused_gemma_attention(tmp_path):
    base = write_tiny_model(tmp_path / "base", "gemma3_text", num_key_value_heads=4)
    weights = read_weights(base)
    tree = tunix_tree(weights, config_of(base))
    for block in tree["layers"].values():
        q, kv = block["attn"].pop("q_einsum")["w"]["value"], block["attn"].pop("kv_einsum")["w"]["value"]
        block["attn"]["qkv_einsum"] = {"w": {"value": np.concatenate([q[None], kv])}}
    convert_checkpoint(write_orbax(tmp_path / "ckpt", tree), open_checkpoint(base), tmp_path / "out")
    assert_same(read_weights(tmp_path / "out"), weights)


def test_a_folder_that_tunix_wrote(real_data, tmp_path):
    checkpoint = real_data / "tunix" / "full"
    base = write_tiny_model(tmp_path / "base")
    done = convert_checkpoint(checkpoint, open_checkpoint(base), tmp_path / "out")
    assert done.tensors == 21
    leaves = {name: leaf.read() for name, leaf in open_orbax_tree(checkpoint).leaves.items()}
    expected = tunix_tree(read_weights(tmp_path / "out"), config_of(base))
    assert len(leaves) == 21
    for path, leaf in leaves.items():
        node = expected
        for part in path.split("/"):
            node = node[part]
        np.testing.assert_array_equal(node["value"], leaf, err_msg=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["layers"].pop("1"), "missing layers/1/input_layernorm/w, .* and 4 more; is it another base"),
        (lambda tree: tree.update(extra={"w": {"value": np.ones(3, "f4")}}), "unexpected extra/w"),
        (
            lambda tree: tree["layers"]["0"]["attn"]["q_proj"].update(w={"value": np.ones((32, 2, 16), "f4")}),
            r"layers/0/attn/q_proj/w \(expected \(32, 4, 8\), found \(32, 2, 16\)\)",
        ),
        (
            lambda tree: tree["layers"]["0"]["attn"]["q_proj"].update(
                w={"array": {"qvalue": {"value": np.ones((32, 4, 8), "i1")}, "scale": {"value": np.ones(4, "f4")}}}
            ),
            "layers/0/attn/q_proj/w/array/qvalue/value is a quantised weight",
        ),
        (
            lambda tree: tree["final_norm"].update(w={"value": np.ones(32, ml_dtypes.float8_e4m3fn)}),
            r"final_norm/w is stored as float8_e4m3fn \(quantised\?\)",
        ),
        (lambda tree: (tree.pop("layers"), tree.pop("embedder")), "the leaves are named neither as tunix names them"),
    ],
)
def test_trees_that_do_not_fit(tmp_path, change, message):
    base = write_tiny_model(tmp_path / "base")
    tree = tunix_tree(read_weights(base), config_of(base))
    change(tree)
    with pytest.raises(InputError, match=message):
        convert_checkpoint(write_orbax(tmp_path / "ckpt", tree), open_checkpoint(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_do_not_fit(tmp_path):
    base, _, checkpoint = pair(tmp_path)
    opened = open_checkpoint(base)
    other = open_checkpoint(write_tiny_model(tmp_path / "other", "mistral"))
    with pytest.raises(InputError, match="over a base of model_type 'mistral' are not handled; expected one of llama"):
        convert_checkpoint(checkpoint, other, tmp_path / "out")
    biased = open_checkpoint(write_tiny_model(tmp_path / "qwen", "qwen2"))
    with pytest.raises(InputError, match=r"not those of a qwen2 model .* missing layers/0/attn/q_bias"):
        convert_checkpoint(checkpoint, biased, tmp_path / "out")
    with pytest.raises(InputError, match="none is not a folder; expected an Orbax checkpoint"):
        convert_checkpoint(tmp_path / "none", opened, tmp_path / "out")
    with pytest.raises(InputError, match="base is not an Orbax checkpoint"):
        convert_checkpoint(base, opened, tmp_path / "out")
    shutil.move(checkpoint / "3" / "model_params", checkpoint / "3" / "optimizer_state")
    with pytest.raises(InputError, match="holds optimizer_state alone, and no model_params"):
        convert_checkpoint(checkpoint, opened, tmp_path / "out")


def test_restore_names_the_command(tmp_path):
    base, _, checkpoint = pair(tmp_path)
    for place in (checkpoint, checkpoint / "3", checkpoint / "3" / "model_params"):
        with pytest.raises(
            InputError, match=r"is an Orbax checkpoint; convert it first: hcnr convert .* --like .*base "
        ):
            open_tuned(place, open_checkpoint(base))
        with pytest.raises(InputError, match=r"is an Orbax checkpoint; convert it first: hcnr convert .* --like BASE "):
            open_checkpoint(place)
