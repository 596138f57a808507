"""BASE and TUNED as a pair: what may differ, what may not, and what 16-bit storage lost."""

import json

import numpy as np
import pytest

from hcnr_jax.checkpoints import check_pair, check_windows, delta_lost, open_checkpoint
from hcnr_jax.errors import InputError
from tests.tiny import is_kernel, read_weights, write_tiny_model, write_weights


def pair(tmp_path, base=None, tuned=None):
    first = write_tiny_model(tmp_path / "base", **(base or {}))
    second = write_tiny_model(tmp_path / "tuned", **{"seed": 1, **(base or {}), **(tuned or {})})
    return open_checkpoint(first), open_checkpoint(second)


def test_a_pair(tmp_path):
    base = write_tiny_model(tmp_path / "base")
    tuned = write_tiny_model(tmp_path / "tuned", base=base, max_position_embeddings=256, eos_token_id=[2, 3])
    spec = check_pair(open_checkpoint(base), open_checkpoint(tuned))
    assert spec.max_positions == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "mistral"}, "model_type is llama in .*base and mistral in .*tuned"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 2 in .* and 3 in"),
        ({"hidden_size": 24}, "hidden_size is 32 in .* and 24"),
        ({"intermediate_size": 40}, "intermediate_size is 48"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 2 in .* and 4"),
        ({"head_dim": 16}, "head_dim is 8 in .* and 16"),
        ({"rope_theta": 5e5}, r"rope_theta is 10000.0 in .* and 500000.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is None in .* and RopeScaling"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-05"),
        ({"vocab_size": 80}, "vocab_size is 64 in .* and 80 in .*; were tokens added, or the embedding padded"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is False in .* and True in .*; save both tied"),
        ({"attention_bias": True}, "qkv_bias is False"),
    ],
)
def test_no_pair(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        check_pair(*pair(tmp_path, tuned=change))


def test_float16_against_bfloat16(tmp_path):
    with pytest.raises(InputError, match=r"model.embed_tokens.weight is F16 in .* and BF16 in .*mostly rounding"):
        check_pair(*pair(tmp_path, {"dtype": "float16"}, {"dtype": "bfloat16"}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_holds_both(tmp_path, dtype):
    check_pair(*pair(tmp_path, {"dtype": dtype}, {"dtype": "float32"}))


def test_identical_weights(tmp_path):
    base, tuned = pair(tmp_path, tuned={"seed": 0, "shards": 2})
    with pytest.raises(InputError, match="are identical in every weight"):
        check_pair(base, tuned)


def test_identical_in_other_dtype(tmp_path):
    base = write_tiny_model(tmp_path / "base", dtype="bfloat16")
    tuned = write_tiny_model(tmp_path / "tuned", base=base, delta=0.0, dtype="float32")
    with pytest.raises(InputError, match="are identical in every weight"):
        check_pair(open_checkpoint(base), open_checkpoint(tuned))


def test_only_a_norm_differs(tmp_path):
    base, tuned = pair(tmp_path, tuned={"seed": 0})
    weights = read_weights(tuned.folder)
    weights["model.norm.weight"] += np.float32(1)
    write_weights(tuned.folder, weights)
    with pytest.raises(
        InputError, match=r"the kernels of .* are identical, only others differ \(first: model.norm.weight"
    ):
        check_pair(base, open_checkpoint(tuned.folder))


def test_the_pair_is_held_against_its_configs(tmp_path):
    base, tuned = pair(tmp_path)
    config = json.loads((tuned.folder / "config.json").read_text()) | {"no_such_attribute": 1}
    (tuned.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no_such_attribute"):
        check_pair(base, open_checkpoint(tuned.folder))


def test_lost_share_of_full_checkpoints(tmp_path):
    base = write_tiny_model(tmp_path / "base", dtype="bfloat16")
    tuned = write_tiny_model(tmp_path / "tuned", base=base, delta=0.003)
    before, after = read_weights(base), read_weights(tuned)
    names = [name for name in before if is_kernel(name)]
    # The noise is 0.3 % of a weight's deviation and bfloat16 keeps 8 bits: about a third of the entries cannot move.
    equal = {name: int((before[name] == after[name]).sum()) for name in names}
    loss = delta_lost(open_checkpoint(base), open_checkpoint(tuned), names)
    assert loss.lost == sum(equal.values()) and loss.entries == sum(before[name].size for name in names)
    assert 0.1 < loss.share < 0.9 and loss.share == loss.lost / loss.entries
    assert loss.worst == max(names, key=lambda name: equal[name] / before[name].size)


def test_nothing_lost_in_float32_or_where_nothing_moved(tmp_path):
    base, tuned = pair(tmp_path, {"dtype": "bfloat16"}, {"dtype": "float32"})
    names = [name for name in base.tensors if is_kernel(name)]
    assert delta_lost(base, tuned, names) == (0.0, 0, 0, "")
    assert delta_lost(base, base, names) == (0.0, 0, 0, "")


def test_windows_that_differ_matter_to_longer_rows_alone(tmp_path):
    models = (
        open_checkpoint(write_tiny_model(tmp_path / name, "mistral", seed, sliding_window=window))
        for name, seed, window in (("base", 0, 6), ("tuned", 1, None))
    )
    base, tuned = models
    assert check_pair(base, tuned).layer_windows == (None, None)
    (warning,) = check_windows(base, tuned, 6)
    assert "sliding_window differs (6 in" in warning and "no row is longer than 6 tokens" in warning
    with pytest.raises(InputError, match=r"sliding_window .* is 6 in .*base and None in .*, and a row has 7 tokens"):
        check_windows(base, tuned, 7)
    assert check_windows(base, base, 100) == []
