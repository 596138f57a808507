"""Lists the supported families by `model_type`. To add a family, write its file and an entry here."""

from hcnr_jax.models.families.family import Family
from hcnr_jax.models.families.gemma2 import GEMMA2
from hcnr_jax.models.families.gemma3 import GEMMA3
from hcnr_jax.models.families.glm4 import GLM4
from hcnr_jax.models.families.granite import GRANITE
from hcnr_jax.models.families.llama import LLAMA
from hcnr_jax.models.families.ministral3 import MINISTRAL3
from hcnr_jax.models.families.mistral import MISTRAL
from hcnr_jax.models.families.olmo2 import OLMO2
from hcnr_jax.models.families.olmo3 import OLMO3
from hcnr_jax.models.families.phi3 import PHI3
from hcnr_jax.models.families.qwen2 import QWEN2
from hcnr_jax.models.families.qwen3 import QWEN3
from hcnr_jax.models.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, GEMMA2, OLMO2, OLMO3, SMOLLM3, GRANITE, PHI3, GLM4, MINISTRAL3)
}
"""Maps `model_type` to the family."""

WRAPPERS: dict[str, str] = {"gemma3": "gemma3_text"}
"""Maps the `model_type` of a model that reads images as well to that of its text model, which is supported alone."""
