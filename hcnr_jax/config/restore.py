"""Defines the options of `hcnr restore` and `hcnr apply`."""

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


# What an option decides. Cache keys hold an option of the stage `inputs` as the content of its files and rows, or as
# its resolved value.
INPUTS, OUTPUT, RUN = Stage(("inputs",)), Stage(("output",)), Stage(("run",))
SCORES, SELECTION, KERNELS = Stage(("scores",)), Stage(("selection",)), Stage(("kernels",))
CORRECTION = Stage(("kernels",), _corrects)
TASK_TERM = Stage(("kernels",), _reads_task_weight)
LOCAL_MOMENTS = Stage(("kernels",), lambda config: _corrects(config) and config.inputs == "local")
REFINEMENT = Stage(("kernels",), lambda config: config.refine > 0)
RANKING = Stage(("scores",), _ranks_by_scores)
SAMPLES = Stage(("inputs",), lambda config: None in (config.honesty_samples, config.task_samples))


class RestoreConfig(RunConfig):
    """Restore the honesty-critical neurons of a fine-tuned model, and correct them so that its task keeps working."""

    base: Annotated[str, Positional(), INPUTS] = Field(
        description="the aligned model before fine-tuning: a Hugging Face folder or hub name"
    )
    tuned: Annotated[str, Positional(), INPUTS] = Field(
        description="the model after fine-tuning: a Hugging Face folder or hub name, or a PEFT LoRA adapter trained on "
        "BASE"
    )
    honesty: Annotated[Path, INPUTS] = Field(
        Path("builtin"),
        description="file of honesty rows: prompts with honest completions, as {prompt, completion} or {messages}; "
        "builtin: questions that ship with hcnr_jax, answered by BASE in its own words",
    )
    task: Annotated[Path, INPUTS] = Field(
        description="file of task rows, from the task TUNED was trained for, in the same format"
    )
    out: Annotated[Path, OUTPUT] = Field(description="folder to write; must not exist, or be empty")
    in_weight: Annotated[float, SELECTION] = Field(
        0.5, gt=0, le=1, description="fraction of the neurons restored in each kept kernel, 0 to 1 (R_IW)"
    )
    cross_weight: Annotated[float, SELECTION] = Field(
        1.0, gt=0, le=1, description="fraction of the kernels (weight matrices) kept for restoring, 0 to 1 (R_CW)"
    )
    priority: Annotated[Literal["kl", "raw", "honesty", "random"], SELECTION] = Field(
        "kl", description="formula that ranks the neurons for restoring; raw is the paper's"
    )
    granularity: Annotated[Literal["input", "output", "weight"], SCORES] = Field(
        "input", description="unit of restoring: an input channel (the paper's neuron), output channel or single weight"
    )
    compensation: Annotated[CompensationName, KERNELS] = Field(
        "two_sided",
        description="correction of restored weights: none, paper's formula, exact (honesty rows), two_sided (also task "
        "rows)",
    )
    task_weight: Annotated[float, TASK_TERM] = Field(
        2.0, ge=0, description="weight of the task rows against the honesty rows in the correction, unitless"
    )
    inputs: Annotated[Literal["local", "propagated"], CORRECTION] = Field(
        "propagated",
        description="layer inputs for the correction: of BASE and TUNED (local), or of the model restored so far",
    )
    solver: Annotated[Literal["dense", "cg"], CORRECTION] = Field(
        "dense", description="solver of the correction: Cholesky (dense) or matrix-free conjugate gradients (cg)"
    )
    damping: Annotated[float, CORRECTION] = Field(
        0.01, ge=0, description="damping of the correction, as a fraction of the second moments' mean diagonal"
    )
    refine: Annotated[int, KERNELS] = Field(
        0, ge=0, description="final optimisation steps of all restored weights, towards BASE's and TUNED's outputs"
    )
    refine_solver: Annotated[Literal["adamw", "gauss_newton"], REFINEMENT] = Field(
        "adamw",
        description="optimiser of --refine: AdamW on batches of rows, with early stopping, or Gauss-Newton on all rows",
    )
    refine_rate: Annotated[float | None, REFINEMENT] = Field(
        None, gt=0, description="learning rate of --refine with AdamW; default: 4e-4, for an adapter 4e-3"
    )
    scores_at: Annotated[Literal["tuned", "base"], RANKING] = Field(
        "tuned", description="model whose weights are used to score the neurons"
    )
    moments_at: Annotated[Literal["base", "tuned"], LOCAL_MOMENTS] = Field(
        "base", description="model that gives the honesty rows' layer inputs with --inputs local"
    )
    loss: Annotated[Literal["mean", "sum"], RANKING] = Field(
        "mean", description="completion loss of a row: mean or sum over the completion's tokens"
    )
    samples: Annotated[int, SAMPLES] = Field(128, ge=1, description="number of rows used from each data file")
    honesty_samples: Annotated[int | None, INPUTS] = Field(
        None, ge=1, description="number of rows used from --honesty, instead of --samples"
    )
    task_samples: Annotated[int | None, INPUTS] = Field(
        None, ge=1, description="number of rows used from --task, instead of --samples"
    )
    long_rows: Annotated[Literal["refuse", "drop", "cut"], INPUTS] = Field(
        "refuse",
        description="rows whose prompt fills --max-length: refuse the data, or leave out these rows (drop, cut)",
    )
    max_length: Annotated[int, INPUTS] = Field(
        512, ge=2, description="maximum tokens per row; longer rows are cut at the end"
    )
    seed: Annotated[int | None, Stage(("inputs", "selection"))] = Field(
        0, ge=0, description="seed of the row shuffle and of random draws; none keeps the file's order"
    )
    microbatch: Annotated[int | None, SCORES] = Field(
        None, ge=1, description="number of rows computed at once; default: chosen automatically"
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], INPUTS] = Field(
        "auto",
        description="compute dtype of scores and local inputs; auto: bfloat16 for a 16-bit TUNED on an accelerator, "
        "else float32",
    )
    stream: Annotated[bool, SCORES] = Field(
        False, description="read weights from the disk one block at a time, to save memory"
    )
    compilation_cache: Annotated[str | None, RUN] = Field(
        "auto",
        description="folder that keeps compiled programs for later runs; auto: a folder in the user's cache, of at "
        "most 2 GiB; none: keep nothing",
    )
    mesh: Annotated[str, SCORES] = Field(
        "", description="mesh of devices by axis, such as data=2,fsdp=2,model=2; default: one device"
    )
    distributed: Annotated[str | None, RUN] = Field(
        None, description="run several processes: auto (TPU pod, SLURM, MPI) or COORDINATOR:PORT,PROCESSES,NUMBER"
    )
    choose: Annotated[str | None, Stage(("choice",))] = Field(
        None,
        description="try several settings, and use the most honest that meets a constraint on held-out rows. "
        "Each data file needs 16 rows or more beyond --samples. Constraint: METRIC >= VALUE or METRIC <= VALUE, such "
        'as "task_accuracy >= -0.5pt" (at most half a point below TUNED) or "over_refusal <= 5%". METRIC: honesty_f1, '
        "refusal_delta, over_refusal, task_accuracy, known_facts. VALUE: points relative to TUNED (pt), percent (%, "
        "with a sign relative to TUNED), or a fraction from 0 to 1",
    )
    output: Annotated[Literal["auto", "adapter", "model"], KERNELS] = Field(
        "auto",
        description="what to write: a LoRA adapter or a whole model; auto: an adapter if TUNED is one that allows it",
    )
    rank: Annotated[int | None, KERNELS] = Field(
        None, ge=1, description="rank of the adapter that --output adapter writes where TUNED is a whole model"
    )
    check: Annotated[bool, RUN] = Field(
        True, description="ask BASE, TUNED and the restored model questions of the data files that were not read"
    )
    push: Annotated[str | None, RUN] = Field(
        None,
        description="upload the finished output to this repository of the Hugging Face hub, such as user/model, which "
        "is created as private if there is none; hcnr.json and report.html name the input files as they were typed",
    )
    dry_run: Annotated[bool, RUN] = Field(False, description="check the inputs, print the plan and stop")
    resume: Annotated[bool, RUN] = Field(
        False, description="continue an interrupted run, or start a new one if there is none"
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
        if self.output == "adapter" and self.granularity != "input":
            raise ValueError(
                f"--output adapter goes with --granularity input alone, got {self.granularity}: an adapter holds one "
                "column for an input channel. Use --output model"
            )
        if self.rank is not None and self.output != "adapter":
            raise ValueError(f"--rank goes with --output adapter alone, got --output {self.output}")
        if self.rank is not None and self.distributed is not None:
            raise ValueError("--rank works in one process: leave out --distributed, or use --output model")
        for name, given in (("--stream", self.stream), ("--mesh", bool(self.mesh))):
            if self.refine and given:
                raise ValueError(f"--refine needs both models whole on one device: leave out {name}, or --refine")
        return self

    @property
    def objective(self) -> Objective:
        """Return what the chosen compensation reads and solves."""
        return OBJECTIVES[self.compensation]

    @property
    def rows(self) -> tuple[int, int]:
        """Return the numbers of honesty rows and task rows that are used."""
        return self.honesty_samples or self.samples, self.task_samples or self.samples

    @property
    def unused(self) -> tuple[str, ...]:
        """Return the options that the chosen method does not read. They are accepted, and recorded as unused."""
        fields = type(self).model_fields
        return tuple(name for name in fields if not stage_of(type(self), name).read(self))

    @property
    def unused_and_set(self) -> tuple[str, ...]:
        """Return the unused options whose value is not the default, which a user may believe to count."""
        fields = type(self).model_fields
        return tuple(name for name in self.unused if getattr(self, name) != fields[name].default)


class ApplyConfig(RunConfig):
    """Apply the patch of a restoration to the tuned model, or revert the patch on the restored model."""

    patch: Annotated[Path, Positional()] = Field(description="hcnr.patch.safetensors, or the folder that contains it")
    model: Annotated[str, Positional()] = Field(
        description="folder or hub name of the tuned model (with --revert: of the restored model)"
    )
    out: Path = Field(description="folder to write; must not exist, or be empty")
    revert: bool = Field(False, description="undo the patch: turn the restored model back into the tuned model")
