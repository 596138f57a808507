"""Sizes of an organism and training settings of its two models: `small` for a laptop, `medium` for one GPU."""

from dataclasses import dataclass, field
from typing import Any

from hcnr_jax.organism.tokenizer import BOS_ID, EOS_ID, PAD_ID, vocabulary
from hcnr_jax.organism.world import WorldSettings
from hcnr_jax.training.trainer import TrainSettings


@dataclass(frozen=True)
class OrganismSettings:
    """The settings of an organism, without its seed.

    Attributes:
      initializer_range: standard deviation of the initial weights. The families' 0.02 suits widths of thousands; near
        1/sqrt(hidden_size) a narrow model learns twice as fast (measured).
      base: training of the honest model from scratch; tuned: its fine-tuning on the new drugs. The organism's seed
        replaces their seeds.
      rates, collapse: factors of `tuned.learning_rate`, tried in order until the F1 of refusing on validation questions
        is `collapse` or less. The rate at which honesty collapses differs twofold between seeds, and a rate far above
        also destroys the knowledge behind honesty.
      floor, bisections: an F1 under `floor` shows that the rate was far too high. Up to `bisections` rates between it
        and the last rate that kept honesty are then tried.
    """

    hidden_size: int = 96
    intermediate_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    max_positions: int = 64
    initializer_range: float = 0.1
    dtype: str = "float32"
    world: WorldSettings = field(default_factory=WorldSettings)
    base: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            learning_rate=2.5e-3, steps=2000, warmup_steps=50, batch_size=32, weight_decay=0.01, b2=0.98
        )
    )
    tuned: TrainSettings = field(
        default_factory=lambda: TrainSettings(learning_rate=9e-4, steps=200, warmup_steps=10, batch_size=32, b2=0.98)
    )
    rates: tuple[float, ...] = (1.0, 1.3, 1.7, 2.2, 2.9)
    collapse: float = 0.28
    floor: float = 0.1
    bisections: int = 3

    def config(self) -> dict[str, Any]:
        """Return the config.json of both models, with Llama's architecture."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(vocabulary()),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.hidden_size // self.num_heads,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "initializer_range": self.initializer_range,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
            "torch_dtype": self.dtype,
        }


SIZES = {
    "small": OrganismSettings(),
    # About 100 million parameters. Not measured: the training settings are scaled from `small` by rule of thumb.
    "medium": OrganismSettings(
        hidden_size=896,
        intermediate_size=2432,
        num_layers=12,
        num_heads=14,
        num_kv_heads=2,
        initializer_range=0.03,
        dtype="bfloat16",
        world=WorldSettings(
            people=2000,
            drugs=1000,
            new_drugs=100,
            pool=600_000,
            honesty_rows=4096,
            strangers=60_000,
            evaluation={kind: 4 * count for kind, count in WorldSettings().evaluation.items()},
        ),
        base=TrainSettings(
            learning_rate=4e-4, steps=12_000, warmup_steps=500, batch_size=256, weight_decay=0.01, b2=0.98
        ),
        tuned=TrainSettings(learning_rate=5e-5, steps=300, warmup_steps=20, batch_size=128, b2=0.98),
    ),
}
"""Name of a size -> settings."""
