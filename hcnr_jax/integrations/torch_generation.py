"""Generates greedy continuations with a PyTorch model in training, and leaves the model as it was.

PyTorch is imported inside the functions, because it is no dependency of hcnr_jax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hcnr_jax.evaluate.ask.completions import Ids, up_to_end
from hcnr_jax.evaluate.ask.hidden_states import left_padded


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Switch the model to evaluation; restore every module's mode, `use_cache` and the random states afterwards."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    configs = [config for name in ("config", "generation_config") if (config := getattr(model, name, None)) is not None]
    caches = [(config, config.use_cache) for config in configs if hasattr(config, "use_cache")]
    devices = sorted({part.device for part in model.parameters() if part.device.type == "cuda"}, key=str)
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for config, use_cache in caches:
            config.use_cache = use_cache


def end_ids_of(model: Any, tokenizer: Any) -> Ids:
    """Collect every id that ends a completion, from the model's two configurations and the tokenizer."""
    sources = [getattr(model, "config", None), getattr(model, "generation_config", None)]
    found = [getattr(source, "eos_token_id", None) for source in sources] + [tokenizer.eos_token_id]
    listed = [ids if isinstance(ids, (list, tuple)) else [ids] for ids in found]
    return tuple(sorted({int(token) for ids in listed for token in ids if token is not None}))


def greedy_ids(model: Any, prompts: Sequence[Ids], end_ids: Ids, *, max_new_tokens: int, batch_size: int) -> list[Ids]:
    """Generate the greedy continuation of each prompt, in prompt order, up to and with the end token.

    Padding is made here, on the left, so that the tokenizer's own padding side does not matter.

    Args:
        model: a PyTorch model with transformers' `generate`.
        prompts: token ids, unpadded.
        end_ids: ids that end a completion.
        max_new_tokens: maximum tokens of a continuation.
        batch_size: prompts generated at once.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    device, settings = next(model.parameters()).device, _greedy(end_ids, max_new_tokens)
    found: dict[int, Ids] = {}
    with evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            length = max(len(prompts[index]) for index in batch)
            tokens, mask = left_padded([prompts[index] for index in batch], length, len(batch))
            out = model.generate(
                input_ids=torch.tensor(tokens, dtype=torch.long, device=device),
                attention_mask=torch.tensor(mask, dtype=torch.long, device=device),
                generation_config=settings,
            )
            new = out[:, length:].tolist()
            found |= {index: up_to_end(row, end_ids) for index, row in zip(batch, new, strict=True)}
    return [found[index] for index in range(len(prompts))]


def _greedy(end_ids: Ids, max_new_tokens: int) -> Any:
    """Make settings of greedy decoding; values that are set here win over the model's own generation settings."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        temperature=1.0,  # unused here; the model's own value would only raise a warning
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(end_ids) or None,
        pad_token_id=end_ids[0] if end_ids else 0,
    )
