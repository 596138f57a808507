"""Reads the `config.json` of a Hugging Face checkpoint into a ModelSpec, the numbers that the decoder needs.

A config that the decoder cannot run exactly is refused, and the message names the attribute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hcnr_jax.errors import InputError
from hcnr_jax.models.config_reader import ConfigReader
from hcnr_jax.models.families.family import Family
from hcnr_jax.models.families.shared_attributes import IGNORED, ONLY
from hcnr_jax.models.families.table import FAMILIES, WRAPPERS
from hcnr_jax.models.layer_kinds import layer_windows, rotated_layers
from hcnr_jax.models.rope import Rope, RopeScaling, rope_of, ropes_by_layer_type, rotary_share


@dataclass(frozen=True)
class ModelSpec:
    """Holds everything that decides the decoder's parameters and arithmetic.

    A spec is hashable, so that jax.jit can take it as a static argument. The fields not listed here have the meaning of
    the attribute of `config.json` with the same or a longer name, such as `num_hidden_layers` for `num_layers`.

    Attributes:
        family: the value of `model_type`.
        intermediate_size: width of the MLP's hidden layer.
        max_positions: longest context in tokens.
        rope_theta: base of the rotary frequencies.
        other_ropes: further rotary tables; None stands for a table that rotates nothing.
        layer_rotary: per layer, the index of its table: 0 for `rope_theta` with `rope_scaling`, i + 1 for
            `other_ropes[i]`. Empty where all layers have table 0.
        rotary_width: number of channels of a head that rotate, the first ones.
        tie_embeddings: whether the output head is the token embedding.
        qkv_bias: whether q, k and v have biases; `o_bias` and `mlp_bias` say the same of o and of the MLP.
        qk_norm: whether queries and keys pass through an RMSNorm.
        layer_windows: per layer, the number of tokens that a token sees, counting itself; None for all.
        query_scale: factor of q k^T in the attention scores.
        attention_softcap: bound c of the scores, c tanh(score / c); None for no bound.
        logit_softcap: the same bound of the logits.
        embedding_multiplier: factor of the embeddings, rounded to the compute dtype.
        residual_multiplier: factor of the outputs of attention and MLP before they are added to the residual stream.
        logits_scaling: divisor of the logits.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layer_windows: tuple[int | None, ...]
    other_ropes: tuple[Rope | None, ...]
    layer_rotary: tuple[int, ...]
    rotary_width: int
    query_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    embedding_multiplier: float
    residual_multiplier: float
    logits_scaling: float
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def recipe(self) -> Family:
        """Return the family of the model, which holds tensor names, kernels and groups."""
        return FAMILIES[self.family]

    @property
    def kernels(self) -> tuple[str, ...]:
        """Return the paths of the blocks' linear kernels in canonical order; each leaf is (layers, in, out)."""
        return self.recipe.kernels

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Return the groups of kernels that read the same input, in data-flow order, as paths within the block."""
        return self.recipe.groups


def spec_from_config(config: Mapping[str, Any], source: str) -> ModelSpec:
    """Read the raw `config.json` of a model of a supported family, as transformers 4 or 5 writes it.

    Args:
        config: the parsed JSON object. Absent attributes take the defaults of transformers' config classes.
        source: the file as the user typed its name, for messages.

    Raises:
        InputError: an unknown model type or architecture, a quantised model, an attribute that is not handled, or a
            value out of range. The message names the file, the attribute, the value and what is supported.

    Example:
        >>> from hcnr_jax.models import spec_from_config
        >>> config = {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        >>> spec = spec_from_config(config, source="config.json")
        >>> spec.head_dim, spec.qkv_bias
        (16, True)
    """
    family_name, family = _family(config, source)
    _refuse_unhandled(config, family, source)
    read = ConfigReader(config, family.defaults, source)
    hidden, heads = read.positive_int("hidden_size"), read.positive_int("num_attention_heads")
    layers, kv_heads = read.positive_int("num_hidden_layers"), read.positive_int("num_key_value_heads", or_none=heads)
    if heads % kv_heads:
        raise read.refusal("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    max_positions = read.positive_int("max_position_embeddings")
    windows = layer_windows(read, family, layers, rotated_layers(read, layers))
    rope, other_ropes, layer_rotary = _ropes(read, family, max_positions, windows)
    bias = family.qkv_bias is None and read.boolean("attention_bias")
    head_dim = _head_dim(read, hidden, heads)
    return ModelSpec(
        family=family_name,
        vocab_size=read.positive_int("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.positive_int("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        rms_norm_eps=read.positive_float("rms_norm_eps"),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        tie_embeddings=read.boolean("tie_word_embeddings"),
        qkv_bias=bias or bool(family.qkv_bias),
        o_bias=bias and family.o_bias is None,
        mlp_bias=read.handles("mlp_bias") and read.boolean("mlp_bias"),
        qk_norm=family.qk_norm,
        layer_windows=windows,
        other_ropes=other_ropes,
        layer_rotary=layer_rotary,
        rotary_width=_rotary_width(read, family, head_dim),
        query_scale=_query_scale(read, head_dim),
        attention_softcap=read.cap("attn_logit_softcapping"),
        logit_softcap=read.cap("final_logit_softcapping"),
        embedding_multiplier=hidden**0.5 if family.scale_embedding else read.multiplier("embedding_multiplier"),
        residual_multiplier=read.multiplier("residual_multiplier"),
        logits_scaling=read.multiplier("logits_scaling"),
        bos_token_id=next(iter(read.token_ids("bos_token_id")), None),
        eos_token_ids=read.token_ids("eos_token_id"),
    )


def _family(config: Mapping[str, Any], source: str) -> tuple[str, Family]:
    name = config.get("model_type")
    if isinstance(name, str) and name in WRAPPERS:
        raise InputError(
            f"{source}: model_type = {name!r} is not supported, since it holds an image encoder beside the text model; "
            f"save the language model and its head alone, as a model of model_type {WRAPPERS[name]!r}"
        )
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(f"{source}: model_type = {name!r} is not supported; expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    if (architectures := config.get("architectures")) not in (None, [family.architecture]):
        raise InputError(
            f"{source}: architectures = {architectures!r} is not supported; expected ['{family.architecture}'], "
            f"the causal language model of model_type {name!r}"
        )
    if (quantisation := config.get("quantization_config")) is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else quantisation
        raise InputError(
            f"{source}: quantization_config (quant_method {method!r}) is not supported: neurons are restored in plain "
            "bfloat16, float16 or float32 weights; give the model before it was quantised"
        )
    return name, family


def _refuse_unhandled(config: Mapping[str, Any], family: Family, source: str) -> None:
    only = {**ONLY, **family.only}
    complaints = []
    for name, value in config.items():
        bookkeeping = name in IGNORED or name.endswith("_token_id") or name.startswith("_")
        if name in family.defaults or bookkeeping or value is None:
            continue
        if name not in only:
            complaints.append(f"{name} = {value!r} is not an attribute this decoder handles; expected it to be absent")
        elif value not in only[name]:
            expected = " or ".join(map(repr, only[name])) or "it to be absent or null"
            complaints.append(f"{name} = {value!r} is not supported; expected {expected}")
    if complaints:
        raise InputError(f"{source}: " + f"\n{source}: ".join(complaints))


def _head_dim(read: ConfigReader, hidden: int, heads: int) -> int:
    if read.value("head_dim") is None and hidden % heads:
        raise read.refusal("num_attention_heads", f"a divisor of hidden_size ({hidden}), since head_dim is not given")
    head_dim = read.positive_int("head_dim", or_none=hidden // heads)
    if head_dim % 2:
        found = f"head_dim = {head_dim}"
        raise InputError(f"{read.source}: {found} is not supported; expected an even number, which rotary halves need")
    return head_dim


def _query_scale(read: ConfigReader, head_dim: int) -> float:
    if read.handles("query_pre_attn_scalar"):
        return read.positive_float("query_pre_attn_scalar") ** -0.5
    return read.positive_float("attention_multiplier") if read.handles("attention_multiplier") else head_dim**-0.5


def _rotary_width(read: ConfigReader, family: Family, head_dim: int) -> int:
    width = int(head_dim * rotary_share(read, family))
    if width < 2 or width % 2:
        raise InputError(
            f"{read.source}: partial_rotary_factor rotates {width} of {head_dim} channels of a head, which is not "
            "supported; expected an even number"
        )
    return width


def _ropes(
    read: ConfigReader, family: Family, max_positions: int, windows: tuple[int | None, ...]
) -> tuple[Rope, tuple[Rope | None, ...], tuple[int, ...]]:
    """Return the main rotary table, the further tables, and the index of each layer's table."""
    if family.local_theta is not None:
        rope, local = ropes_by_layer_type(read, family, max_positions)
        if local == rope:
            return rope, (), ()
        return rope, (local,), tuple(int(window is not None) for window in windows)
    rotated = rotated_layers(read, len(windows))
    rope = rope_of(read, family, max_positions)
    return (rope, (), ()) if all(rotated) else (rope, (None,), tuple(int(not turned) for turned in rotated))
