"""Trains low-rank adapters (LoRA, arXiv 2106.09685) for any kernel of the decoder, with W frozen.

    y = x W + s (x A) B,    s = alpha / r

A (in, r) and B (r, out) are leaves beside each kernel in the parameter tree, where nn.scan and nn.remat carry them.
`adapted` adds the second term to the output of nn.Dense, and the model's code does not mention adapters. Computing
W + s A B inside the loss would instead hold a second copy of every kernel and its whole gradient.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from safetensors.numpy import save_file

from hcnr_jax.checkpoints.checkpoint import ADAPTER_CONFIG
from hcnr_jax.checkpoints.lora import ADAPTER_WEIGHTS
from hcnr_jax.checkpoints.names import hf_name_of
from hcnr_jax.errors import InputError
from hcnr_jax.method import taps
from hcnr_jax.models.families.family import Family
from hcnr_jax.models.families.llama import LLAMA
from hcnr_jax.runtime.files import staged_folder
from hcnr_jax.training.objectives import Logits, logits_of
from hcnr_jax.training.trainer import Objective

Params = dict[str, Any]

_PEFT_PREFIX = "base_model.model."


def init_adapters(params: Params, rank: int, key: PRNGKeyArray, kernels: Sequence[str]) -> Params:
    """Draw adapters for stacked kernels: `lora_a` uniform in +-1/sqrt(in), as PEFT does, and `lora_b` zero.

    Args:
      params: the parameter tree, whose kernels are (layers, in, out).
      rank: r, the inner size of A and B.
      key: random key, split over the kernels.
      kernels: paths of the kernels to adapt, such as "blocks/attention/q/kernel".

    Returns:
      A float32 tree of the kernels' parents only, such as `{"blocks": {"attention": {"q": {"lora_a": ..., "lora_b":
      ...}}}}`, with `lora_a` (layers, in, rank) and `lora_b` (layers, rank, out).

    Raises:
      InputError: a rank below 1, or above a kernel's smaller side, where low rank would save nothing.
    """
    adapters: Params = {}
    for path, kernel_key in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        layers, rows, columns = _at(params, path).shape
        if not 1 <= rank <= min(rows, columns):
            raise InputError(
                f"--lora {rank}: expected a rank from 1 to {min(rows, columns)}, the smaller side of {path}"
            )
        parent = adapters
        for name in path.split("/")[:-1]:
            parent = parent.setdefault(name, {})
        bound = rows**-0.5
        parent["lora_a"] = jax.random.uniform(kernel_key, (layers, rows, rank), jnp.float32, -bound, bound)
        parent["lora_b"] = jnp.zeros((layers, rank, columns), jnp.float32)
    return adapters


def joined(params: Params, adapters: Params) -> Params:
    """Return a tree with the leaves of both; the adapters' leaves lie beside the kernels."""
    both = dict(params)
    for name, value in adapters.items():
        both[name] = joined(params[name], value) if isinstance(value, dict) and name in params else value
    return both


def scaled(adapters: Params, scale: float) -> Params:
    """Return adapters with `scale B` in place of B, which take the place of `adapters` in `adapted(1.0)`."""
    return {
        name: scaled(value, scale) if isinstance(value, dict) else value * scale if name == "lora_b" else value
        for name, value in adapters.items()
    }


def adapted(scale: float) -> AbstractContextManager[None]:
    """Add `scale (x A) B` to the output of every `nn.Dense` that has the two adapter leaves, inside this context."""

    def compute(call: taps.Call, found: dict[str, Array]) -> Array:
        output = call.plain(call.inputs)
        a, b = (jnp.asarray(found[name], output.dtype) for name in ("lora_a", "lora_b"))
        return output + (call.inputs.astype(output.dtype) @ a) @ b * jnp.asarray(scale, output.dtype)

    return taps.replace(("lora_a", "lora_b"), compute)


def lora_objective(make: Callable[[Logits], Objective], model: nn.Module, params: Params, scale: float) -> Objective:
    """Make the objective `make(logits)` as a function of the adapters alone.

    The result is a `jax.tree_util.Partial`, so that the frozen weights enter the compiled step as arguments.

    Args:
      make: makes an objective from a forward pass, such as `sft`.
      model: the language model in Linen.
      params: the frozen weights, which keep their dtype.
      scale: alpha / r.
    """

    plain = logits_of(model)

    def logits(both: PyTree, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t v"]:
        with adapted(scale):
            return plain(both, tokens, mask)

    inner = make(logits)

    def objective(
        frozen: Params, adapters: Params, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return inner(joined(frozen, adapters), batch, key)

    return jax.tree_util.Partial(objective, params)


def merge_adapters(params: Params, adapters: Params, scale: float) -> Params:
    """Return the parameters with `W + scale A B` in place of every adapted kernel W.

    The sum is computed in float32 and cast to W's dtype. Other leaves stay as they are.
    """
    merged = dict(params)
    for name, value in adapters.items():
        merged[name] = merge_adapters(params[name], value, scale) if isinstance(value, dict) else value
    if "lora_a" in adapters:
        kernel = params["kernel"]
        update = jnp.einsum("lir,lro->lio", adapters["lora_a"], adapters["lora_b"], precision="highest")
        merged["kernel"] = (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
        del merged["lora_a"], merged["lora_b"]
    return merged


def adapter_tensors(adapters: Params, family: Family = LLAMA) -> dict[str, np.ndarray]:
    """Convert adapters to PEFT's float32 tensors, named as the family names its modules.

    The names are `base_model.model.<module>.lora_A.weight` (r, in) and `lora_B.weight` (out, r).
    """
    tensors = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        *parents, name = [key.key for key in keys]
        part = {"lora_a": "lora_A", "lora_b": "lora_B"}[name]
        for layer, matrix in enumerate(np.asarray(leaf, np.float32)):
            module = hf_name_of("/".join([*parents, "kernel"]), layer, family).removesuffix(".weight")
            tensors[f"{_PEFT_PREFIX}{module}.{part}.weight"] = np.ascontiguousarray(matrix.T)
    return tensors


def save_adapter(
    out: str | Path,
    adapters: Params,
    alpha: float,
    *,
    base_folder: str | Path,
    family: Family = LLAMA,
    extra_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a PEFT adapter folder: adapter_config.json and adapter_model.safetensors.

    Args:
      out: the folder to write, which does not exist yet or is empty.
      adapters: a tree from `init_adapters`, after training.
      alpha: LoRA's alpha; the update is scaled by alpha / rank.
      base_folder: the model that the adapter belongs to. The adapter's config names this folder; nothing writes to it.
      family: the model family, which gives the names of the modules.
      extra_files: maps the name of each further file to its content.

    Returns:
      The resolved output path.

    Raises:
      InputError: `out` cannot be used, or the disk failed or is full. Nothing is left behind.
    """
    tensors = adapter_tensors(adapters, family)
    rank = next(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight"))
    config = adapter_config(tensors, rank, alpha, base_folder)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with staged_folder(out, [base_folder], needed_bytes=size) as stage:
        save_file(tensors, stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (stage / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in (extra_files or {}).items():
            (stage / name).write_bytes(content)
    return Path(out).expanduser().resolve()


def adapter_config(
    tensors: Mapping[str, np.ndarray], rank: int, alpha: float, base_folder: str | Path
) -> dict[str, Any]:
    """Return the content of PEFT's adapter_config.json for a plain LoRA adapter.

    Args:
      tensors: the adapter's tensors by PEFT's names, which give the target modules.
      rank: rank of A and B.
      alpha: LoRA's alpha; the update is scaled by alpha / rank.
      base_folder: the model that the adapter belongs to.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_folder),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _at(params: Params, path: str) -> Any:
    for name in path.split("/"):
        params = params[name]
    return params
