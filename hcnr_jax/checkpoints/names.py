"""The one table between Hugging Face tensor names and our parameter tree, read in both directions.

Hugging Face stores one tensor per layer and linear weights as (out, in); the parameter tree stacks the layers on a
leading axis and holds Flax kernels (in, out). `tensor_names` lists every tensor of a model with the place it goes to.
"""

from dataclasses import dataclass

from hcnr_jax.errors import InputError
from hcnr_jax.models.families.family import Family
from hcnr_jax.models.families.llama import LLAMA
from hcnr_jax.models.spec import ModelSpec


@dataclass(frozen=True)
class Placement:
    """Where a Hugging Face tensor goes: leaf path, layer on its leading axis (None: the leaf is not stacked), whether
    it is transposed on the way, and the shape it must have in the file."""

    path: str
    layer: int | None
    transpose: bool
    shape: tuple[int, ...]


def hf_name_of(path: str, layer: int | None = None, family: Family = LLAMA) -> str:
    """Return the Hugging Face name of a leaf, as in `hf_name_of("blocks/attention/q/kernel", 3)`.

    `layer` is needed for the leaves under `blocks/` and only there. Raises InputError for a path the tree has not.
    """
    blocks = {f"blocks/{leaf}": name for leaf, name in family.block_names.items()}
    table = blocks if layer is not None else family.outer_names
    if path not in table:
        where = "a stacked leaf, which needs a layer" if layer is not None else "a leaf without layers"
        raise InputError(f"parameter {path!r} is not {where}; expected one of {', '.join(table)}")
    return table[path] if layer is None else f"{family.layer_prefix}{layer}.{table[path]}"


def tensor_names(spec: ModelSpec) -> dict[str, Placement]:
    """Every tensor that a checkpoint of `spec` holds -> its Placement, in the order of the forward pass.

    A tied model has no `lm_head.weight` here; a checkpoint may hold a copy of the embedding under that name.
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
    """Path of every leaf of the parameter tree -> its shape, layers leading, kernels (in, out)."""
    hidden, inner, layers = spec.hidden_size, spec.intermediate_size, spec.num_layers
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed/embedding": (spec.vocab_size, hidden), "final_norm/scale": (hidden,)}
    if not spec.tie_embeddings:
        shapes["lm_head/kernel"] = (hidden, spec.vocab_size)
    for norm in ("attention_norm", "mlp_norm"):
        shapes[f"blocks/{norm}/scale"] = (layers, hidden)
    if spec.qk_norm:
        shapes["blocks/attention/q_norm/scale"] = shapes["blocks/attention/k_norm/scale"] = (layers, spec.head_dim)
    for dense, into, out, bias in (
        ("attention/q", hidden, q, spec.qkv_bias),
        ("attention/k", hidden, kv, spec.qkv_bias),
        ("attention/v", hidden, kv, spec.qkv_bias),
        ("attention/o", q, hidden, spec.o_bias),
        ("mlp/gate", hidden, inner, spec.mlp_bias),
        ("mlp/up", hidden, inner, spec.mlp_bias),
        ("mlp/down", inner, hidden, spec.mlp_bias),
    ):
        shapes[f"blocks/{dense}/kernel"] = (layers, into, out)
        if bias:
            shapes[f"blocks/{dense}/bias"] = (layers, out)
    return shapes
