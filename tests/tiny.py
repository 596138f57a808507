"""The one tiny-model fixture: whole Hugging Face folders, a tokenizer and JSONL rows, made with numpy alone.

Tensor names are spelled out here from the Hugging Face convention, apart from the package's own table, so that a test
that loads one of these folders checks that table against a second source.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

SPECIAL = ("<unk>", "<s>", "</s>")
_TEXT = (
    "I do don ' t not know . ? , : what who where when why is are was the a an of in on to and yes no "
    "answer question sky blue sun cat dog red green one two three city France Paris capital name color big small "
    "it you my me they Mars king user assistant"
)
WORDS = tuple(_TEXT.split())
CONTENT = WORDS[WORDS.index("sky") :]
VOCABULARY = (*SPECIAL, *WORDS)
VOCAB_SIZE = 64

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + (' </s> ' if m['role'] == 'assistant' "
    "else ' ') }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
}
_GEMMA_KEYS = {
    "head_dim": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 10,
    "sliding_window": 6,
}
_FAMILY_KEYS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False, "head_dim": 8},
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 2},
    "qwen3": {
        "attention_bias": False,
        "head_dim": 12,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
    },
    "mistral": {"head_dim": 8, "sliding_window": 6},
    "gemma2": {**_GEMMA_KEYS, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
    "gemma3_text": {**_GEMMA_KEYS, "rope_local_base_freq": 100.0, "sliding_window_pattern": 2},
}
_FAMILY_KEYS |= {
    "olmo2": {"attention_bias": False, "head_dim": 12},
    "olmo3": {
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "smollm3": {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6, "mlp_bias": False},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
    },
    "phi3": {"sliding_window": 6, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "original_max_position_embeddings": 128},
    "ministral3": {
        "head_dim": 12,
        "rope_theta": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "glm4": {"attention_bias": True, "head_dim": 12, "partial_rotary_factor": 0.67},
}
_PADDED_BEYOND = ("smollm3", "phi3", "glm4")  # whose default pad token is outside the tiny vocabulary
_O_WITHOUT_BIAS = ("qwen2", "glm4")
_OLMO_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_NORMS = {
    "gemma2": (*_LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "gemma3_text": (*_LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "olmo2": _OLMO_NORMS,
    "olmo3": _OLMO_NORMS,
    "glm4": (*_LLAMA_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm"),
}


def tiny_config(family: str = "llama", **overrides: Any) -> dict[str, Any]:
    """A raw config.json of `family` (a key of `_FAMILY_KEYS`) in the transformers 4 spelling.

    Overrides replace or add keys; giving `rope_parameters` drops `rope_theta`, which makes it a transformers 5 file.
    """
    config = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({"pad_token_id": 0} if family in _PADDED_BEYOND else {}),
        "torch_dtype": "float32",
        **_FAMILY_KEYS[family],
    }
    if "rope_parameters" in overrides:
        del config["rope_theta"]
    return config | overrides


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """HF tensor name -> shape, (out, in) for linear weights, of the model that `config` describes."""
    family, hidden, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, config["num_key_value_heads"] * head_dim
    qkv_bias = family == "qwen2" or config.get("attention_bias", False)
    o_bias = family not in _O_WITHOUT_BIAS and config.get("attention_bias", False)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for norm in _NORMS.get(family, _LLAMA_NORMS):
            shapes[f"{block}{norm}.weight"] = (hidden,)
        mlp_bias = config.get("mlp_bias", False)
        attention = [("q", q), ("k", kv), ("v", kv)] if family != "phi3" else [("qkv", q + 2 * kv)]
        mlp = [("gate", inner), ("up", inner)] if family not in ("phi3", "glm4") else [("gate_up", 2 * inner)]
        for name, out, into, bias in (
            *((f"self_attn.{name}_proj", out, hidden, qkv_bias) for name, out in attention),
            ("self_attn.o_proj", hidden, q, o_bias),
            *((f"mlp.{name}_proj", out, hidden, mlp_bias) for name, out in mlp),
            ("mlp.down_proj", hidden, inner, mlp_bias),
        ):
            shapes[f"{block}{name}.weight"] = (out, into)
            if bias:
                shapes[f"{block}{name}.bias"] = (out,)
        if family in ("qwen3", "gemma3_text"):
            shapes[block + "self_attn.q_norm.weight"] = shapes[block + "self_attn.k_norm.weight"] = (head_dim,)
        if family in ("olmo2", "olmo3"):
            shapes[block + "self_attn.q_norm.weight"] = (q,)
            shapes[block + "self_attn.k_norm.weight"] = (kv,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def is_kernel(name: str) -> bool:
    """True for the seven linear weights of a block."""
    return name.endswith("_proj.weight")


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int, scale: float, norm: float = 1.0
) -> dict[str, np.ndarray]:
    """Float32 weights: linear ones of deviation scale / sqrt(in), norms near `norm`, biases and embeddings small."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = norm + 0.1 * noise
        elif name.endswith(".bias"):
            values = 0.1 * noise
        elif "embed_tokens" in name:
            values = scale * noise
        else:
            values = scale * noise / np.sqrt(shape[1])
        weights[name] = values.astype(np.float32)
    return weights


def write_tiny_tokenizer(folder: Path, chat_template: str | None = None, add_bos: bool = True) -> Path:
    """A whole-word tokenizer of 64 ids (`<unk>` 0, `<s>` 1, `</s>` 2) that AutoTokenizer loads; BOS first if asked.

    Beside a qwen2 config.json transformers 5 puts that family's own byte-level splitting in place of the one saved, and
    most words become `<unk>`: fine for shapes and bytes, of no use for text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = [*VOCABULARY, *(f"w{i}" for i in range(VOCAB_SIZE - len(VOCABULARY)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    _write_json(folder / "tokenizer_config.json", config)
    return folder


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's safetensors files, read by the safetensors library."""
    weights = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return weights


def write_weights(folder: Path, weights: Mapping[str, np.ndarray], shards: int = 1) -> None:
    """model.safetensors, or `shards` numbered files with their index, the tensors dealt out in order."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for part, chunk in enumerate(np.array_split(np.array(list(weights), dtype=object), shards), start=1):
        file = f"model-{part:05d}-of-{shards:05d}.safetensors"
        save_file({name: weights[name] for name in chunk}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chunk, file)
    total = sum(value.nbytes for value in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tiny_model(
    folder: Path,
    family: str = "llama",
    seed: int = 0,
    dtype: str | None = None,
    shards: int = 1,
    scale: float = 1.0,
    base: Path | None = None,
    delta: float = 0.05,
    chat_template: str | None = None,
    **config_overrides: Any,
) -> Path:
    """A complete HF folder (config, weights, tokenizer, generation config); returns it.

    With `base`, the config and dtype are that folder's and the weights are its weights plus, in the linear kernels of
    the blocks only, noise of `delta` times each kernel's own deviation. `dtype` is float32, float16 or bfloat16
    (default: float32, or base's).
    """
    folder = Path(folder)
    if base is None:
        config = tiny_config(family, **config_overrides)
        centre = 0.0 if family.startswith("gemma") else 1.0  # Gemma's norms add 1 to the stored scale
        weights = random_weights(tensor_shapes(config), seed, scale, centre)
    else:
        config = json.loads((Path(base) / "config.json").read_text()) | config_overrides
        dtype = dtype or config.get("torch_dtype")
        weights = {name: value.astype(np.float32) for name, value in read_weights(base).items()}
        noise = random_weights({name: value.shape for name, value in weights.items()}, seed + 1, delta * scale)
        weights |= {name: weights[name] + noise[name] for name in weights if is_kernel(name)}
    dtype = dtype or "float32"
    config["torch_dtype"] = dtype
    write_weights(folder, {name: value.astype(DTYPES[dtype]) for name, value in weights.items()}, shards)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False})
    write_tiny_tokenizer(folder, chat_template)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A JSONL file of `rows`; returns its path."""
    path = Path(path)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def honesty_rows(count: int) -> list[dict[str, Any]]:
    """Distinct prompt/completion rows whose completion is a refusal, in words of the tiny tokenizer."""
    return [
        {"prompt": f"question : {_phrase(i)} ? answer :", "completion": " I don't know.", "answerable": False}
        for i in range(count)
    ]


def task_rows(count: int) -> list[dict[str, Any]]:
    """Distinct prompt/completion rows with a one-word answer, in words of the tiny tokenizer."""
    return [
        {
            "prompt": f"name the {_phrase(i)} : answer :",
            "completion": f" the {CONTENT[5 * i % len(CONTENT)]}.",
            "answers": [CONTENT[5 * i % len(CONTENT)]],
        }
        for i in range(count)
    ]


def _phrase(i: int) -> str:
    """Two to five words, different for every i below a few hundred."""
    count = len(CONTENT)
    return " ".join(CONTENT[(i * step + i // count) % count] for step in (1, 3, 7, 11, 13)[: 2 + i % 4])


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
