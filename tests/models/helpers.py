"""Tiny random PyTorch models as the oracle: one raw config dict builds both the transformers model and our spec."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hcnr_jax.models import ModelSpec, spec_from_config
from tests.models.family_cases import FAMILY_CASES

torch.set_num_threads(1)  # tiny models: a second thread only waits, and test workers share the cores

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# Each config is what the two major versions of transformers write; `length` is enough for scaling and windows to bite.
CASES: dict[str, dict[str, Any]] = {
    "llama-gqa": {"model_type": "llama"},
    "llama-mha-v4": {"model_type": "llama", "num_key_value_heads": 4, "rope_theta": 500.0, "torch_dtype": "float32"},
    "llama-mqa-tied": {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-head-dim": {"model_type": "llama", "head_dim": 12},
    "llama-linear-v4": {
        "model_type": "llama",
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "length": 150,
    },
    "llama-llama3-v4": {
        "model_type": "llama",
        "head_dim": 16,
        "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "length": 300,
    },
    "llama-llama3-v5": {
        "model_type": "llama",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3},
        "length": 300,
    },
    "mistral-window": {"model_type": "mistral", "sliding_window": 5},
    "mistral-full-v4": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6, "head_dim": 16},
    "qwen2-tied-v4": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "use_sliding_window": False,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen2-windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 20, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen3-layer-types": {
        "model_type": "qwen3",
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}

LLAMA_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
OLMO_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
GEMMA_NORMS = {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
GLM_NORMS = {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_mlp_layernorm",
}
BLOCK_NORMS = {
    "gemma2": GEMMA_NORMS,
    "gemma3_text": GEMMA_NORMS,
    "olmo2": OLMO_NORMS,
    "olmo3": OLMO_NORMS,
    "glm4": GLM_NORMS,
}
FUSED_QKV = ("phi3",)
FUSED_MLP = ("phi3", "glm4")


def case_config(name: str) -> tuple[dict[str, Any], int]:
    """The raw config of a case and the sequence length to test it at."""
    case = dict((CASES | FAMILY_CASES)[name])
    length = case.pop("length", 24)
    return {**SIZES, **case}, length


def torch_model(config: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """The transformers model of a raw config, every parameter random: HF leaves biases at 0 and norms at 1.

    Norms of Gemma add 1 to the stored scale.
    """
    centre = 0.0 if config["model_type"].startswith("gemma") else 1.0
    config = dict(config)
    hf_config = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(centre + 0.2 * noise if "norm" in name else 0.2 * noise)
    return model


def params_of(model: torch.nn.Module, spec: ModelSpec) -> dict[str, Any]:
    """The param tree of a PyTorch model; written out apart from the package's own name table, as its check."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def stacked(name: str) -> jnp.ndarray:
        layers = [state[f"model.layers.{i}.{name}"] for i in range(spec.num_layers)]
        return jnp.asarray(np.stack([a.T if a.ndim == 2 else a for a in layers]))

    def linear(name: str, bias: bool) -> dict[str, jnp.ndarray]:
        leaves = {"kernel": stacked(f"{name}.weight")}
        return leaves | ({"bias": stacked(f"{name}.bias")} if bias else {})

    norms = BLOCK_NORMS.get(spec.family, LLAMA_NORMS)
    fused = spec.family in FUSED_QKV
    biases = dict.fromkeys(["qkv"] if fused else "qkv", spec.qkv_bias) | {"o": spec.o_bias}
    attention: dict[str, Any] = {n: linear(f"self_attn.{n}_proj", bias) for n, bias in biases.items()}
    mlp = ("gate_up", "down") if spec.family in FUSED_MLP else ("gate", "up", "down")
    if spec.qk_norm:
        attention |= {n: {"scale": stacked(f"self_attn.{n}.weight")} for n in ("q_norm", "k_norm")}
    params = {
        "embed": {"embedding": jnp.asarray(state["model.embed_tokens.weight"])},
        "blocks": {
            **{ours: {"scale": stacked(f"{theirs}.weight")} for ours, theirs in norms.items()},
            "attention": attention,
            "mlp": {n: linear(f"mlp.{n}_proj", spec.mlp_bias) for n in mlp},
        },
        "final_norm": {"scale": jnp.asarray(state["model.norm.weight"])},
    }
    if not spec.tie_embeddings:
        params["lm_head"] = {"kernel": jnp.asarray(state["lm_head.weight"].T)}
    return params


def twin(name: str) -> tuple[torch.nn.Module, ModelSpec, dict[str, Any], int]:
    """(PyTorch model, our spec, our params, length) of one case."""
    config, length = case_config(name)
    model, spec = torch_model(config), spec_from_config(config, "config.json")
    return model, spec, params_of(model, spec), length


def random_tokens(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """int32 token ids over the special ones."""
    return np.random.default_rng(seed).integers(3, SIZES["vocab_size"], shape, dtype=np.int32)
