"""Reads rotary bases, scalings and the rotated share of a head from a `config.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hcnr_jax.errors import InputError
from hcnr_jax.models.config_reader import ConfigReader
from hcnr_jax.models.families.family import Family


@dataclass(frozen=True)
class RopeScaling:
    """Says how the rotary frequencies f are changed for longer contexts.

    `linear` divides every f by `factor`. `llama3` keeps f where the wavelength 2 pi / f is under
    `original_max_positions / high_freq_factor` tokens. Where the wavelength is over
    `original_max_positions / low_freq_factor`, f is divided by `factor`; in between, the two are blended.

    `yarn` keeps f where a channel turns more than `beta_fast` times in `original_max_positions` tokens. Where the
    channel turns fewer than `beta_slow` times, f is divided by `factor`; in between, the two are blended over the
    channels. Cosines and sines are multiplied by `attention_factor`, and the query at position p by
    1 + query_growth ln(1 + floor(p / original_max_positions)).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_positions: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    query_growth: float = 0.0


@dataclass(frozen=True)
class Rope:
    """Holds the base of a table of rotary frequencies, and the table's scaling."""

    theta: float
    scaling: RopeScaling | None = None


_Found = tuple[float | None, RopeScaling | None]

_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}


_GROWTH_KEYS = ("mscale", "mscale_all_dim", "llama_4_scaling_beta", "max_position_embeddings")


def rope_of(read: ConfigReader, family: Family, max_positions: int) -> Rope:
    """Read rotary base and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    found = {}
    if "default" not in family.rope_kinds and not _object(read, "rope_parameters"):
        raise read.refusal("rope_parameters", f"an object with a rope_type of {', '.join(family.rope_kinds)}")
    for name in ("rope_parameters", "rope_scaling"):
        if table := _object(read, name):
            found[name] = _table(read, family, name, table, max_positions)
    if len(set(found.values())) > 1:
        raise read.refusal(
            "rope_scaling", f"the same as rope_parameters ({read.value('rope_parameters')!r}), or absent"
        )
    inner, scaling = next(iter(found.values()), (None, None))
    return Rope(_theta(read, "rope_theta", inner, next(iter(found), ""), family.default_theta), scaling)


def ropes_by_layer_type(read: ConfigReader, family: Family, max_positions: int) -> tuple[Rope, Rope]:
    """Read the tables of full and of sliding layers.

    transformers 5 writes an object of two tables, `rope_parameters`. Version 4 wrote `rope_theta` and `rope_scaling`
    for full layers and, where the family has it, `rope_local_base_freq` for sliding ones.

    Raises:
        InputError: two places differ, or a table is not understood.
    """
    tables = _object(read, "rope_parameters") or {}
    found: dict[str, _Found] = {}
    for kind, table in tables.items():
        name = f"rope_parameters.{kind}"
        inner = ConfigReader({name: table}, {}, read.source)
        if kind not in ("full_attention", "sliding_attention"):
            raise inner.refusal(name, "only full_attention and sliding_attention in rope_parameters")
        if not isinstance(table, Mapping):
            raise inner.refusal(name, "an object")
        found[kind] = _table(inner, family, name, table, max_positions)
    theta, scaling = found.get("full_attention", (None, None))
    if outer := _object(read, "rope_scaling"):
        _, given = _table(read, family, "rope_scaling", outer, max_positions)
        if "full_attention" in found and given != scaling:
            raise read.refusal("rope_scaling", "the same as rope_parameters.full_attention, or absent")
        scaling = given
    full = Rope(_theta(read, "rope_theta", theta, "rope_parameters.full_attention", family.default_theta), scaling)
    local, local_scaling = found.get("sliding_attention", (None, None))
    default = family.local_theta or family.default_theta
    if not read.handles("rope_local_base_freq"):
        # transformers 4 used rope_theta for both kinds, and transformers 5 uses the default for sliding layers.
        if local is None and full.theta != default:
            raise read.refusal("rope_theta", f"{default}, or rope_parameters with both kinds of layer")
        return full, Rope(default if local is None else local, local_scaling)
    place = "rope_parameters.sliding_attention"
    return full, Rope(_theta(read, "rope_local_base_freq", local, place, default), local_scaling)


def rotary_share(read: ConfigReader, family: Family) -> float:
    """Read the share of a head's channels that are rotated, from `rope_parameters` or beside it."""
    inside = (_object(read, "rope_parameters") or {}).get("partial_rotary_factor")
    outside = read.value("partial_rotary_factor")
    if family.partial_rotary is None:
        if outside not in (None, 1):
            raise read.refusal("partial_rotary_factor", "1")
        return 1.0
    name = "partial_rotary_factor"
    if inside is not None and outside is not None and inside != outside:
        raise read.refusal(name, f"the same as in rope_parameters ({inside!r}), or absent")
    share = ConfigReader({name: outside if inside is None else inside}, {}, read.source)
    if share.positive_float(name, or_none=family.partial_rotary) > 1:
        raise share.refusal(name, "a number up to 1")
    return share.positive_float(name, or_none=family.partial_rotary)


def _object(read: ConfigReader, name: str) -> Mapping[str, Any] | None:
    table = read.value(name)
    if table is not None and not isinstance(table, Mapping):
        raise read.refusal(name, "an object or null")
    return table


def _theta(read: ConfigReader, name: str, inner: float | None, place: str, default: float) -> float:
    """Return the base that stands in the table `place` or in the attribute `name`, which must agree."""
    if read.value(name) is None:
        return inner or default
    outer = read.positive_float(name)
    if inner is not None and inner != outer:
        raise read.refusal(name, f"the same as in {place} ({inner}), or absent")
    return outer


def _table(read: ConfigReader, family: Family, name: str, table: Mapping[str, Any], max_positions: int) -> _Found:
    kinds = [table[key] for key in ("rope_type", "type") if table.get(key) is not None] or ["default"]
    kind = kinds[0]
    if kinds[0] != kinds[-1] or not isinstance(kind, str) or kind not in family.rope_kinds:
        raise read.refusal(name, f"one rope_type of {', '.join(family.rope_kinds)}")
    partial = family.partial_rotary is not None
    keys = ("rope_theta", *_KEYS[kind], *(_GROWTH_KEYS if family.query_growth else ()))
    for key, value in table.items():
        known = key in ("rope_type", "type", *keys)
        known = known or (key == "partial_rotary_factor" and (partial or value == 1))
        if not known and value is not None:
            raise InputError(
                f"{read.source}: {name}.{key} = {value!r} is not supported; with rope_type {kind!r} expected only "
                + ", ".join(keys)
            )
    given = {key: value for key, value in table.items() if value is not None}
    inner = ConfigReader({f"{name}.{key}": value for key, value in given.items()}, {}, read.source)
    theta = inner.positive_float(f"{name}.rope_theta") if "rope_theta" in given else None
    return theta, _scaling(inner, kind, name, max_positions)


def _scaling(inner: ConfigReader, kind: str, name: str, max_positions: int) -> RopeScaling | None:
    if kind == "default":
        return None
    factor = inner.positive_float(f"{name}.factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = inner.positive_int(f"{name}.original_max_position_embeddings", or_none=max_positions)
    if kind == "yarn":
        fast, slow = inner.positive_float(f"{name}.beta_fast", 32.0), inner.positive_float(f"{name}.beta_slow", 1.0)
        attention = inner.positive_float(f"{name}.attention_factor", _attention_factor(inner, name, factor))
        growth = inner.value(f"{name}.llama_4_scaling_beta")
        growth = 0.0 if growth in (None, 0) else inner.positive_float(f"{name}.llama_4_scaling_beta")
        return RopeScaling("yarn", factor, None, None, original, fast, slow, attention, growth)
    low, high = (inner.positive_float(f"{name}.{end}_freq_factor") for end in ("low", "high"))
    if low >= high:
        raise inner.refusal(f"{name}.high_freq_factor", f"more than low_freq_factor ({low})")
    return RopeScaling("llama3", factor, low, high, original)


def _attention_factor(inner: ConfigReader, name: str, factor: float) -> float:
    """Return YaRN's factor of cosines and sines, m(mscale) / m(mscale_all_dim) or m(1), with m(s) = 1 + 0.1 s ln f."""

    def m(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    above, below = (inner.value(f"{name}.{key}") for key in ("mscale", "mscale_all_dim"))
    if not (above and below):
        return m(1.0)
    return m(inner.positive_float(f"{name}.mscale")) / m(inner.positive_float(f"{name}.mscale_all_dim"))
