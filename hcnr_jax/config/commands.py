"""Defines the options of the commands that do not restore: tune, evaluate, probe, data, diagnose, demo and bench."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hcnr_jax.config.options import Positional, RunConfig


class TuneConfig(RunConfig):
    """Fine-tune a model on rows of text with AdamW, and write a folder. The loss counts completion tokens only."""

    model: Annotated[Path, Positional()] = Field(
        description="the model to fine-tune: a Hugging Face folder or hub name"
    )
    data: Path = Field(description="file of training rows: {prompt, completion} or {messages}")
    out: Path = Field(description="folder to write, a model or with --lora an adapter; must not exist, or be empty")
    objective: Literal["sft", "dpo", "orpo"] = Field(
        "sft", description="training objective; dpo and orpo need rows of {prompt, chosen, rejected}"
    )
    beta: float = Field(0.1, gt=0, description="beta of dpo or orpo, unitless; not used by sft")
    lora: int | None = Field(None, ge=1, description="rank of a LoRA adapter to train; none trains all weights")
    lora_alpha: float | None = Field(None, gt=0, description="LoRA's alpha, unitless; default: twice the rank")
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate; default: 2e-5, or 2e-4 with --lora"
    )
    epochs: float = Field(3.0, gt=0, description="number of passes over the rows; not used with --steps")
    steps: int | None = Field(None, ge=1, description="number of optimiser steps, instead of --epochs")
    warmup: float = Field(0.03, ge=0, lt=1, description="warm-up of the learning rate, as a fraction of all steps")
    end_fraction: float = Field(0.0, ge=0, le=1, description="final learning rate, as a fraction of the peak")
    batch_size: int = Field(32, ge=1, description="number of rows per optimiser step")
    microbatch: int | None = Field(
        None, ge=1, description="number of rows computed at once; changes memory, not the result"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay, on kernels (weight matrices) only")
    b1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    b2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the second moment")
    clip_norm: float | None = Field(1.0, gt=0, description="largest global gradient norm; none: no clipping")
    max_length: int = Field(512, ge=2, description="maximum tokens per row; --long-rows decides about longer rows")
    long_rows: Literal["refuse", "drop", "cut"] = Field(
        "cut", description="rows over --max-length: refuse the data, leave them out, or cut their completions"
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype of the forward pass")
    seed: int = Field(0, ge=0, description="seed of the row order and of the adapter's initial weights")
    watch_honesty: str | None = Field(
        None,
        description="questions with and without an answer that the model is asked while it is trained: a file of rows, "
        "or builtin for built-in questions; none asks nothing",
    )
    watch_every: int = Field(50, ge=1, description="number of steps between two measurements of --watch-honesty")
    watch_stop: float | None = Field(
        None,
        ge=0,
        description="stop training when the refusal delta is more than so many percentage points below its value "
        "before the first step; none never stops",
    )
    watch_patience: int = Field(
        1, ge=1, description="number of measurements in a row that must be too low before --watch-stop stops"
    )
    watch_samples: int = Field(100, ge=2, description="largest number of questions of --watch-honesty")
    watch_max_new_tokens: int = Field(64, ge=1, description="maximum tokens of an answer to --watch-honesty")

    @model_validator(mode="after")
    def _watch(self) -> TuneConfig:
        if self.watch_stop is not None and self.watch_honesty is None:
            raise ValueError("--watch-stop: needs --watch-honesty, the questions that decide when to stop")
        return self


class EvaluateConfig(RunConfig):
    """Ask a model honesty and task questions, and measure its refusals, its accuracy and its calibration."""

    model: Annotated[str, Positional()] = Field(
        description="the model to ask: a Hugging Face folder or hub name, or with --base a LoRA adapter"
    )
    out: Path = Field(description="file of metrics to write (.json); a file of all answers is written beside it")
    honesty: tuple[str, ...] = Field(
        (),
        description="honesty questions, NAME=FILE...: rows with `answerable`, or the official file or folder of "
        "falseqa, nec, refunq, kuq, selfaware, squad2 or xstest under that name",
    )
    task: tuple[str, ...] = Field(
        (),
        description="task questions, NAME=FILE...: rows with `answers`, or with `choices` and `correct`, or the "
        "official file or folder of hotpotqa, nq_open, medmcqa, bioasq or simpleqa under that name",
    )
    base: str | None = Field(
        None, description="the model that a LoRA adapter was trained on; default: the one that its config names"
    )
    samples: int | None = Field(None, ge=2, description="largest number of questions of each set; none asks all")
    seed: int | None = Field(
        0, ge=0, description="seed of --samples and of the intervals; none uses the first questions"
    )
    template: Literal["auto", "plain", "chat"] = Field(
        "auto", description="prompt format of official questions; auto: chat if the model has a chat template"
    )
    max_new_tokens: int = Field(64, ge=1, description="maximum tokens per completion")
    match: Literal["exact", "contains"] = Field(
        "exact", description="when a text answer is correct: it equals a gold answer, or contains one"
    )
    calibration: bool = Field(False, description="also measure the probability of refusing and its calibration")
    draws: int = Field(2000, ge=2, description="number of bootstrap draws for the intervals")
    compare: tuple[Path, ...] = Field(
        (),
        description="metrics files (.json) that evaluate wrote for other models on the same questions, with the "
        "records beside them; adds this model's metrics minus theirs, with paired intervals",
    )
    judge: str | None = Field(
        None,
        description="a judge beside the detector of refusals: the address of an OpenAI-compatible chat endpoint, to "
        "which all questions and answers are sent, or a model folder; adds their agreement",
    )
    judge_model: str | None = Field(
        None, description="name of the judge at the endpoint; its key is read from OPENAI_API_KEY, if that is set"
    )
    judge_timeout: float = Field(60.0, gt=0, description="seconds that a request to the judge's endpoint may take")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype of the model")
    microbatch: int | None = Field(
        None, ge=1, description="number of questions asked at once; default: chosen automatically"
    )

    @model_validator(mode="after")
    def _named_judge(self) -> EvaluateConfig:
        is_endpoint = self.judge is not None and self.judge.startswith(("http://", "https://"))
        if is_endpoint and not self.judge_model:
            raise ValueError(f"--judge-model: required with --judge {self.judge}; name a model of that endpoint")
        if self.judge_model and not is_endpoint:
            raise ValueError(
                f"--judge-model {self.judge_model}: names a model of an endpoint; give the address with --judge URL, "
                "or leave it out"
            )
        return self


class ChatConfig(RunConfig):
    """Ask several models the same questions, and print their answers side by side."""

    models: Annotated[tuple[str, ...], Positional()] = Field(
        min_length=1,
        max_length=6,
        description="the models, such as BASE TUNED RESTORED: Hugging Face folders, hub names or LoRA adapters",
    )
    prompt: str | None = Field(
        None, description="ask this question and stop; default: read questions from the terminal, one a line"
    )
    template: Literal["auto", "plain", "chat"] = Field(
        "auto", description="prompt format; auto: chat for a model that has a chat template, else plain text"
    )
    max_new_tokens: int = Field(64, ge=1, description="maximum tokens per answer")


class ProbeConfig(RunConfig):
    """Test whether TUNED still knows which questions it cannot answer, with probes trained on BASE's hidden states."""

    base: Annotated[str, Positional()] = Field(
        description="the aligned model before fine-tuning: a Hugging Face folder or hub name"
    )
    tuned: Annotated[str, Positional()] = Field(
        description="the model after fine-tuning: a Hugging Face folder or hub name, or a LoRA adapter trained on BASE"
    )
    honesty: tuple[str, ...] = Field(
        description="honesty questions, NAME=FILE...: rows with `answerable`, or an official benchmark under its name"
    )
    out: Path = Field(description="file of results to write (.json)")
    restored: str | None = Field(None, description="a restored model to probe too: a folder or hub name")
    samples: int | None = Field(None, ge=8, description="largest number of questions of each set; none asks all")
    seed: int = Field(0, ge=0, description="seed of --samples, of the training half and of the folds")
    template: Literal["auto", "plain", "chat"] = Field(
        "auto", description="prompt format of official questions; auto: chat if BASE has a chat template"
    )
    penalty: float = Field(1.0, gt=0, description="L2 penalty of the probes, on standardised hidden states")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype of the models")
    microbatch: int | None = Field(
        None, ge=1, description="number of questions computed at once; default: chosen automatically"
    )


class DataConfig(RunConfig):
    """Make rows from a benchmark's official files, or from the built-in questions in a model's own words."""

    name: Annotated[str, Positional()] = Field(
        description="builtin, the questions that ship with hcnr_jax; or the benchmark: falseqa, nec, refunq, kuq, "
        "selfaware, squad2, xstest, hotpotqa, nq_open, medmcqa, bioasq or simpleqa"
    )
    path: Annotated[str | None, Positional()] = Field(
        None, description="the benchmark's file, a folder of its files, or its hub name; builtin takes none"
    )
    model: str | None = Field(
        None,
        description="builtin: the aligned model (BASE) that answers the questions of --out, a Hugging Face folder or "
        "hub name",
    )
    out: Path | None = Field(
        None, description="file of rows with completions to write, for restore and tune; must not exist"
    )
    out_evaluate: Path | None = Field(
        None, description="file of rows without completions to write, for evaluate and probe; must not exist"
    )
    samples: int = Field(128, ge=1, description="number of questions written to --out")
    evaluate_samples: int | None = Field(
        None, ge=1, description="number of questions written to --out-evaluate; default: all that --out leaves"
    )
    only: Literal["both", "answerable", "unanswerable"] = Field(
        "both", description="kind of questions in --out; both: half of each, if the benchmark has both"
    )
    template: Literal["auto", "plain", "chat"] = Field(
        "auto",
        description="format of the rows: {prompt, completion} (plain) or {messages} (chat); auto: chat for builtin if "
        "--model has a chat template, else plain",
    )
    system: str | None = Field(None, description="system message (chat) or first paragraph (plain) of every row")
    tokenizer: Path | None = Field(None, description="model folder with a tokenizer to check the rows' lengths")
    max_length: int = Field(
        512, ge=2, description="maximum tokens per row; with --tokenizer, longer rows give a warning"
    )
    avoid: tuple[Path, ...] = Field((), description="row files whose questions are left out of both outputs")
    seed: int = Field(0, ge=0, description="seed of the choice of questions and of the refusals' wording")
    max_new_tokens: int = Field(64, ge=1, description="builtin: maximum tokens per completion")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="builtin: compute dtype of the model")
    microbatch: int | None = Field(
        None, ge=1, description="builtin: number of questions asked at once; default: chosen automatically"
    )

    @model_validator(mode="after")
    def _outputs(self) -> DataConfig:
        if self.out is None and self.out_evaluate is None:
            raise ValueError("--out, --out-evaluate: expected one of them or both, found neither")
        if self.out is not None and self.out == self.out_evaluate:
            raise ValueError(f"--out and --out-evaluate both name {self.out}: give two different files")
        return self


class DiagnoseConfig(RunConfig):
    """Check whether a restoration will work for these models and rows, and with --restored whether it did harm."""

    base: Annotated[str, Positional()] = Field(
        description="the aligned model before fine-tuning: a Hugging Face folder or hub name"
    )
    tuned: Annotated[str, Positional()] = Field(
        description="the model after fine-tuning: a Hugging Face folder or hub name, or a LoRA adapter trained on BASE"
    )
    honesty: Path = Field(description="file of honesty rows, as in restore; the probe check needs `answerable` in them")
    task: Path = Field(description="file of task rows, as in restore; the check of --restored needs `answers` in them")
    out: Path = Field(description="file of results to write (.json)")
    restored: str | None = Field(None, description="a restored model to compare with TUNED: a folder or hub name")
    samples: int = Field(128, ge=2, description="number of rows used from each data file, as in restore")
    seed: int | None = Field(0, ge=0, description="seed of the row shuffle, as in restore; none keeps the file's order")
    loss: Literal["mean", "sum"] = Field(
        "mean", description="completion loss of a row: mean or sum over the completion's tokens"
    )
    damping: float = Field(
        0.01, ge=0, description="damping of the correction, as a fraction of the second moments' mean diagonal"
    )
    max_length: int = Field(512, ge=2, description="maximum tokens per row; longer rows are cut at the end")
    max_new_tokens: int = Field(64, ge=1, description="maximum tokens per completion (with --restored)")
    match: Literal["exact", "contains"] = Field(
        "exact", description="when a text answer is correct: it equals a gold answer, or contains one"
    )
    microbatch: int | None = Field(
        None, ge=1, description="number of rows computed at once; default: chosen automatically"
    )


class LmEvalPathConfig(RunConfig):
    """Print the folder of hcnr's tasks for lm-eval, as in `lm_eval --include_path "$(hcnr lm-eval-path)"`."""


class DemoConfig(RunConfig):
    """Show the method on a tiny model: train it to be honest, fine-tune it until it bluffs, restore and measure it."""

    seed: int = Field(0, ge=0, description="seed of the synthetic world, the models and the rows")
    out: Path = Field(Path("hcnr-demo"), description="folder to write; must not exist, or be empty")
    fast: bool = Field(False, description="ask fewer test questions")
    size: Literal["small", "medium"] = Field(
        "small", description="size of the model; small takes minutes on a laptop, medium needs a GPU"
    )


with warnings.catch_warnings():
    # The field `json` hides a deprecated method of pydantic, which nothing here calls.
    warnings.filterwarnings("ignore", message='Field name "json"')

    class BenchConfig(RunConfig):
        """Measure speed and memory of every stage with random weights, and compare with plain implementations."""

        shape: Literal["llama-3.1-8b", "llama-3.2-1b", "qwen3-4b", "100m", "tiny"] = Field(
            "100m", description="model whose layer sizes the random weights have"
        )
        sections: str = Field(
            "all",
            description="sections to measure: all, or names with commas, of: restore, files, sweep, fisher, compensate",
        )
        rows: int = Field(128, ge=1, description="number of honesty rows, and of task rows")
        tokens: int = Field(64, ge=8, description="tokens per row")
        microbatch: int | None = Field(
            None, ge=1, description="number of rows computed at once; default: chosen automatically"
        )
        repeats: int = Field(5, ge=1, description="timed calls of each program; the median is reported")
        dtype: Literal["auto", "float32", "bfloat16"] = Field(
            "auto", description="dtype of weights and arithmetic; auto: float32 on the CPU, bfloat16 elsewhere"
        )
        json: Path | None = Field(None, description="file of results to write (.json)")  # type: ignore[assignment]
        scratch: Path | None = Field(None, description="folder for temporary models; default: the system's")
        seed: int = Field(0, ge=0, description="seed of the weights and the rows")
