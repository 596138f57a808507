"""Describes a model family: config attributes, block recipe, Hugging Face names, and kernels with their groups.

The table of names is a part of the recipe: a block has the norms, and the fused or separate kernels, that have a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


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
        block_names: maps the path of a leaf under `blocks/` to its tensor name within a layer. A block can have the
            norms `attention_norm` and `mlp_norm` before attention and MLP, and `post_attention_norm` and
            `post_mlp_norm` after them.
        outer_names: maps the path of a leaf outside the blocks to its tensor name.
        layer_prefix: the part of a tensor name before the layer's number.
        qk_norm: whether queries and keys pass through an RMSNorm.
        qk_norm_joint: whether that norm runs over all heads together, and not over each head.
        qkv_bias: whether q, k and v have biases; None where the attribute `attention_bias` decides.
        o_bias: False where o has no bias whatever `attention_bias` says; None where o is as q, k and v are.
        norm_offset: number added to the stored scale of every norm.
        activation: function of the MLP's gate.
        scale_embedding: whether embeddings are multiplied by sqrt(hidden_size).
        windows: the layers that have a sliding window where `layer_types` does not say: all layers, the layers from
            `max_window_layers` on (upper), all but every n-th (pattern), or the layers that do not rotate (unrotated).
        full_every: n of the pattern.
        rope_kinds: values of `rope_type` that are handled.
        default_theta: rotary base where the config gives none.
        local_theta: rotary base of sliding layers where the config gives none; None where all layers share one table.
        query_growth: whether queries grow with their position by `llama_4_scaling_beta` of the rotary table.
        partial_rotary: share of a head's channels that rotate where the config gives none; None where all rotate.
        rotary_interleaved: whether neighbouring channels (2i, 2i + 1) rotate together, and not (i, i + half).
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
    qk_norm_joint: bool = False
    qkv_bias: bool | None = None
    o_bias: Literal[False] | None = None
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    scale_embedding: bool = False
    windows: Literal["all", "upper", "pattern", "unrotated"] = "all"
    full_every: int | None = None
    rope_kinds: tuple[str, ...] = ("default", "linear", "llama3")
    default_theta: float = 10000.0
    local_theta: float | None = None
    query_growth: bool = False
    partial_rotary: float | None = None
    rotary_interleaved: bool = False

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

    @property
    def block_norms(self) -> tuple[str, ...]:
        """Return the names of the norms around attention and MLP in a block of this family."""
        names = (path.removesuffix("/scale") for path in self.block_names if path.endswith("norm/scale"))
        return tuple(name for name in names if "/" not in name)

    @property
    def fused_qkv(self) -> bool:
        """Return whether one kernel computes queries, keys and values."""
        return "attention/qkv/kernel" in self.block_names

    @property
    def fused_mlp(self) -> bool:
        """Return whether one kernel computes the MLP's gate and up."""
        return "mlp/gate_up/kernel" in self.block_names
