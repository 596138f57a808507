"""Reads the `config.json` of a Hugging Face checkpoint into a ModelSpec, the numbers that the decoder needs.

A config that the decoder cannot run exactly is refused, and the message names the attribute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hcnr_jax.errors import InputError
from hcnr_jax.models.families.family import Family
from hcnr_jax.models.families.shared_attributes import DEFAULT_ROPE_THETA, IGNORED, ONLY
from hcnr_jax.models.families.table import FAMILIES


@dataclass(frozen=True)
class RopeScaling:
    """Says how the rotary frequencies f are changed for longer contexts.

    `linear` divides every f by `factor`. `llama3` keeps f where the wavelength 2 pi / f is under
    `original_max_positions / high_freq_factor` tokens. Where the wavelength is over
    `original_max_positions / low_freq_factor`, f is divided by `factor`; in between, the two are blended.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_positions: int | None = None


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
        tie_embeddings: whether the output head is the token embedding.
        qkv_bias: whether q, k and v have biases; `o_bias` and `mlp_bias` say the same of o and of the MLP.
        qk_norm: whether queries and keys of each head pass through an RMSNorm.
        layer_windows: per layer, the number of tokens that a token sees, counting itself; None for all.
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
    """Read the raw `config.json` of a Llama, Mistral, Qwen2 or Qwen3 model, as transformers 4 or 5 writes it.

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
    read = _Reader(config, family.defaults, source)
    hidden, heads = read.positive_int("hidden_size"), read.positive_int("num_attention_heads")
    layers, kv_heads = read.positive_int("num_hidden_layers"), read.positive_int("num_key_value_heads", or_none=heads)
    if heads % kv_heads:
        raise read.refusal("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    max_positions = read.positive_int("max_position_embeddings")
    theta, scaling = _rope(read, max_positions)
    bias = family.qkv_bias is None and read.boolean("attention_bias")
    return ModelSpec(
        family=family_name,
        vocab_size=read.positive_int("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.positive_int("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(read, hidden, heads),
        max_positions=max_positions,
        rms_norm_eps=read.positive_float("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=read.boolean("tie_word_embeddings"),
        qkv_bias=bias or bool(family.qkv_bias),
        o_bias=bias,
        mlp_bias="mlp_bias" in family.defaults and read.boolean("mlp_bias"),
        qk_norm=family.qk_norm,
        layer_windows=_layer_windows(read, layers),
        bos_token_id=next(iter(read.token_ids("bos_token_id")), None),
        eos_token_ids=read.token_ids("eos_token_id"),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads typed values of a config with its family's defaults; every refusal names file, attribute and value."""

    config: Mapping[str, Any]
    defaults: Mapping[str, Any]
    source: str

    def value(self, name: str) -> Any:
        return self.config.get(name, self.defaults.get(name))

    def refusal(self, name: str, expected: str) -> InputError:
        return InputError(f"{self.source}: {name} = {self.value(name)!r} is not supported; expected {expected}")

    def positive_int(self, name: str, or_none: int | None = None) -> int:
        value = self.value(name)
        if value is None and or_none is not None:
            return or_none
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(name, "a positive integer")
        return value

    def positive_float(self, name: str) -> float:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.refusal(name, "a positive number")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        value = self.value(name)
        ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise self.refusal(name, "an integer, a list of integers or null")
        return ids


def _family(config: Mapping[str, Any], source: str) -> tuple[str, Family]:
    name = config.get("model_type")
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


def _head_dim(read: _Reader, hidden: int, heads: int) -> int:
    if read.value("head_dim") is None and hidden % heads:
        raise read.refusal("num_attention_heads", f"a divisor of hidden_size ({hidden}), since head_dim is not given")
    head_dim = read.positive_int("head_dim", or_none=hidden // heads)
    if head_dim % 2:
        found = f"head_dim = {head_dim}"
        raise InputError(f"{read.source}: {found} is not supported; expected an even number, which rotary halves need")
    return head_dim


_ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rope(read: _Reader, max_positions: int) -> tuple[float, RopeScaling | None]:
    """Read rotary base and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    found = {}
    for name in ("rope_parameters", "rope_scaling"):
        table = read.value(name)
        if table is not None and not isinstance(table, Mapping):
            raise read.refusal(name, "an object or null")
        if table:
            found[name] = _rope_table(read, name, table, max_positions)
    if len(set(found.values())) > 1:
        raise read.refusal(
            "rope_scaling", f"the same as rope_parameters ({read.value('rope_parameters')!r}), or absent"
        )
    theta, scaling = next(iter(found.values()), (None, None))
    if read.value("rope_theta") is None:
        return theta or DEFAULT_ROPE_THETA, scaling
    outer = read.positive_float("rope_theta")
    if theta is not None and theta != outer:
        raise read.refusal("rope_theta", f"the same as in {next(iter(found))} ({theta}), or absent")
    return outer, scaling


def _rope_table(
    read: _Reader, name: str, table: Mapping[str, Any], max_positions: int
) -> tuple[float | None, RopeScaling | None]:
    kinds = [table[key] for key in ("rope_type", "type") if table.get(key) is not None] or ["default"]
    kind = kinds[0]
    if kinds[0] != kinds[-1] or not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise read.refusal(name, f"one rope_type of {', '.join(_ROPE_KEYS)}")
    for key, value in table.items():
        known = key in ("rope_type", "type", "rope_theta", *_ROPE_KEYS[kind])
        if not known and value is not None and (key, value) != ("partial_rotary_factor", 1):
            raise InputError(
                f"{read.source}: {name}.{key} = {value!r} is not supported; with rope_type {kind!r} expected only "
                + ", ".join(("rope_theta", *_ROPE_KEYS[kind]))
            )
    given = {key: value for key, value in table.items() if value is not None}
    inner = _Reader({f"{name}.{key}": value for key, value in given.items()}, {}, read.source)
    theta = inner.positive_float(f"{name}.rope_theta") if "rope_theta" in given else None
    if kind == "default":
        return theta, None
    factor = inner.positive_float(f"{name}.factor")
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low, high = (inner.positive_float(f"{name}.{end}_freq_factor") for end in ("low", "high"))
    if low >= high:
        raise inner.refusal(f"{name}.high_freq_factor", f"more than low_freq_factor ({low})")
    original = inner.positive_int(f"{name}.original_max_position_embeddings", or_none=max_positions)
    return theta, RopeScaling("llama3", factor, low, high, original)


def _layer_windows(read: _Reader, layers: int) -> tuple[int | None, ...]:
    """Return the window of each layer. Qwen chooses by layer (`use_sliding_window`), Mistral has one for all layers,
    and Llama has none.
    """
    chooses = "use_sliding_window" in read.defaults
    sliding = read.boolean("use_sliding_window") if chooses else "sliding_window" in read.defaults
    window = read.positive_int("sliding_window") if sliding and read.value("sliding_window") is not None else None
    first = read.value("max_window_layers") if chooses else 0
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise read.refusal("max_window_layers", "a whole number of layers")
    by_rule = tuple(window if layer >= first else None for layer in range(layers))
    if (types := read.value("layer_types")) is None:
        return by_rule
    if not isinstance(types, list | tuple) or len(types) != layers:
        raise read.refusal("layer_types", f"a list of {layers} names (num_hidden_layers) or null")
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise read.refusal("layer_types", f"full_attention and sliding_attention only, not {sorted(map(str, unknown))}")
    if window is None and "sliding_attention" in types:
        raise read.refusal("layer_types", "full_attention only, since no sliding window is in use")
    by_type = tuple(window if kind == "sliding_attention" else None for kind in types)
    if not chooses and by_type != by_rule:
        raise read.refusal("layer_types", f"one kind for all layers, that of sliding_window = {window!r}")
    return by_type
