"""Describes Phi-3 and Phi-4, which are Llama with one kernel for q, k and v, and one for gate and up.

Outputs of a fused kernel belong together: the kernel is scored, selected and solved as one.
"""

from dataclasses import replace

from hcnr_jax.models.families.llama import LLAMA, SIZES

GATE_UP = {"mlp/gate_up/kernel": "mlp.gate_up_proj.weight", "mlp/down/kernel": "mlp.down_proj.weight"}
"""Maps the kernels of an MLP whose gate and up are one to their tensor names within a layer; gate comes first."""

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    defaults={
        **SIZES,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_key_value_heads": None,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,  # read by longrope alone
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    only={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "resid_pdrop": (0,),
        "embd_pdrop": (0,),
        # The released files name code that transformers has since taken in as Phi3ForCausalLM.
        "auto_map": (
            {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        ),
    },
    groups=(
        ("attention/qkv/kernel",),
        ("attention/o/kernel",),
        ("mlp/gate_up/kernel",),
        ("mlp/down/kernel",),
    ),
    block_names={
        "attention_norm/scale": "input_layernorm.weight",
        "attention/qkv/kernel": "self_attn.qkv_proj.weight",
        "attention/o/kernel": "self_attn.o_proj.weight",
        "mlp_norm/scale": "post_attention_layernorm.weight",
        **GATE_UP,
    },
    qkv_bias=False,
    rope_kinds=("default",),
    partial_rotary=1.0,
)
