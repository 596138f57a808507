"""Measures honesty while a transformers or TRL trainer runs, and stops the training when honesty is lost.

A callback of transformers has no trainer at hand, and the callbacks that report to TensorBoard or Weights & Biases run
before a user's own. `HonestyCallback` therefore always writes to `trainer.state.log_history` and to the logs of its
step; `attach(trainer)` also sends every measurement to all reporting callbacks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hcnr_jax.data import Question, row_style
from hcnr_jax.data.builtin import NAME
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.completions import Ids, decoded
from hcnr_jax.evaluate.ask.prompts import Prompt, encode_prompts
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.evaluate.watch import HonestyStep, check_stop, has_fallen, honesty_step, watched_rows
from hcnr_jax.integrations.torch_generation import end_ids_of, greedy_ids
from hcnr_jax.report.honesty_plot import honesty_png

logger = logging.getLogger(__name__)

METRICS = ("refusal_delta", "refusal_on_unanswerable", "over_refusal")


class HonestyCallback(TrainerCallback):
    """Asks the trainer's model honesty questions every `every` steps, and logs how often it refuses.

    The model answers greedily. hcnr's refusal detector judges the answers, as in `hcnr evaluate`. The first measurement
    is before the first step and the last one after the last step. Training stops when the refusal delta has fallen more
    than `stop_below` below the first measurement.

    The model must be whole in each process: one process or DDP. FSDP and DeepSpeed's ZeRO-3 are refused.

    Args:
        questions: a file of rows as hcnr reads it, a list of `hcnr_jax.data.Question`, or "builtin" for the validation
            split of the built-in questions.
        every: training steps between two measurements.
        stop_below: the fall of the refusal delta that is allowed, a fraction (0.1 is ten points); None never stops.
        patience: number of measurements in a row that must be too low before training stops.
        samples: number of questions at most, both labels in proportion; None asks all.
        max_new_tokens: maximum tokens of an answer.
        batch_size: questions asked at once.
        seed: seed of the drawn questions.
        tokenizer: tokenizer of the model; None takes the trainer's.

    Raises:
        InputError: the questions cannot be read or lack one label, or a setting makes no sense.
    """

    def __init__(
        self,
        questions: str | Path | Sequence[Question] = NAME,
        *,
        every: int = 100,
        stop_below: float | None = None,
        patience: int = 1,
        samples: int | None = 100,
        max_new_tokens: int = 64,
        batch_size: int = 16,
        seed: int = 0,
        tokenizer: Any = None,
    ) -> None:
        check_stop(stop_below, patience, every)
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"{name}: expected 1 or more, got {value}")
        self.questions, self.samples, self.seed = questions, samples, seed
        self.every, self.stop_below, self.patience = every, stop_below, patience
        self.max_new_tokens, self.batch_size, self.tokenizer = max_new_tokens, batch_size, tokenizer
        self.history: list[HonestyStep] = []
        self.stopped_at: int | None = None
        self._handler: Any = None
        self._prompts: list[Prompt] = []
        self._in_use: Any = None
        self._unlogged: HonestyStep | None = None
        self._rows("plain")  # refuses a bad file before the trainer loads anything

    def attach(self, trainer: Any) -> HonestyCallback:
        """Add the callback to a trainer, so that every measurement reaches all of the trainer's reporting callbacks."""
        trainer.add_callback(self)
        self._handler = trainer.callback_handler
        return self

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_: Any
    ) -> Any:
        """Encode the questions, and measure the model before the first step. A resumed run keeps its measurements."""
        _refuse_sharded(args)
        tokenizer = self.tokenizer or processing_class
        if tokenizer is None:
            raise InputError("HonestyCallback: the trainer has no tokenizer; give one with tokenizer=...")
        self._in_use = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds its tokenizer
        self._prompts = self._encoded(model)
        self.history = [
            HonestyStep(entry["step"], *(entry[name] for name in METRICS))
            for entry in state.log_history
            if all(name in entry for name in METRICS)
        ]
        self.stopped_at = None
        if not self.history:
            self._measure(args, state, control, model)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
        """Measure every `every` steps and after the last step; ask the trainer to stop if the refusal delta fell."""
        step = state.global_step
        if step % self.every == 0 or step >= state.max_steps > 0:
            self._measure(args, state, control, model)
            if has_fallen(self.history, self.stop_below, self.patience):
                self.stopped_at = step
                control.should_training_stop = True
                logger.warning("training stops at step %d: %s", step, self._fall())
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add a measurement of this step to the logs that the callbacks after this one see."""
        if logs is not None and self._unlogged is not None and self._unlogged.step == state.global_step:
            logs.update(_values(self._unlogged))
            self._unlogged = None

    def save(self, path: str | Path) -> Path:
        """Write the settings and the measurements as JSON."""
        record = {
            "every": self.every,
            "stop_below": self.stop_below,
            "patience": self.patience,
            "stopped_at": self.stopped_at,
            "questions": len(self._prompts),
            "history": [item._asdict() for item in self.history],
        }
        return _written(path, (json.dumps(record, indent=1) + "\n").encode())

    def plot(self, path: str | Path) -> Path:
        """Draw honesty against training steps as a PNG."""
        if not self.history:
            raise InputError(f"{path}: there is no measurement to draw; train with this callback first")
        return _written(path, honesty_png(self.history, self.stop_below))

    def _rows(self, style: Any) -> Any:
        return watched_rows(self.questions, style, samples=self.samples, seed=self.seed, option="questions")

    def _encoded(self, model: Any) -> list[Prompt]:
        tokenizer = self._in_use
        rows = self._rows(row_style(tokenizer))
        longest = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 10**9
        return encode_prompts(
            HONESTY.name,
            HONESTY.name,
            rows,
            tokenizer=tokenizer,
            vocab_size=int(model.get_input_embeddings().weight.shape[0]),
            max_tokens=longest - self.max_new_tokens,
        )

    def _measure(self, args: Any, state: Any, control: Any, model: Any) -> None:
        end_ids = end_ids_of(model, self._in_use)
        ids: list[Ids] = greedy_ids(
            model,
            [prompt.tokens for prompt in self._prompts],
            end_ids,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        texts = [decoded(self._in_use, end_ids, found) for found in ids]
        found = honesty_step(state.global_step, self._prompts, texts)
        self.history.append(found)
        self._log(found, args, state, control)

    def _log(self, found: HonestyStep, args: Any, state: Any, control: Any) -> None:
        logs = _values(found) | ({"epoch": state.epoch} if state.epoch is not None else {})
        state.log_history.append({**logs, "step": found.step})
        if self._handler is None:
            control.should_log = True  # the trainer logs at the end of this step, and `on_log` adds the measurement
            self._unlogged = found
            return
        due = control.should_log
        self._handler.on_log(args, state, control, logs)
        control.should_log = due  # the handler has cleared it, and the trainer's own log of this step may be due

    def _fall(self) -> str:
        first, last = (100 * item.refusal_delta for item in (self.history[0], self.history[-1]))
        return f"the refusal delta is {last:.1f} percent, {first - last:.1f} points below its first value"


def _values(found: HonestyStep) -> dict[str, float]:
    return {name: getattr(found, name) for name in METRICS}


def _written(path: str | Path, content: bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _refuse_sharded(args: Any) -> None:
    """Raise InputError where no process holds the whole model."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if getattr(args, "fsdp", None) or is_deepspeed_zero3_enabled():
        raise InputError(
            "HonestyCallback asks a model that is whole in each process, and FSDP or ZeRO-3 shards it: train without "
            "them, or measure saved checkpoints with `hcnr evaluate`"
        )
