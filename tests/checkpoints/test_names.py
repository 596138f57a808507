"""The name table is its own inverse and agrees with names spelled out elsewhere."""

import pytest

from hcnr_jax.checkpoints import hf_name_of, leaf_shapes, tensor_names
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import spec_from_config
from tests import tiny

CASES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 3}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("qwen3", {}),
    ("qwen3", {"num_key_value_heads": 1, "attention_bias": True}),
    ("mistral", {}),
    ("gemma2", {}),
    ("olmo2", {"num_key_value_heads": 1}),
    ("olmo3", {}),
    ("smollm3", {"attention_bias": True}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("phi3", {"tie_word_embeddings": True}),
    ("glm4", {}),
    ("ministral3", {}),
    ("gemma3_text", {"tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("family", "overrides"), CASES)
def test_names_and_shapes_match_the_convention(family, overrides):
    config = tiny.tiny_config(family, **overrides)
    names = tensor_names(spec_from_config(config, "config.json"))
    assert {name: place.shape for name, place in names.items()} == tiny.tensor_shapes(config)


@pytest.mark.parametrize(("family", "overrides"), CASES)
def test_there_and_back(family, overrides):
    spec = spec_from_config(tiny.tiny_config(family, **overrides), "config.json")
    names = tensor_names(spec)
    assert all(hf_name_of(place.path, place.layer, spec.recipe) == name for name, place in names.items())
    assert len({(place.path, place.layer) for place in names.values()}) == len(names)
    assert {place.path for place in names.values()} == set(leaf_shapes(spec))
    for place in names.values():
        leaf = leaf_shapes(spec)[place.path]
        one = leaf if place.layer is None else leaf[1:]
        assert place.shape == (one[::-1] if place.transpose else one)
        assert place.transpose == place.path.endswith("kernel")


def test_spelled_out():
    assert hf_name_of("blocks/attention/q/kernel", 3) == "model.layers.3.self_attn.q_proj.weight"
    assert hf_name_of("lm_head/kernel") == "lm_head.weight"


@pytest.mark.parametrize(
    ("path", "layer"), [("blocks/attention/q/kernel", None), ("lm_head/kernel", 0), ("nothing", 1)]
)
def test_unknown_path(path, layer):
    with pytest.raises(InputError, match=f"parameter '{path}' is not"):
        hf_name_of(path, layer)
