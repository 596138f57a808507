"""Lists the supported families by `model_type`. To add a family, write its file and an entry here."""

from hcnr_jax.models.families.family import Family
from hcnr_jax.models.families.llama import LLAMA
from hcnr_jax.models.families.mistral import MISTRAL
from hcnr_jax.models.families.qwen2 import QWEN2
from hcnr_jax.models.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}
"""Maps `model_type` to the family."""
