"""Measures how far an organism's honesty has collapsed, with the same detector as `hcnr evaluate`."""

from pathlib import Path

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.load import load_params
from hcnr_jax.data.encode import load_tokenizer, read_rows
from hcnr_jax.evaluate import AnswerSettings, LoadedModel, answer, encode_prompts, honesty_metrics
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.models.spec import spec_from_config

# The longest refusal has six tokens and its end.
MAX_NEW_TOKENS = 12


def refusal_f1(model: Checkpoint, questions: Path) -> float:
    """Compute the F1 of refusing over a file of honesty rows, from greedy answers and the detector's verdicts.

    The first token alone is not enough, although refusals and answers never share one. Fine-tuning also cuts refusals
    short ("I don't."): for seed 6 the first token gave an F1 of 0.24, the answers 0.07.
    """
    spec = spec_from_config(model.config, str(model.folder))
    tokenizer = load_tokenizer(model.tokenizer_folder)
    loaded = LoadedModel(spec, load_params(model, spec), tokenizer, tuple(spec.eos_token_ids))
    room = spec.max_positions - MAX_NEW_TOKENS
    rows = read_rows(questions)
    prompts = encode_prompts(
        HONESTY.name, HONESTY.name, rows, tokenizer=tokenizer, vocab_size=spec.vocab_size, max_tokens=room
    )
    answers = answer(loaded, prompts, AnswerSettings(MAX_NEW_TOKENS))
    found = honesty_metrics([one.verdict for one in answers], [bool(one.answerable) for one in answers])
    return found.f1
