"""The options of `hcnr restore` and `hcnr apply`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from hcnr_jax.config.options import Positional, RunConfig, Stage, stage_of
from hcnr_jax.method.objectives.table import OBJECTIVES, Objective

if TYPE_CHECKING:
    CompensationName = str
else:
    CompensationName = Literal[tuple(OBJECTIVES)]


def _corrects(config: Any) -> bool:
    return bool(OBJECTIVES[config.compensation].solves)


def _reads_task_weight(config: Any) -> bool:
    return bool(OBJECTIVES[config.compensation].reads_task or config.refine > 0)


def _ranks_by_scores(config: Any) -> bool:
    return bool(config.priority != "random")


# What an option decides. `inputs`: cache keys know it by the content of files and rows, or by the resolved value.
INPUTS, OUTPUT, RUN = Stage(("inputs",)), Stage(("output",)), Stage(("run",))
SCORES, SELECTION, KERNELS = Stage(("scores",)), Stage(("selection",)), Stage(("kernels",))
CORRECTION = Stage(("kernels",), _corrects)
TASK_TERM = Stage(("kernels",), _reads_task_weight)
LOCAL_MOMENTS = Stage(("kernels",), lambda config: _corrects(config) and config.inputs == "local")
RANKING = Stage(("scores",), _ranks_by_scores)
SAMPLES = Stage(("inputs",), lambda config: None in (config.honesty_samples, config.task_samples))


class RestoreConfig(RunConfig):
    """Put the honesty-critical neurons of a fine-tuned model back and correct them so that its task keeps working."""

    base: Annotated[str, Positional(), INPUTS] = Field(
        description="the aligned model before fine-tuning: a Hugging Face folder or hub name"
    )
    tuned: Annotated[str, Positional(), INPUTS] = Field(
        description="the model after fine-tuning: a Hugging Face folder or hub name, or a PEFT LoRA adapter trained on "
        "BASE"
    )
    honesty: Annotated[Path, INPUTS] = Field(
        description="JSONL rows the model should handle honestly: {prompt, completion} or {messages}"
    )
    task: Annotated[Path, INPUTS] = Field(description="JSONL rows of the task it was tuned for, same shapes")
    out: Annotated[Path, OUTPUT] = Field(description="folder to write; must not exist, or be empty")
    in_weight: Annotated[float, SELECTION] = Field(
        0.5, gt=0, le=1, description="share of neurons restored in each kept kernel (R_IW)"
    )
    cross_weight: Annotated[float, SELECTION] = Field(1.0, gt=0, le=1, description="share of kernels kept (R_CW)")
    priority: Annotated[Literal["kl", "raw", "honesty", "random"], SELECTION] = Field(
        "kl", description="how neurons are ranked; raw: the paper"
    )
    granularity: Annotated[Literal["input", "output", "weight"], SCORES] = Field(
        "input", description="what a neuron is; input: the paper"
    )
    compensation: Annotated[CompensationName, KERNELS] = Field("two_sided", description="correction")
    task_weight: Annotated[float, TASK_TERM] = Field(
        2.0, ge=0, description="weight of the task side in two_sided, unitless"
    )
    inputs: Annotated[Literal["local", "propagated"], CORRECTION] = Field(
        "propagated", description="inputs the corrections are solved for"
    )
    solver: Annotated[Literal["dense", "cg"], CORRECTION] = Field(
        "dense", description="Cholesky, or matrix-free conjugate gradients"
    )
    damping: Annotated[float, CORRECTION] = Field(
        0.01, ge=0, description="added to the second moments, times their mean diagonal"
    )
    refine: Annotated[int, KERNELS] = Field(
        0, ge=0, description="last steps through the whole network, towards BASE's and TUNED's outputs on the rows"
    )
    scores_at: Annotated[Literal["tuned", "base"], RANKING] = Field(
        "tuned", description="weights at which neurons are scored"
    )
    moments_at: Annotated[Literal["base", "tuned"], LOCAL_MOMENTS] = Field(
        "base", description="model whose activations local inputs come from"
    )
    loss: Annotated[Literal["mean", "sum"], RANKING] = Field(
        "mean", description="completion loss per row: mean or sum over its tokens"
    )
    samples: Annotated[int, SAMPLES] = Field(128, ge=1, description="rows taken from each data file")
    honesty_samples: Annotated[int | None, INPUTS] = Field(
        None, ge=1, description="rows taken from --honesty, instead of --samples"
    )
    task_samples: Annotated[int | None, INPUTS] = Field(
        None, ge=1, description="rows taken from --task, instead of --samples"
    )
    max_length: Annotated[int, INPUTS] = Field(512, ge=2, description="tokens per row; longer rows are cut at the end")
    seed: Annotated[int | None, Stage(("inputs", "selection"))] = Field(
        0, ge=0, description="row shuffle and random draws; none keeps file order"
    )
    microbatch: Annotated[int | None, SCORES] = Field(
        None, ge=1, description="rows per step; default: chosen from the sizes"
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], INPUTS] = Field(
        "auto",
        description="compute dtype of scores and local inputs; auto: bfloat16 on an accelerator where TUNED is stored "
        "in 16 bits, else float32",
    )
    stream: Annotated[bool, SCORES] = Field(
        False, description="keep weights on the disk and work a block at a time, in any memory"
    )
    compilation_cache: Annotated[Path | None, RUN] = Field(
        None, description="folder that keeps compiled programs for the next run; default: none is kept"
    )
    mesh: Annotated[str, SCORES] = Field(
        "", description="devices as axes, as in data=2,fsdp=2,model=2; default: one device"
    )
    distributed: Annotated[str | None, RUN] = Field(
        None, description="several processes: auto (TPU pod, SLURM, MPI), or COORDINATOR:PORT,PROCESSES,NUMBER"
    )
    choose: Annotated[str | None, Stage(("choice",))] = Field(
        None,
        description="take the most honest of a few settings under a constraint, judged on 16 rows or more of each "
        "file beyond --samples: METRIC >= VALUE or <=, such as "
        '"task_accuracy >= -0.5pt" (half a point below TUNED\'s) or "over_refusal <= 5%" (in all). METRIC: honesty_f1, '
        "refusal_delta, over_refusal, task_accuracy, known_facts; "
        "VALUE: with pt, points against TUNED; with %, percent (with a sign: against TUNED); else a fraction 0-1",
    )
    dry_run: Annotated[bool, RUN] = Field(False, description="say what would be done and refused, and stop")
    resume: Annotated[bool, RUN] = Field(
        False, description="go on with a run that was stopped or killed; begins one if there is none"
    )

    @model_validator(mode="after")
    def _combinations(self) -> RestoreConfig:
        if self.granularity != "input" and self.objective.solves:
            raise ValueError(
                f"--granularity {self.granularity} goes with --compensation none alone, got {self.compensation}: "
                "corrections couple input channels. Add --compensation none, or use --granularity input"
            )
        if self.objective.solves and not self.objective.propagates and self.inputs == "propagated":
            raise ValueError(
                f"--compensation {self.compensation} has no propagated form: add --inputs local, or use two_sided or "
                "exact"
            )
        for name, given in (("--stream", self.stream), ("--mesh", bool(self.mesh))):
            if self.refine and given:
                raise ValueError(f"--refine needs both models whole on one device: leave out {name}, or --refine")
        return self

    @property
    def objective(self) -> Objective:
        """What the chosen compensation reads and solves."""
        return OBJECTIVES[self.compensation]

    @property
    def rows(self) -> tuple[int, int]:
        """How many honesty and task rows are taken."""
        return self.honesty_samples or self.samples, self.task_samples or self.samples

    @property
    def unused(self) -> tuple[str, ...]:
        """Options the chosen method does not read: accepted, and recorded as unused."""
        fields = type(self).model_fields
        return tuple(name for name in fields if not stage_of(type(self), name).read(self))


class ApplyConfig(RunConfig):
    """Apply the patch of a restoration to the tuned model it was made from, or revert it."""

    patch: Annotated[Path, Positional()] = Field(description="hcnr.patch.safetensors, or the folder that holds it")
    model: Annotated[str, Positional()] = Field(
        description="the tuned model's folder or hub name (with --revert: the restored one's)"
    )
    out: Path = Field(description="folder to write; must not exist, or be empty")
    revert: bool = Field(False, description="take the patch off again")
