"""Run configurations: frozen, typed, written once. The command line's options and the YAML's keys are these fields.

`read_yaml` and `build` turn every mistake into an `InputError` that names the option as typed (`--in-weight`), or the
file and its key, with what was expected and what was found.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from hcnr_jax.errors import InputError


class Positional:
    """Marks a field that the command line takes by place, not by option name."""


class RunConfig(BaseModel):
    """What every command's configuration shares: it is a value, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Config = TypeVar("Config", bound=RunConfig)


class RestoreConfig(RunConfig):
    """Put the honesty-critical neurons of a fine-tuned model back and correct them so that its task keeps working."""

    base: Annotated[str, Positional()] = Field(
        description="the aligned model before fine-tuning: a Hugging Face folder or hub name"
    )
    tuned: Annotated[str, Positional()] = Field(
        description="the model after fine-tuning: a Hugging Face folder or hub name, or a PEFT LoRA adapter trained on "
        "BASE"
    )
    honesty: Path = Field(description="JSONL rows the model should handle honestly: {prompt, completion} or {messages}")
    task: Path = Field(description="JSONL rows of the task it was tuned for, same shapes")
    out: Path = Field(description="folder to write; must not exist, or be empty")
    in_weight: float = Field(0.5, gt=0, le=1, description="share of neurons restored in each kept kernel (R_IW)")
    cross_weight: float = Field(1.0, gt=0, le=1, description="share of kernels kept (R_CW)")
    priority: Literal["kl", "raw", "honesty", "random"] = Field(
        "kl", description="how neurons are ranked; raw: the paper"
    )
    granularity: Literal["input", "output", "weight"] = Field("input", description="what a neuron is; input: the paper")
    compensation: Literal["none", "paper", "exact", "two_sided"] = Field("two_sided", description="correction")
    task_weight: float = Field(2.0, ge=0, description="weight of the task side in two_sided, unitless")
    inputs: Literal["local", "propagated"] = Field("propagated", description="inputs the corrections are solved for")
    solver: Literal["dense", "cg"] = Field("dense", description="Cholesky, or matrix-free conjugate gradients")
    damping: float = Field(0.01, ge=0, description="added to the second moments, times their mean diagonal")
    refine: int = Field(
        0, ge=0, description="last steps through the whole network, towards BASE's and TUNED's outputs on the rows"
    )
    scores_at: Literal["tuned", "base"] = Field("tuned", description="weights at which neurons are scored")
    moments_at: Literal["base", "tuned"] = Field("base", description="model whose activations local inputs come from")
    loss: Literal["mean", "sum"] = Field("mean", description="completion loss per row: mean or sum over its tokens")
    samples: int = Field(128, ge=1, description="rows taken from each data file")
    honesty_samples: int | None = Field(None, ge=1, description="rows taken from --honesty, instead of --samples")
    task_samples: int | None = Field(None, ge=1, description="rows taken from --task, instead of --samples")
    max_length: int = Field(512, ge=2, description="tokens per row; longer rows are cut at the end")
    seed: int | None = Field(0, ge=0, description="row shuffle and random draws; none keeps file order")
    microbatch: int | None = Field(None, ge=1, description="rows per step; default: chosen from the sizes")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="compute dtype of scores and local inputs; auto: bfloat16 on an accelerator where TUNED is stored "
        "in 16 bits, else float32",
    )
    stream: bool = Field(False, description="keep weights on the disk and work a block at a time, in any memory")
    compilation_cache: Path | None = Field(
        None, description="folder that keeps compiled programs for the next run; default: none is kept"
    )
    mesh: str = Field("", description="devices as axes, as in data=2,fsdp=2,model=2; default: one device")
    distributed: str | None = Field(
        None, description="several processes: auto (TPU pod, SLURM, MPI), or COORDINATOR:PORT,PROCESSES,NUMBER"
    )
    choose: str | None = Field(
        None,
        description="take the most honest of a few settings under a constraint, judged on 16 rows or more of each "
        "file beyond --samples: METRIC >= VALUE or <=, such as "
        '"task_accuracy >= -0.5pt" (half a point below TUNED\'s) or "over_refusal <= 5%" (in all). METRIC: honesty_f1, '
        "refusal_delta, over_refusal, task_accuracy, known_facts; "
        "VALUE: with pt, points against TUNED; with %, percent (with a sign: against TUNED); else a fraction 0-1",
    )
    dry_run: bool = Field(False, description="say what would be done and refused, and stop")
    resume: bool = Field(False, description="go on with a run that was stopped or killed; begins one if there is none")

    @model_validator(mode="after")
    def _combinations(self) -> RestoreConfig:
        if self.granularity != "input" and self.compensation != "none":
            raise ValueError(
                f"--granularity {self.granularity} goes with --compensation none alone, got {self.compensation}: "
                "corrections couple input channels. Add --compensation none, or use --granularity input"
            )
        if self.compensation == "paper" and self.inputs == "propagated":
            raise ValueError(
                "--compensation paper has no propagated form: add --inputs local, or use two_sided or exact"
            )
        for name, given in (("--stream", self.stream), ("--mesh", bool(self.mesh))):
            if self.refine and given:
                raise ValueError(f"--refine needs both models whole on one device: leave out {name}, or --refine")
        return self

    @property
    def rows(self) -> tuple[int, int]:
        """How many honesty and task rows are taken."""
        return self.honesty_samples or self.samples, self.task_samples or self.samples

    @property
    def unused(self) -> tuple[str, ...]:
        """Options the chosen method does not read: accepted, and recorded as unused."""
        corrects, two_sided = self.compensation != "none", self.compensation == "two_sided"
        local = self.inputs == "local"
        reads = {
            "task_weight": two_sided or self.refine > 0,
            "inputs": corrects,
            "solver": corrects,
            "damping": corrects,
            "moments_at": corrects and local,
            "scores_at": self.priority != "random",
            "loss": self.priority != "random",
            "samples": self.honesty_samples is None or self.task_samples is None,
        }
        return tuple(name for name, read in reads.items() if not read)


class ApplyConfig(RunConfig):
    """Apply the patch of a restoration to the tuned model it was made from, or revert it."""

    patch: Annotated[Path, Positional()] = Field(description="hcnr.patch.safetensors, or the folder that holds it")
    model: Annotated[str, Positional()] = Field(
        description="the tuned model's folder or hub name (with --revert: the restored one's)"
    )
    out: Path = Field(description="folder to write; must not exist, or be empty")
    revert: bool = Field(False, description="take the patch off again")


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


def option_name(cls: type[RunConfig], field: str) -> str:
    """A field as the user types it: `--in-weight`, or BASE for a positional."""
    info = cls.model_fields.get(field)
    if info is not None and is_positional(info.metadata):
        return field.upper()
    return "--" + field.replace("_", "-")


def example_of(cls: type[RunConfig]) -> str:
    """A key and its value as a command's YAML may have them: the first field with a default that is a plain value."""
    found = ((name, info.default) for name, info in cls.model_fields.items())
    plain = ((name, value) for name, value in found if isinstance(value, bool | int | float | str) and value != "")
    return next(f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in plain)


def is_positional(metadata: list[Any]) -> bool:
    """Whether a pydantic field's metadata marks it as taken by place."""
    return any(isinstance(item, Positional) for item in metadata)


def build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """The configuration, or one InputError that lists what is wrong with which option."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise InputError("; ".join(_explain(cls, item) for item in error.errors())) from None


class _RepeatedKey(Exception):
    """A key that a mapping holds twice."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would take the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in first:
                raise _RepeatedKey(f"key {key.value!r} is given twice, in lines {first[key.value]} and {line}")
            first[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(cls: type[RunConfig], path: Path) -> dict[str, Any]:
    """The keys of a YAML file as validated field values. Unknown keys and wrong values are refused by name."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except _RepeatedKey as error:
        raise InputError(f"--config {path}: {error}; keep one of them") from None
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected keys and values, such as {example_of(cls)!r}, found {values!r}")
    return {key: _field_value(cls, path, key, value) for key, value in values.items()}


def _field_value(cls: type[RunConfig], path: Path, key: Any, value: Any) -> Any:
    if key not in cls.model_fields:
        close = difflib.get_close_matches(str(key), cls.model_fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(cls.model_fields)
        raise InputError(f"--config {path}: unknown key {key!r}; {hint}")
    info = cls.model_fields[key]
    kind: Any = info.annotation if not info.metadata else Annotated[info.annotation, *info.metadata]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(f"--config {path}: key {key!r}: {_reason(error.errors()[0])}") from None


def _explain(cls: type[RunConfig], error: Any) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{option_name(cls, str(error['loc'][0]))}: {_reason(error)}"


def _reason(error: Any) -> str:
    expected = error["msg"].removeprefix("Input should be ")
    return "required" if error["type"] == "missing" else f"expected {expected}, got {error['input']!r}"
