"""Lists the names and axes of MaxText's decoder for Llama, Qwen 2 and Qwen 3, scanned or layer by layer.

With `scan_layers`, one leaf holds all layers on its second axis (`param_scan_axis` 1). MaxText pads the vocabulary,
stores Llama's queries times 1 / sqrt(head_dim), and for Llama 3.1 lets neighbouring channels rotate together.
"""

import re
from collections.abc import Collection

from hcnr_jax.checkpoints.foreign.axes import Source
from hcnr_jax.checkpoints.foreign.orbax_leaves import OrbaxTree
from hcnr_jax.checkpoints.foreign.tables import Table, named_sources
from hcnr_jax.models.spec import ModelSpec

_OUTER: Table = {
    "embed/embedding": ("token_embedder/embedding", "VD", "V,D"),
    "final_norm/scale": ("decoder/decoder_norm/scale", "D", "D"),
    "lm_head/kernel": ("decoder/logits_dense/kernel", "DV", "V,D"),
}
_BLOCK: Table = {
    "attention_norm/scale": ("pre_self_attention_layer_norm/scale", "D", "D"),
    "attention/q/kernel": ("self_attention/query/kernel", "DNH", "NH,D"),
    "attention/q/bias": ("self_attention/query/bias", "NH", "NH"),
    "attention/k/kernel": ("self_attention/key/kernel", "DKH", "KH,D"),
    "attention/k/bias": ("self_attention/key/bias", "KH", "KH"),
    "attention/v/kernel": ("self_attention/value/kernel", "DKH", "KH,D"),
    "attention/v/bias": ("self_attention/value/bias", "KH", "KH"),
    "attention/o/kernel": ("self_attention/out/kernel", "NHD", "D,NH"),
    "attention/q_norm/scale": ("self_attention/query_norm/scale", "H", "H"),
    "attention/k_norm/scale": ("self_attention/key_norm/scale", "H", "H"),
    "mlp_norm/scale": ("post_self_attention_layer_norm/scale", "D", "D"),
    "mlp/gate/kernel": ("mlp/wi_0/kernel", "DF", "F,D"),
    "mlp/up/kernel": ("mlp/wi_1/kernel", "DF", "F,D"),
    "mlp/down/kernel": ("mlp/wo/kernel", "FD", "D,F"),
}
_BLOCKS = dict.fromkeys(("llama", "qwen2", "qwen3"), _BLOCK)
_WRAPPERS = re.compile(r"^(params/|base/)+")
_LAYER = re.compile(r"\blayers/(?=\d+/)")


def is_maxtext(leaves: Collection[str]) -> bool:
    """Return whether the paths are those of MaxText's decoder."""
    return any(_WRAPPERS.sub("", path).startswith("decoder/") for path in leaves)


def plain_tree(tree: OrbaxTree) -> OrbaxTree:
    """Return a tree with the paths of MaxText's parameters: without `params/params/` or `base/`, with `layers_0`."""
    return OrbaxTree(
        tree.folder, {_LAYER.sub("layers_", _WRAPPERS.sub("", path)): leaf for path, leaf in tree.leaves.items()}
    )


def maxtext_sources(spec: ModelSpec, leaves: Collection[str]) -> dict[str, Source]:
    """Return a map from every tensor name of BASE to its place in MaxText's tree.

    Args:
        spec: BASE's description.
        leaves: paths of `plain_tree`, which tell scanned layers from single ones.

    Raises:
        InputError: BASE's family, or a bias of it, is not handled here.
    """
    scanned = any(path.startswith("decoder/layers/") for path in leaves)

    def place(leaf: str, axes: str, stored: str, layer: int | None) -> Source:
        if layer is None:
            return Source(leaf, axes, stored, padded="V")
        if not scanned:
            return Source(f"decoder/layers_{layer}/{leaf}", axes, stored)
        return Source(f"decoder/layers/{leaf}", f"{axes[0]}L{axes[1:]}", stored, {"L": layer})

    return named_sources(spec, "MaxText", _OUTER, _BLOCKS, place)
