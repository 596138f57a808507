"""Maps Hugging Face tensor names to places in the parameter tree; loading and saving both use this map.

Hugging Face stores one tensor per layer, and linear weights as (out, in). The parameter tree stacks the layers on a
leading axis and holds Flax kernels (in, out). `tensor_names` lists every tensor of a model with its place in the tree.
"""

from dataclasses import dataclass

from hcnr_jax.errors import InputError
from hcnr_jax.models.families.family import Family
from hcnr_jax.models.families.llama import LLAMA
from hcnr_jax.models.spec import ModelSpec


@dataclass(frozen=True)
class Placement:
    """Says where a Hugging Face tensor goes in the parameter tree.

    Attributes:
        path: path of the leaf, such as "blocks/mlp/up/kernel".
        layer: index on the leaf's leading axis; None where the leaf is not stacked.
        transpose: whether the tensor is transposed on the way.
        shape: the shape that the tensor must have in the file.
    """

    path: str
    layer: int | None
    transpose: bool
    shape: tuple[int, ...]


def hf_name_of(path: str, layer: int | None = None, family: Family = LLAMA) -> str:
    """Return the Hugging Face name of a leaf of the parameter tree.

    Args:
        path: path of the leaf.
        layer: layer of a leaf under `blocks/`; None for the other leaves.
        family: the model family, which gives the names.

    Raises:
        InputError: the tree has no such leaf, or the layer is missing or too much.

    Example:
        >>> from hcnr_jax.checkpoints import hf_name_of
        >>> hf_name_of("blocks/attention/q/kernel", 3)
        'model.layers.3.self_attn.q_proj.weight'
        >>> hf_name_of("final_norm/scale")
        'model.norm.weight'
    """
    blocks = {f"blocks/{leaf}": name for leaf, name in family.block_names.items()}
    table = blocks if layer is not None else family.outer_names
    if path not in table:
        where = "a stacked leaf, which needs a layer" if layer is not None else "a leaf without layers"
        raise InputError(f"parameter {path!r} is not {where}; expected one of {', '.join(table)}")
    return table[path] if layer is None else f"{family.layer_prefix}{layer}.{table[path]}"


def tensor_names(spec: ModelSpec) -> dict[str, Placement]:
    """Return a map from every tensor name of a checkpoint of `spec` to its Placement, in order of the forward pass.

    A tied model has no `lm_head.weight` here, although its checkpoint may hold a copy of the embedding under that name.

    Example:
        >>> from hcnr_jax.checkpoints import tensor_names
        >>> from hcnr_jax.models import spec_from_config
        >>> sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> names = tensor_names(spec_from_config({"model_type": "llama", **sizes}, source="config.json"))
        >>> names["model.layers.1.mlp.up_proj.weight"]
        Placement(path='blocks/mlp/up/kernel', layer=1, transpose=True, shape=(12, 8))
    """
    shapes = leaf_shapes(spec)
    blocks_of = [f"blocks/{leaf}" for leaf in spec.recipe.block_names]
    blocks = [(path, layer) for layer in range(spec.num_layers) for path in blocks_of]
    leaves = [("embed/embedding", None), *blocks, ("final_norm/scale", None), ("lm_head/kernel", None)]
    names = {}
    for path, layer in leaves:
        if path in shapes:
            transpose = path.endswith("/kernel")
            shape = shapes[path] if layer is None else shapes[path][1:]
            names[hf_name_of(path, layer, spec.recipe)] = Placement(
                path, layer, transpose, shape[::-1] if transpose else shape
            )
    return names


def leaf_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return a map from the path of every leaf of the parameter tree to its shape.

    Leaves under `blocks/` have a leading layer axis, and kernels are (in, out).

    Example:
        >>> from hcnr_jax.checkpoints import leaf_shapes
        >>> from hcnr_jax.models import spec_from_config
        >>> sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> shapes = leaf_shapes(spec_from_config({"model_type": "llama", **sizes}, source="config.json"))
        >>> shapes["blocks/mlp/up/kernel"], shapes["final_norm/scale"]
        ((2, 8, 12), (8,))
    """
    hidden, layers, recipe = spec.hidden_size, spec.num_layers, spec.recipe
    shapes: dict[str, tuple[int, ...]] = {"embed/embedding": (spec.vocab_size, hidden), "final_norm/scale": (hidden,)}
    if not spec.tie_embeddings:
        shapes["lm_head/kernel"] = (hidden, spec.vocab_size)
    for norm in recipe.block_norms:
        shapes[f"blocks/{norm}/scale"] = (layers, hidden)
    if spec.qk_norm:
        for which, heads in (("q", spec.num_heads), ("k", spec.num_kv_heads)):
            width = spec.head_dim * (heads if recipe.qk_norm_joint else 1)
            shapes[f"blocks/attention/{which}_norm/scale"] = (layers, width)
    for kernel, (into, out, bias) in _kernel_widths(spec).items():
        shapes[f"blocks/{kernel}"] = (layers, into, out)
        if bias:
            shapes[f"blocks/{kernel.removesuffix('/kernel')}/bias"] = (layers, out)
    return shapes


def _kernel_widths(spec: ModelSpec) -> dict[str, tuple[int, int, bool]]:
    """Return the input width, the output width and whether there is a bias, for every kernel that the family names."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    widths = {
        "attention/q/kernel": (hidden, q, spec.qkv_bias),
        "attention/k/kernel": (hidden, kv, spec.qkv_bias),
        "attention/v/kernel": (hidden, kv, spec.qkv_bias),
        "attention/qkv/kernel": (hidden, q + 2 * kv, spec.qkv_bias),
        "attention/o/kernel": (q, hidden, spec.o_bias),
        "mlp/gate/kernel": (hidden, inner, spec.mlp_bias),
        "mlp/up/kernel": (hidden, inner, spec.mlp_bias),
        "mlp/gate_up/kernel": (hidden, 2 * inner, spec.mlp_bias),
        "mlp/down/kernel": (inner, hidden, spec.mlp_bias),
    }
    return {kernel: found for kernel, found in widths.items() if kernel in spec.recipe.block_names}
