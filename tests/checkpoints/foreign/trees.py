"""Tiny Orbax folders laid out as tunix and MaxText do, made from Hugging Face weights with numpy reshapes alone.

The layouts are spelled out here a second time, apart from the package's tables, so that a test holds one against the
other.
"""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def write_orbax(root, tree, step=3, item="model_params"):
    """A CheckpointManager's root with one step; returns the root."""
    with ocp.CheckpointManager(root) as manager:
        manager.save(step, args=ocp.args.Composite(**{item: ocp.args.PyTreeSave(tree)}))
    return root


def tunix_tree(weights, config):
    """nnx.state of tunix's Llama 3, Qwen 2, Qwen 3 or Gemma 3, as nested dicts that end in `value`."""
    n, k = config["num_attention_heads"], config["num_key_value_heads"]
    gemma = config["model_type"] == "gemma3_text"
    norm = "scale" if gemma else "w"
    tree = {
        "embedder": {"input_embedding": weights["model.embed_tokens.weight"]},
        "final_norm": {norm: weights["model.norm.weight"]},
        "layers": {},
    }
    if "lm_head.weight" in weights:
        tree["lm_head"] = {"w": weights["lm_head.weight"].T}
    for i in range(config["num_hidden_layers"]):
        own = {
            name.removeprefix(f"model.layers.{i}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{i}.")
        }
        block = _gemma_block(own, n, k) if gemma else _llama_block(own, n, k)
        block["mlp"] = {f"{p}_proj": {"kernel": own[f"mlp.{p}_proj.weight"].T} for p in ("gate", "up", "down")}
        tree["layers"][str(i)] = block
    return _with_values(tree)


def maxtext_tree(weights, config, scan=True, interleave=True, pad=0, wrap=True):
    """MaxText's parameters of a Llama, Qwen 2 or Qwen 3, after its own conversion's steps.

    Llama: queries times 1 / sqrt(head_dim) in float32, rounded to the dtype; first half and second half interleaved.
    """
    n, k, count = config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"]
    llama = config["model_type"] == "llama"
    parts = []
    for i in range(count):
        own = {
            name.removeprefix(f"model.layers.{i}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{i}.")
        }
        q, k_ = _heads(own["self_attn.q_proj.weight"], n), _heads(own["self_attn.k_proj.weight"], k)
        if llama:
            q = (q.astype("f4") * np.float32(1 / np.sqrt(q.shape[-1]))).astype(q.dtype)
        if llama and interleave:
            q, k_ = (
                np.stack([x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]], -1).reshape(x.shape) for x in (q, k_)
            )
        hidden = own["self_attn.o_proj.weight"].shape[0]
        part = {
            "self_attention/query/kernel": q,
            "self_attention/key/kernel": k_,
            "self_attention/value/kernel": _heads(own["self_attn.v_proj.weight"], k),
            "self_attention/out/kernel": own["self_attn.o_proj.weight"].T.reshape(n, -1, hidden),
            "mlp/wi_0/kernel": own["mlp.gate_proj.weight"].T,
            "mlp/wi_1/kernel": own["mlp.up_proj.weight"].T,
            "mlp/wo/kernel": own["mlp.down_proj.weight"].T,
            "pre_self_attention_layer_norm/scale": own["input_layernorm.weight"],
            "post_self_attention_layer_norm/scale": own["post_attention_layernorm.weight"],
        }
        for letter, name, heads in (("q", "query", n), ("k", "key", k), ("v", "value", k)):
            if f"self_attn.{letter}_proj.bias" in own:
                part[f"self_attention/{name}/bias"] = own[f"self_attn.{letter}_proj.bias"].reshape(heads, -1)
            if f"self_attn.{letter}_norm.weight" in own:
                part[f"self_attention/{name}_norm/scale"] = own[f"self_attn.{letter}_norm.weight"]
        parts.append(part)
    flat = {"decoder/decoder_norm/scale": weights["model.norm.weight"]}
    flat["token_embedder/embedding"] = np.pad(weights["model.embed_tokens.weight"], ((0, pad), (0, 0)))
    if "lm_head.weight" in weights:
        flat["decoder/logits_dense/kernel"] = np.pad(weights["lm_head.weight"].T, ((0, 0), (0, pad)))
    if scan:
        flat |= {f"decoder/layers/{name}": np.stack([part[name] for part in parts], 1) for name in parts[0]}
    else:
        flat |= {f"decoder/layers_{i}/{name}": part[name] for i, part in enumerate(parts) for name in part}
    return nested({f"params/params/{name}" if wrap else name: leaf for name, leaf in flat.items()})


def nested(flat):
    """A flat map of paths with slashes as nested dicts."""
    tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = np.ascontiguousarray(leaf)
    return tree


def lora_tree(config, rank, seed=0, dtype="float32"):
    """qwix's LoRA leaves of every kernel of a Llama-shaped model, nested as tunix saves them."""
    rng = np.random.default_rng(seed)
    d, f = config["hidden_size"], config["intermediate_size"]
    n, k = config["num_attention_heads"], config["num_key_value_heads"]
    h = config["head_dim"]

    def pair(kernel, into, out):
        return {
            f"{kernel}_lora_a": 0.1 * rng.standard_normal((*into, rank)).astype(jnp.dtype(dtype)),
            f"{kernel}_lora_b": 0.1 * rng.standard_normal((rank, *out)).astype(jnp.dtype(dtype)),
        }

    def block():
        attention = {
            "q_proj": pair("w", (d,), (n, h)),
            "k_proj": pair("w", (d,), (k, h)),
            "v_proj": pair("w", (d,), (k, h)),
            "o_proj": pair("w", (n, h), (d,)),
        }
        mlp = {
            "gate_proj": pair("kernel", (d,), (f,)),
            "up_proj": pair("kernel", (d,), (f,)),
            "down_proj": pair("kernel", (f,), (d,)),
        }
        return {"attn": attention, "mlp": mlp}

    return _with_values({"layers": {str(i): block() for i in range(config["num_hidden_layers"])}})


def merged(left, right):
    """Two nested dicts in one."""
    if not isinstance(left, dict):
        return left
    both = {name: merged(left[name], right[name]) for name in left if name in right}
    return {**left, **right, **both}


def _heads(weight, heads):
    """(N H, D) as (D, N, H)."""
    return weight.T.reshape(weight.shape[1], heads, -1)


def _llama_block(own, n, k):
    attention = {
        "q_proj": {"w": _heads(own["self_attn.q_proj.weight"], n)},
        "k_proj": {"w": _heads(own["self_attn.k_proj.weight"], k)},
        "v_proj": {"w": _heads(own["self_attn.v_proj.weight"], k)},
        "o_proj": {"w": own["self_attn.o_proj.weight"].T.reshape(n, -1, own["self_attn.o_proj.weight"].shape[0])},
    }
    for part in "qkv":
        if f"self_attn.{part}_proj.bias" in own:
            attention[f"{part}_bias"] = own[f"self_attn.{part}_proj.bias"]
        if f"self_attn.{part}_norm.weight" in own:
            attention[f"{part}_norm"] = {"w": own[f"self_attn.{part}_norm.weight"]}
    norms = {name: {"w": own[f"{name}.weight"]} for name in ("input_layernorm", "post_attention_layernorm")}
    return {"attn": attention, **norms}


def _gemma_block(own, n, k):
    keys, values = (_heads(own[f"self_attn.{p}_proj.weight"], k).transpose(1, 0, 2) for p in "kv")
    attention = {
        "q_einsum": {"w": _heads(own["self_attn.q_proj.weight"], n).transpose(1, 0, 2)},
        "kv_einsum": {"w": np.stack([keys, values])},
        "attn_vec_einsum": {
            "w": own["self_attn.o_proj.weight"].T.reshape(n, -1, own["self_attn.o_proj.weight"].shape[0])
        },
        "_query_norm": {"scale": own["self_attn.q_norm.weight"]},
        "_key_norm": {"scale": own["self_attn.k_norm.weight"]},
    }
    norms = {
        "pre_attention_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "pre_ffw_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    return {"attn": attention, **{name: {"scale": own[f"{hf}.weight"]} for name, hf in norms.items()}}


def _with_values(tree):
    if isinstance(tree, dict):
        return {key: _with_values(value) for key, value in tree.items()}
    return {"value": np.ascontiguousarray(tree)}
