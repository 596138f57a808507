"""Lists the names and axes of tunix's models (`nnx.state` of Llama 3, Qwen 2, Qwen 3 and Gemma 3).

tunix stores no config: sizes and family come from BASE. Nothing is permuted or scaled.
"""

from collections.abc import Collection
from dataclasses import replace

from hcnr_jax.checkpoints.foreign.axes import Source
from hcnr_jax.checkpoints.foreign.tables import Table, named_sources
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.models.spec import ModelSpec

_OUTER: Table = {
    "embed/embedding": ("embedder/input_embedding", "VD", "V,D"),
    "final_norm/scale": ("final_norm/w", "D", "D"),
    "lm_head/kernel": ("lm_head/w", "DV", "V,D"),
}
_MLP: Table = {
    "mlp/gate/kernel": ("mlp/gate_proj/kernel", "DF", "F,D"),
    "mlp/up/kernel": ("mlp/up_proj/kernel", "DF", "F,D"),
    "mlp/down/kernel": ("mlp/down_proj/kernel", "FD", "D,F"),
}
_LLAMA: Table = {
    "attention_norm/scale": ("input_layernorm/w", "D", "D"),
    "attention/q/kernel": ("attn/q_proj/w", "DNH", "NH,D"),
    "attention/q/bias": ("attn/q_bias", "Q", "Q"),
    "attention/k/kernel": ("attn/k_proj/w", "DKH", "KH,D"),
    "attention/k/bias": ("attn/k_bias", "P", "P"),
    "attention/v/kernel": ("attn/v_proj/w", "DKH", "KH,D"),
    "attention/v/bias": ("attn/v_bias", "P", "P"),
    "attention/o/kernel": ("attn/o_proj/w", "NHD", "D,NH"),
    "attention/q_norm/scale": ("attn/q_norm/w", "H", "H"),
    "attention/k_norm/scale": ("attn/k_norm/w", "H", "H"),
    "mlp_norm/scale": ("post_attention_layernorm/w", "D", "D"),
    **_MLP,
}
_GEMMA3: Table = {
    "attention_norm/scale": ("pre_attention_norm/scale", "D", "D"),
    "attention/q/kernel": ("attn/q_einsum/w", "NDH", "NH,D"),
    "attention/k/kernel": ("attn/kv_einsum/w", "2KDH", "KH,D"),
    "attention/v/kernel": ("attn/kv_einsum/w", "2KDH", "KH,D"),
    "attention/o/kernel": ("attn/attn_vec_einsum/w", "NHD", "D,NH"),
    "attention/q_norm/scale": ("attn/_query_norm/scale", "H", "H"),
    "attention/k_norm/scale": ("attn/_key_norm/scale", "H", "H"),
    "post_attention_norm/scale": ("post_attention_norm/scale", "D", "D"),
    "mlp_norm/scale": ("pre_ffw_norm/scale", "D", "D"),
    "post_mlp_norm/scale": ("post_ffw_norm/scale", "D", "D"),
    **_MLP,
}
_FUSED: Table = {f"attention/{part}/kernel": ("attn/qkv_einsum/w", "3NDH", "NH,D") for part in "qkv"}
_PICKS = {"2KDH": {"k": 0, "v": 1}, "3NDH": {"q": 0, "k": 1, "v": 2}}
_BLOCKS = {"llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gemma3_text": _GEMMA3}
_GEMMA_OUTER: Table = {**_OUTER, "final_norm/scale": ("final_norm/scale", "D", "D")}


def tunix_sources(spec: ModelSpec, leaves: Collection[str]) -> dict[str, Source]:
    """Return a map from every tensor name of BASE to its place in tunix's tree.

    Args:
        spec: BASE's description.
        leaves: paths of the tree's leaves, which tell Gemma's two layouts of q, k and v apart.

    Raises:
        InputError: tunix has no model of BASE's family that is handled here.
    """
    gemma = spec.family == "gemma3_text"
    fused = _FUSED if gemma and "layers/0/attn/qkv_einsum/w" in leaves else {}
    blocks = {family: table | fused for family, table in _BLOCKS.items()}

    def place(leaf: str, axes: str, stored: str, layer: int | None) -> Source:
        return Source(leaf if layer is None else f"layers/{layer}/{leaf}", axes, stored)

    sources = named_sources(spec, "tunix", _GEMMA_OUTER if gemma else _OUTER, blocks, place)
    for name, where in tensor_names(spec).items():
        if (axes := sources[name].axes) in _PICKS:
            part = where.path.split("/")[2]
            sources[name] = replace(sources[name], picks={axes[0]: _PICKS[axes][part]})
    return sources


def is_tunix(leaves: Collection[str]) -> bool:
    """Return whether the paths are those of one of tunix's models, or of its LoRA leaves."""
    kernels = (path for path in leaves if path.startswith("layers/"))
    return any("/attn/" in path or "/mlp/" in path for path in kernels)
