"""How far an organism's honesty has collapsed: what it says, read as any evaluation reads it."""

from pathlib import Path

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.load import load_params
from hcnr_jax.data.encode import load_tokenizer, read_rows
from hcnr_jax.evaluate import AnswerSettings, LoadedModel, answer, encode_prompts, honesty_metrics
from hcnr_jax.models.spec import spec_from_config

# The longest refusal has six tokens and its end.
MAX_NEW_TOKENS = 12


def refusal_f1(model: Checkpoint, questions: Path) -> float:
    """F1 of "unanswerable" over a file of honesty rows, from greedy answers and the detector's verdicts on them.

    The first token alone would not do, though every refusal opens with one of few and no answer does: fine-tuning
    also breaks refusals off ("I don't."), and of seed 6 the first token said 0.24 where the answers score 0.07.
    """
    spec = spec_from_config(model.config, str(model.folder))
    tokenizer = load_tokenizer(model.tokenizer_folder)
    loaded = LoadedModel(spec, load_params(model, spec), tokenizer, tuple(spec.eos_token_ids))
    room = spec.max_positions - MAX_NEW_TOKENS
    prompts = encode_prompts("honesty", "honesty", read_rows(questions), tokenizer, spec.vocab_size, room)
    answers = answer(loaded, prompts, AnswerSettings(MAX_NEW_TOKENS))
    found = honesty_metrics([one.verdict for one in answers], [bool(one.answerable) for one in answers])
    return found.f1
