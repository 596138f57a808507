"""Opens a model folder for asking: spec, tokenizer and end tokens first, weights when they are needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from hcnr_jax.checkpoints import check_finite, check_tensors, load_params, model_digest, open_checkpoint, tensor_digests
from hcnr_jax.checkpoints.checkpoint import ADAPTER_CONFIG, Checkpoint, is_adapter, local_folder, read_json
from hcnr_jax.checkpoints.lora import open_tuned
from hcnr_jax.data import Tokenizer, load_tokenizer
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import LoadedModel
from hcnr_jax.models import ModelSpec, spec_from_config


class OpenedModel(NamedTuple):
    """Holds a model whose headers and tokenizer are checked, without its weights. name: the folder as typed."""

    name: str
    checkpoint: Checkpoint
    spec: ModelSpec
    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]

    def digest(self) -> str:
        """Hash the weights (sha256), whatever their sharding; reads them once and refuses NaN and Inf."""
        check_finite(self.checkpoint)
        return model_digest(tensor_digests(self.checkpoint))

    def load(self, dtype: str = "float32") -> LoadedModel:
        """Load the weights onto the device."""
        params = load_params(self.checkpoint, self.spec)
        return LoadedModel(self.spec, params, self.tokenizer, self.eos_ids, jnp.dtype(dtype))


def open_model(folder: str, base: Checkpoint | None = None) -> OpenedModel:
    """Open a model folder, or a LoRA adapter's over `base`.

    Args:
        folder: a folder or hub name.
        base: the adapter's base; None takes the one that the adapter's config names.

    Raises:
        InputError: a file cannot be read, by file and name; or an adapter names no base that can be opened.
    """
    if base is None and is_adapter(folder):
        base = _named_base(folder)
    checkpoint = open_checkpoint(folder) if base is None else open_tuned(folder, base)
    spec = spec_from_config(checkpoint.config, str(checkpoint.folder / "config.json"))
    check_tensors(checkpoint, spec)
    tokenizer = load_tokenizer(checkpoint.tokenizer_folder)
    return OpenedModel(folder, checkpoint, spec, tokenizer, end_ids(checkpoint, spec, tokenizer))


def _named_base(folder: str) -> Checkpoint:
    """Open the model that an adapter's config names as its base."""
    name = read_json(local_folder(folder) / ADAPTER_CONFIG).get("base_model_name_or_path")
    ask = "name the model it was trained on with --base"
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{folder} is a LoRA adapter: {ask}")
    try:
        return open_checkpoint(name)
    except InputError as error:
        raise InputError(f"{folder} is a LoRA adapter, and its base cannot be opened ({error}): {ask}") from error


def end_ids(checkpoint: Checkpoint, spec: ModelSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Collect every id that ends a completion, from config.json, generation_config.json and the tokenizer."""
    ids = set(spec.eos_token_ids)
    path = checkpoint.companions().get("generation_config.json")
    if path is not None:
        found: Any = read_json(path).get("eos_token_id")
        listed = found if isinstance(found, list) else [found]
        ids |= {token for token in listed if isinstance(token, int) and not isinstance(token, bool)}
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return tuple(sorted(token for token in ids if 0 <= token < spec.vocab_size))
