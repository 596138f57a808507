"""The options of the commands that do not restore: tune, evaluate, probe, data, diagnose, demo and bench."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hcnr_jax.config.options import Positional, RunConfig


class TuneConfig(RunConfig):
    """Fine-tune a model on rows of text; the loss counts completion tokens alone. AdamW, warm-up, cosine, clipping."""

    model: Annotated[Path, Positional()] = Field(
        description="the model to fine-tune: a Hugging Face folder or hub name"
    )
    data: Path = Field(description="JSONL rows: prompt and completion, or messages")
    out: Path = Field(description="folder to write, a model or with --lora an adapter; must not exist, or be empty")
    objective: Literal["sft", "dpo", "orpo"] = Field("sft", description="dpo, orpo: rows of prompt, chosen, rejected")
    beta: float = Field(0.1, gt=0, description="strength of dpo's reference, or weight of orpo's odds ratio")
    lora: int | None = Field(None, ge=1, description="rank of the adapters; without it all weights are trained")
    lora_alpha: float | None = Field(None, gt=0, description="LoRA's alpha; default: twice the rank")
    learning_rate: float | None = Field(None, gt=0, description="peak; default: 2e-5, or 2e-4 with --lora")
    epochs: float = Field(3.0, gt=0, description="passes over the rows; not used where --steps is given")
    steps: int | None = Field(None, ge=1, description="optimiser steps")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    end_fraction: float = Field(0.0, ge=0, le=1, description="learning rate at the end, as a share of the peak")
    batch_size: int = Field(32, ge=1, description="rows per step")
    microbatch: int | None = Field(None, ge=1, description="rows at a time; saves memory, changes nothing else")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, on kernels alone")
    b1: float = Field(0.9, ge=0, lt=1, description="AdamW's first decay")
    b2: float = Field(0.999, ge=0, lt=1, description="AdamW's second decay")
    clip_norm: float | None = Field(1.0, gt=0, description="largest global norm of the gradient")
    max_length: int = Field(512, ge=2, description="tokens of a row; longer ones are cut at the end")
    long_rows: Literal["refuse", "drop", "cut"] = Field(
        "cut", description="rows over --max-length: refuse the data, leave them out, or cut their completions"
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of the forward pass")
    seed: int = Field(0, ge=0, description="order of the rows, and the adapters' start")


class EvaluateConfig(RunConfig):
    """Ask a model honesty and task questions, and measure what it refuses, what it gets right, and how surely."""

    model: Annotated[str, Positional()] = Field(
        description="a Hugging Face folder or hub name, or a LoRA adapter with --base"
    )
    out: Path = Field(description="metrics file to write (.json); the records lie beside it")
    honesty: tuple[str, ...] = Field(
        (),
        description="NAME=FILE...: rows with `answerable`, or the official file or folder of falseqa, nec, refunq, "
        "kuq or selfaware under that name",
    )
    task: tuple[str, ...] = Field(
        (),
        description="NAME=FILE...: rows with `answers`, or `choices` and `correct`, or the official file or folder of "
        "hotpotqa, nq_open, medmcqa or bioasq under that name",
    )
    base: str | None = Field(None, description="the model a LoRA adapter was trained on")
    samples: int | None = Field(None, ge=2, description="at most so many questions of each set; default: all")
    seed: int | None = Field(0, ge=0, description="draw of --samples and of the intervals; none takes the first ones")
    template: Literal["auto", "plain", "chat"] = Field(
        "auto", description="how official questions are asked; auto: chat where the model has a chat template"
    )
    max_new_tokens: int = Field(64, ge=1, description="tokens of a completion at most")
    match: Literal["exact", "contains"] = Field("exact", description="what makes a text answer correct")
    calibration: bool = Field(False, description="also measure P(refuse) and how well it is calibrated")
    draws: int = Field(2000, ge=2, description="bootstrap draws of the intervals")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype")
    microbatch: int | None = Field(None, ge=1, description="questions per step; default: chosen from the sizes")


class ProbeConfig(RunConfig):
    """Does the tuned model still know what it does not know? Probes trained on BASE, applied unchanged to TUNED."""

    base: Annotated[str, Positional()] = Field(description="the aligned model: a Hugging Face folder or hub name")
    tuned: Annotated[str, Positional()] = Field(
        description="the fine-tuned model: a Hugging Face folder or hub name, or a LoRA adapter trained on BASE"
    )
    honesty: tuple[str, ...] = Field(
        description="NAME=FILE...: rows with `answerable`, or an official honesty benchmark under its name"
    )
    out: Path = Field(description="file to write (.json)")
    restored: str | None = Field(None, description="a restored model, probed too")
    samples: int | None = Field(None, ge=8, description="at most so many questions of each set; default: all")
    seed: int = Field(0, ge=0, description="draw of --samples, of the training half and of the folds")
    template: Literal["auto", "plain", "chat"] = Field(
        "auto", description="how official questions are asked; auto: chat where BASE has a chat template"
    )
    penalty: float = Field(1.0, gt=0, description="L2 weight of the probes on standardised states")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype")
    microbatch: int | None = Field(None, ge=1, description="questions per step; default: chosen from the sizes")


class DataConfig(RunConfig):
    """Turn a benchmark's official files into rows: some to restore or tune with, the others to evaluate with."""

    name: Annotated[str, Positional()] = Field(
        description="falseqa, nec, refunq, kuq, selfaware, hotpotqa, nq_open, medmcqa or bioasq"
    )
    path: Annotated[str, Positional()] = Field(description="its file, a folder of its files, or a hub name")
    out: Path | None = Field(None, description="rows with completions, for restore and tune; must not exist")
    out_evaluate: Path | None = Field(None, description="rows that only ask, for evaluate and probe; must not exist")
    samples: int = Field(128, ge=1, description="questions written to --out")
    evaluate_samples: int | None = Field(
        None, ge=1, description="questions written to --out-evaluate; default: all that --out leaves"
    )
    only: Literal["both", "answerable", "unanswerable"] = Field(
        "both", description="which questions go to --out; both: half of each, where the benchmark has both"
    )
    template: Literal["plain", "chat"] = Field("plain", description="prompt and completion, or messages")
    system: str | None = Field(None, description="system message (chat) or first paragraph (plain) of every row")
    tokenizer: Path | None = Field(None, description="model folder whose tokenizer the rows are checked with")
    max_length: int = Field(512, ge=2, description="with --tokenizer: longer rows are warned about")
    avoid: tuple[Path, ...] = Field((), description="row files whose questions are left out of both outputs")
    seed: int = Field(0, ge=0, description="draw of the questions and of the refusals' wordings")

    @model_validator(mode="after")
    def _outputs(self) -> DataConfig:
        if self.out is None and self.out_evaluate is None:
            raise ValueError("--out, --out-evaluate: expected one of them or both, found neither")
        if self.out is not None and self.out == self.out_evaluate:
            raise ValueError(f"--out and --out-evaluate both name {self.out}: give two different files")
        return self


class DiagnoseConfig(RunConfig):
    """Before a restoration: will it work for these models and rows? After one (--restored): did anything suffer?"""

    base: Annotated[str, Positional()] = Field(
        description="the aligned model before fine-tuning: a Hugging Face folder or hub name"
    )
    tuned: Annotated[str, Positional()] = Field(
        description="the model after fine-tuning: a Hugging Face folder or hub name, or a LoRA adapter trained on BASE"
    )
    honesty: Path = Field(description="the rows restore is given; with `answerable`, the premise can be checked")
    task: Path = Field(description="the task rows restore is given; with `answers`, --restored can be checked")
    out: Path = Field(description="report to write (.json)")
    restored: str | None = Field(None, description="a restored model to compare with TUNED")
    samples: int = Field(128, ge=2, description="rows of each file that are scored, as in restore")
    seed: int | None = Field(0, ge=0, description="row shuffle, as in restore; none keeps file order")
    loss: Literal["mean", "sum"] = Field("mean", description="completion loss per row, as in restore")
    damping: float = Field(0.01, ge=0, description="as in restore")
    max_length: int = Field(512, ge=2, description="tokens per row; longer rows are cut at the end")
    max_new_tokens: int = Field(64, ge=1, description="tokens of a completion at most (with --restored)")
    match: Literal["exact", "contains"] = Field("exact", description="what makes a text answer correct")
    microbatch: int | None = Field(None, ge=1, description="rows per step; default: chosen from the sizes")


class DemoConfig(RunConfig):
    """See it work: train a tiny honest model, fine-tune it until it bluffs, restore it, measure all of it."""

    seed: int = Field(0, ge=0, description="of the world, the models and the rows")
    out: Path = Field(Path("hcnr-demo"), description="folder to write; must not exist, or be empty")
    fast: bool = Field(False, description="the short form: fewer test questions")
    size: Literal["small", "medium"] = Field("small", description="small: minutes on a laptop; medium: one GPU")


with warnings.catch_warnings():
    # The field `json` hides a deprecated method of pydantic's, which nothing here calls.
    warnings.filterwarnings("ignore", message='Field name "json"')

    class BenchConfig(RunConfig):
        """Measure speed and memory of every stage on this machine, with random weights, against plain ways to do it."""

        shape: Literal["llama-3.1-8b", "llama-3.2-1b", "qwen3-4b", "100m", "tiny"] = Field(
            "100m", description="whose sizes the random model has"
        )
        sections: str = Field(
            "all",
            description="what to measure: all, or names with commas, of: restore, files, sweep, fisher, compensate",
        )
        rows: int = Field(128, ge=1, description="honesty rows and as many task rows")
        tokens: int = Field(64, ge=8, description="tokens of a row")
        microbatch: int | None = Field(None, ge=1, description="rows scored at once; default: chosen from the sizes")
        repeats: int = Field(5, ge=1, description="timed calls of each contender; the median counts")
        dtype: Literal["auto", "float32", "bfloat16"] = Field(
            "auto", description="of weights and arithmetic; auto: float32 on the CPU, bfloat16 elsewhere"
        )
        json: Path | None = Field(None, description="also write all of it to this file")  # type: ignore[assignment]
        scratch: Path | None = Field(None, description="folder for temporary models; default: the system's")
        seed: int = Field(0, ge=0, description="of weights and rows")
