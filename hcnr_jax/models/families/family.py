"""Describes a model family: config attributes, block recipe, Hugging Face names, and kernels with their groups."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """Describes one `model_type` of Hugging Face.

    Args:
        model_type: the value of `model_type` in `config.json`.
        architecture: the only class name accepted in `architectures`.
        defaults: handled attributes, with the values that transformers gives to absent ones.
        only: attributes that the family's transformers class ignores, with the values that agree with what the class
            computes.
        groups: kernels of one block that read the same input, in data-flow order; paths are relative to the block.
        block_names: maps the path of a leaf under `blocks/` to its tensor name within a layer.
        outer_names: maps the path of a leaf outside the blocks to its tensor name.
        layer_prefix: the part of a tensor name before the layer's number.
        qk_norm: whether queries and keys of each head pass through an RMSNorm.
        qkv_bias: whether q, k and v have biases; None where the attribute `attention_bias` decides.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    groups: tuple[tuple[str, ...], ...]
    block_names: Mapping[str, str]
    outer_names: Mapping[str, str]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layer_prefix: str = "model.layers."
    qk_norm: bool = False
    qkv_bias: bool | None = None

    @property
    def kernels(self) -> tuple[str, ...]:
        """Return the paths of the blocks' linear kernels in canonical order; each leaf is (layers, in, out)."""
        return tuple(f"blocks/{path}" for group in self.groups for path in group)

    @property
    def embedding(self) -> str:
        """Return the tensor name of the token embedding."""
        return self.outer_names["embed/embedding"]

    @property
    def lm_head(self) -> str:
        """Return the tensor name of the output head. A tied model need not store it."""
        return self.outer_names["lm_head/kernel"]

    @property
    def norms(self) -> tuple[str, ...]:
        """Return the path of every norm's scale that a model of this family can have."""
        blocks = (f"blocks/{path}" for path in self.block_names)
        return tuple(path for path in (*blocks, *self.outer_names) if path.endswith("norm/scale"))
