"""Describes OLMo 3, which is OLMo 2 with a window in three of four layers, and YaRN in the other layers."""

from dataclasses import replace

from hcnr_jax.models.families.olmo2 import OLMO2, OLMO_SIZES

OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    defaults={**OLMO_SIZES, "sliding_window": 4096},
    windows="pattern",
    full_every=4,
    rope_kinds=(*OLMO2.rope_kinds, "yarn"),
    default_theta=500_000.0,
    local_theta=500_000.0,
)
