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
        only: attributes that the family's transformers class ignores, with the values that agree with what it does.
        groups: kernels of one block that read the same input, in data-flow order; paths are relative to the block.
        block_names: leaf path under `blocks/` -> tensor name within a layer.
        outer_names: path of a leaf outside the blocks -> tensor name.
        layer_prefix: what stands before the number of a layer in a tensor name.
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
        """Paths of the linear kernels of every block, in canonical order; each leaf is [layers, in, out]."""
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
        """Paths of every norm's scale that a model of this family can have."""
        blocks = (f"blocks/{path}" for path in self.block_names)
        return tuple(path for path in (*blocks, *self.outer_names) if path.endswith("norm/scale"))
