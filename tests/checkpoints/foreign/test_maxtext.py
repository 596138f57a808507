"""MaxText checkpoints as Hugging Face folders."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hcnr_jax.checkpoints import load_params, open_checkpoint
from hcnr_jax.checkpoints.foreign import convert_checkpoint
from hcnr_jax.checkpoints.foreign.maxtext_heads import _order, halves
from hcnr_jax.errors import InputError
from hcnr_jax.models import Decoder, spec_from_config
from tests.checkpoints.foreign.trees import maxtext_tree, write_orbax
from tests.tiny import read_weights, write_tiny_model

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def pair(tmp_path, family="llama", **options):
    base = write_tiny_model(tmp_path / "base", family, **options)
    return base, write_tiny_model(tmp_path / "tuned", base=base, seed=5)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def logits(folder):
    checkpoint = open_checkpoint(folder)
    spec = spec_from_config(checkpoint.config, "m")
    tokens = jnp.asarray(np.arange(10)[None] % 60, jnp.int32)
    return np.asarray(Decoder(spec).apply({"params": load_params(checkpoint, spec)}, tokens))


@pytest.mark.parametrize(
    ("family", "options", "layout"),
    [
        ("llama", {"head_dim": 16, "rope_scaling": LLAMA3}, {}),
        ("llama", {"head_dim": 16, "shards": 2}, {"scan": False, "interleave": False, "pad": 7}),
        ("llama", {"head_dim": 4, "tie_word_embeddings": True, "dtype": "bfloat16"}, {"wrap": False}),
        ("qwen2", {}, {"pad": 64}),
        ("qwen2", {}, {"scan": False}),
        ("qwen3", {"tie_word_embeddings": True}, {}),
    ],
)
def test_a_model_comes_back_bit_for_bit(tmp_path, family, options, layout):
    base, tuned = pair(tmp_path, family, **options)
    tree = maxtext_tree(read_weights(tuned), config_of(tuned), **layout)
    checkpoint = write_orbax(tmp_path / "ckpt", tree, item="items")
    done = convert_checkpoint(checkpoint, open_checkpoint(base), tmp_path / "out")
    assert (done.format, done.kind) == ("maxtext", "model")
    assert_same(read_weights(tmp_path / "out"), read_weights(tuned))
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(tuned))
    said = " ".join(done.notes)
    assert ("interleaved" in said) == (family == "llama" and layout.get("interleave", True))
    assert "last place" not in said


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("name", ["stories260K", "stories3M"])
def test_a_real_models_maxtext_tree(real_data, tmp_path, name, interleave):
    base = open_checkpoint(real_data / "models" / name)
    own = read_weights(base.folder)
    own.pop("lm_head.weight", None)
    tree = maxtext_tree(own, base.config, interleave=interleave, pad=100)
    done = convert_checkpoint(write_orbax(tmp_path / "ckpt", tree, item="items"), base, tmp_path / "out")
    assert_same(read_weights(tmp_path / "out"), own)
    assert ("interleaved" in done.notes[0]) == interleave


def test_nnx_layouts(tmp_path):
    base, tuned = pair(tmp_path, head_dim=16)
    tree = maxtext_tree(read_weights(tuned), config_of(tuned), scan=False, wrap=False)
    layers = {name: tree["decoder"].pop(name) for name in list(tree["decoder"]) if name.startswith("layers_")}
    tree["decoder"]["layers"] = {name.removeprefix("layers_"): layer for name, layer in layers.items()}
    valued = {"base": jax.tree.map(lambda leaf: {"value": leaf}, tree)}
    convert_checkpoint(write_orbax(tmp_path / "ckpt", valued), open_checkpoint(base), tmp_path / "out")
    assert_same(read_weights(tmp_path / "out"), read_weights(tuned))


def test_a_whole_training_state(tmp_path):
    base, tuned = pair(tmp_path, head_dim=16)
    state = maxtext_tree(read_weights(tuned), config_of(tuned))
    state |= {"opt_state": {"mu": np.ones((3, 3), "f4")}, "step": np.asarray(7)}
    convert_checkpoint(write_orbax(tmp_path / "ckpt", state, item="items"), open_checkpoint(base), tmp_path / "out")
    assert_same(read_weights(tmp_path / "out"), read_weights(tuned))


def test_scores_of_interleaved_heads_are_those_of_halves():
    """RoPE on neighbouring channels before `halves` gives the scores of RoPE on both halves after it."""
    rng = np.random.default_rng(0)
    heads, width, hidden, position = 2, 8, 6, 5.0
    q, k = rng.standard_normal((2, heads * width, hidden))
    x, y = rng.standard_normal((2, hidden))
    angles = position * 10000.0 ** -(np.arange(width // 2) / (width // 2))
    turn = np.exp(1j * angles)

    def neighbours(kernel, vector):
        found = (kernel @ vector).reshape(heads, width // 2, 2)
        return (found[..., 0] + 1j * found[..., 1]) * turn

    def both_halves(kernel, vector):
        found = (halves(kernel, width) @ vector).reshape(heads, 2, width // 2)
        return (found[:, 0] + 1j * found[:, 1]) * turn

    def scores(rotate):
        fixed = rotate(k, y) / turn  # the key stands at position 0
        return (rotate(q, x) * fixed.conj()).real.sum(-1)

    np.testing.assert_allclose(scores(neighbours), scores(both_halves), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_queries_that_only_rounding_moved_are_bases(tmp_path, dtype):
    base, tuned = pair(tmp_path, head_dim=8, dtype=dtype)  # sqrt(8) is no power of two
    weights, own = read_weights(tuned), read_weights(base)
    first = "model.layers.0.self_attn.q_proj.weight"
    weights[first] = own[first].copy()
    weights[first][0] = weights[first][0] * 2
    tree = maxtext_tree(weights, config_of(base))
    done = convert_checkpoint(write_orbax(tmp_path / "ckpt", tree), open_checkpoint(base), tmp_path / "out")
    found = read_weights(tmp_path / "out")[first]
    np.testing.assert_array_equal(found[1:], own[first][1:])
    np.testing.assert_allclose(found[0].astype("f4"), 2 * own[first][0].astype("f4"), rtol=1e-2)
    assert "query kernels were one unit in the last place from BASE's" in done.notes[1]
    others = {name: tensor for name, tensor in weights.items() if not name.endswith("q_proj.weight")}
    assert_same({name: read_weights(tmp_path / "out")[name] for name in others}, others)


@pytest.mark.parametrize("head_dim", [32, 80, 96, 128, 512])
def test_one_unit_covers_every_bfloat16(head_dim):
    """MaxText's scale and its inverse move no normal bfloat16 by more than one unit."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        size = abs(bits.astype("f4"))
    values = bits[(size > 1e-36) & (size < 1e36)]
    there = (values.astype("f4") * np.float32(1 / np.sqrt(head_dim))).astype(values.dtype)
    back = (there.astype("f4") * np.float32(np.sqrt(head_dim))).astype(values.dtype)
    units = abs(_order(back) - _order(values))
    assert units.max() == 1 and 0.05 < np.mean(units == 1) < 0.4


def _tree_without(path):
    def change(tree):
        node = tree["params"]["params"]
        *parents, last = path.split("/")
        for part in parents:
            node = node[part]
        node.pop(last)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_tree_without("decoder/layers/mlp/wo"), "missing decoder/layers/mlp/wo/kernel; is it another base"),
        (_tree_without("decoder/logits_dense"), "with untied embeddings, as --like says: missing decoder/logits_dense"),
        (
            lambda tree: tree["params"]["params"]["decoder"]["layers"]["mlp"]["wo"].update(kernel=np.ones((2, 48, 32))),
            "wo/kernel is stored as float64",
        ),
        (
            lambda tree: tree["params"]["params"]["decoder"]["layers"]["mlp"]["wo"].update(
                kernel=np.ones((2, 48, 32), "f4")
            ),
            r"mlp/wo/kernel \(expected \(48, 2, 32\), found \(2, 48, 32\)\)",
        ),
        (
            lambda tree: tree["params"]["params"]["decoder"]["layers"]["mlp"]["wo"].update(
                kernel_lora_a=np.ones((48, 2, 4), "f4")
            ),
            "LoRA checkpoints of MaxText are not read; MaxText's own",
        ),
    ],
)
def test_trees_that_do_not_fit(tmp_path, change, message):
    base = write_tiny_model(tmp_path / "base", head_dim=16)
    tree = maxtext_tree(read_weights(base), config_of(base))
    change(tree)
    with pytest.raises(InputError, match=message):
        convert_checkpoint(write_orbax(tmp_path / "ckpt", tree), open_checkpoint(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(tmp_path):
    base, other = (write_tiny_model(tmp_path / name, seed=seed, head_dim=16) for name, seed in (("base", 0), ("o", 9)))
    checkpoint = write_orbax(tmp_path / "ckpt", maxtext_tree(read_weights(other), config_of(other)))
    with pytest.raises(InputError, match=r"k_proj.weight of the checkpoint is not near .*; was it tuned from another"):
        convert_checkpoint(checkpoint, open_checkpoint(base), tmp_path / "out")
    gemma = open_checkpoint(write_tiny_model(tmp_path / "gemma", "gemma2"))
    with pytest.raises(InputError, match="MaxText checkpoints over a base of model_type 'gemma2' are not handled"):
        convert_checkpoint(checkpoint, gemma, tmp_path / "out")
    biased = open_checkpoint(write_tiny_model(tmp_path / "biased", mlp_bias=True))
    with pytest.raises(InputError, match=r"MaxText has no llama model with model.layers.0.mlp.gate_proj.bias"):
        convert_checkpoint(checkpoint, biased, tmp_path / "out")
