"""Writes the output folder: the restored model, its patch, and the record hcnr.json.

The folder appears in one atomic rename, so that it is complete or absent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hcnr_jax.checkpoints.checkpoint import CARD, PAGE, PATCH, RECORD, Checkpoint, read_json
from hcnr_jax.checkpoints.digest import BackgroundDigests, model_digest, sha256_file, sha256_files
from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.checkpoints.patch import write_patch
from hcnr_jax.checkpoints.save import divide_shards, to_hf, write_companions, write_shards
from hcnr_jax.data import load_tokenizer
from hcnr_jax.data.chat import set_date
from hcnr_jax.evaluate.ask.model import end_ids
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.json import to_json, versions
from hcnr_jax.report.model_card import Origin, model_card
from hcnr_jax.report.restoration_page import write_page
from hcnr_jax.restoration.adapter_output import LearntAdapter, RestoredAdapter
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.kernel_names import kernel_names
from hcnr_jax.restoration.questions.builtin import is_builtin
from hcnr_jax.restoration.resume.fingerprint import Fingerprint, model_paths
from hcnr_jax.restoration.resume.products import CorrectedKernel
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.score import Scores
from hcnr_jax.restoration.select import Selection, hf_neurons
from hcnr_jax.restoration.tie_margins import cuts_of
from hcnr_jax.restoration.truncated_output import write_truncated
from hcnr_jax.runtime import distributed
from hcnr_jax.runtime.files import explained, partial_path, staged_folder, sync_folder

# The format version of hcnr.json. It rises when a field is removed or changes its meaning.
RECORD_FORMAT = 1


class RestoredTensors(Mapping[str, np.ndarray]):
    """Maps tensor names to the kept kernels in TUNED's stored dtypes. Each tensor is made when it is looked up."""

    def __init__(self, corrected: Mapping[Kernel, CorrectedKernel], tuned: Checkpoint, spec: ModelSpec) -> None:
        names = kernel_names(spec)
        self._kernels = {names[kernel]: item for kernel, item in corrected.items()}
        self._places = tensor_names(spec)
        self._tuned = tuned

    def __getitem__(self, name: str) -> np.ndarray:
        weights = np.asarray(self._kernels[name].weights)[None]
        place = dataclasses.replace(self._places[name], layer=0)
        return to_hf(weights, place, self._tuned.tensors[name].dtype, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)


class Result(NamedTuple):
    """Holds the results that a run writes.

    Args:
        selection: the restored neurons.
        corrected: the kept kernels' new weights.
        scores: of both sets of rows, by name.
        notes: further entries of hcnr.json: `choice` after --choose, `refine` after --refine.
        factors: an adapter's new A^T (in, r) and c B^T (r, out) after --refine; None if only columns of A change.
        answers: the answers of the comparison of BASE, TUNED and the restored model, for the page.
    """

    selection: Selection
    corrected: dict[Kernel, CorrectedKernel]
    scores: dict[str, Scores]
    notes: dict[str, Any]
    factors: dict[Kernel, tuple[np.ndarray, np.ndarray]] | None = None
    answers: Sequence[dict[str, Any]] = ()


def start_digests(inputs: RunInputs, digests: BackgroundDigests) -> None:
    """Start to hash what hcnr.json records of the inputs: the files of both models, and TUNED's tensors."""
    own = inputs.tuned.files() if isinstance(inputs.tuned, MergedCheckpoint) else inputs.tuned
    files = [path for model in (inputs.base, inputs.tuned) for path in model_paths(model).values()]
    digests.start([*own.shards, *inputs.base.shards], files)


def write_output(run: Run, result: Result, fingerprint: Fingerprint, digests: BackgroundDigests) -> Path:
    """Write the folder of `--out` in one step: weights, companions, patch, hcnr.json. The caller holds its lock.

    Every process calls this function. Each process writes its share of the weight files. The first process writes all
    other files, creates the folder and renames it at the end.

    Args:
        run: the run, with the settings that were used.
        result: the results to write.
        fingerprint: cache key of the last stage, for --resume.
        digests: hashes of the inputs, as `start_digests` starts them.
    """
    config, inputs, reporter = run.config, run.inputs, run.reporter
    tuned, restored, neurons = _written(run, result)
    share = divide_shards(tuned, jax.process_count())[jax.process_index()]
    distributed.barrier("corrected")  # other processes' kernels can be read from here on
    if not distributed.is_first():
        distributed.barrier("begun")
        with explained(config.out):
            write_shards(tuned, partial_path(config.out), restored, share)
            sync_folder(partial_path(config.out))
        distributed.barrier("weights")
        return config.out
    sources = [*inputs.base.sources, *tuned.sources, config.honesty, config.task]
    needed = sum(info.nbytes for info in tuned.tensors.values())
    with (
        reporter.stage("write", len(tuned.shards) + 2, "files") as stage,
        staged_folder(config.out, sources, needed, lock=False) as folder,
    ):
        distributed.barrier("begun")
        if config.rank is not None:
            _write_rank(run, result, folder, config.rank, fingerprint=fingerprint, digests=digests)
            stage.advance(len(tuned.shards) + 2)
            return config.out
        write_companions(tuned, folder)
        if inputs.adapter is None:
            _stop_where_evaluate_stops(tuned, run.spec, folder)
        written = write_shards(tuned, folder, restored, share)
        distributed.barrier("weights")
        stage.advance(len(tuned.shards))
        before = digests.tensors(tuned)
        after = write_patch(folder / PATCH, tuned, restored, neurons, config.granularity, before)
        stage.advance()
        record = make_record(run, result, digests)
        record["digests"] = {"tuned": model_digest(before), "restored": model_digest(after)}
        record["fingerprint"] = fingerprint
        _finish(run, result, folder, record, written)
        stage.advance()
    return config.out


def _write_rank(
    run: Run, result: Result, folder: Path, rank: int, *, fingerprint: Fingerprint, digests: BackgroundDigests
) -> None:
    """Write an adapter of limited rank with its record, and say what it does not hold."""
    found = write_truncated(run.inputs, result.corrected, folder, rank)
    worst = max(found.lost_by_tensor, key=lambda name: found.lost_by_tensor[name], default="no kernel")
    share = found.lost_by_tensor.get(worst, 0.0)
    run.reporter.say(
        f"rank {rank} holds {1 - found.lost:.1%} of the kernels' change from BASE (squared norm); least of {worst}, "
        f"{1 - share:.1%}"
    )
    if found.not_held:
        run.reporter.warn(
            f"TUNED differs from BASE in {len(found.not_held)} tensors that an adapter over linear kernels does not "
            f"hold, such as {found.not_held[0]}: they keep BASE's values; use --output model to keep TUNED's"
        )
    record = make_record(run, result, digests)
    before = digests.tensors(run.inputs.tuned)
    record["digests"] = {"tuned": model_digest(before), "restored": model_digest(found.digests)}
    record["truncation"] = {
        "rank": rank,
        "lost": found.lost,
        "lost_by_tensor": found.lost_by_tensor,
        "not_held": list(found.not_held),
    }
    record["fingerprint"] = fingerprint
    _finish(run, result, folder, record, {})


def _finish(run: Run, result: Result, folder: Path, record: dict[str, Any], written: Mapping[str, str]) -> None:
    """Write what people read, the model card and the page, and last the record with every file's digest.

    `written` has the digests of the files that were hashed while they were written.
    """
    tuned = run.inputs.tuned
    own = tuned.files() if isinstance(tuned, MergedCheckpoint) else tuned
    origin = Origin(
        name=run.config.out.name,
        base=run.config.base,
        tuned=run.config.tuned,
        is_adapter=record["output"] == "adapter",
        is_builtin=is_builtin(run.config),
        card=_own_card(own.folder),
        base_card=_own_card(run.inputs.base.folder),
        base_named=own.config.get("base_model_name_or_path"),
    )
    (folder / CARD).write_text(model_card(origin, record), encoding="utf-8")
    if "check" in record:
        labels = [path.split("/")[-2] for path in run.spec.kernels]
        write_page(folder / PAGE, record, result.answers, labels)
    record["outputs"] = _files_under(folder, written)
    (folder / RECORD).write_bytes(to_json(record))


def _own_card(folder: Path) -> str:
    path = folder / CARD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _written(run: Run, result: Result) -> tuple[Checkpoint, Mapping[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the checkpoint that the output is like, its changed tensors, and the changed neurons of each."""
    inputs = run.inputs
    if inputs.adapter is None or inputs.coordinates is None:
        restored = RestoredTensors(result.corrected, inputs.tuned, run.spec)
        return inputs.tuned, restored, _neurons(run, result)
    if result.factors is not None:
        learnt = LearntAdapter(inputs.adapter, run.spec, result.factors)
        return inputs.adapter.files(), learnt, learnt.neurons
    changed = RestoredAdapter(
        inputs.adapter,
        run.spec,
        result.selection,
        corrected=result.corrected,
        coordinates=inputs.coordinates,
    )
    return inputs.adapter.files(), changed, changed.neurons


def _stop_where_evaluate_stops(tuned: Checkpoint, spec: ModelSpec, folder: Path) -> None:
    """Add to generation_config.json the ids that end a completion and that neither it nor config.json lists.

    Such an id is the end token of an adapter's own tokenizer.
    """
    ids = end_ids(tuned, spec, load_tokenizer(tuned.tokenizer_folder))
    path = folder / "generation_config.json"
    found = read_json(path) if path.is_file() else {}
    listed = found.get("eos_token_id", list(spec.eos_token_ids))
    known = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not set(ids) <= set(known):
        kept = [token for token in known if token in ids]
        value = found | {"eos_token_id": [*kept, *(token for token in ids if token not in known)]}
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _neurons(run: Run, result: Result) -> dict[str, np.ndarray]:
    """Return the restored neurons of every kept kernel, by tensor name."""
    names, granularity, masks = kernel_names(run.spec), run.config.granularity, result.selection.masks
    return {
        names[kernel]: hf_neurons(np.asarray(masks[kernel.path][kernel.index]), granularity)
        for kernel in result.corrected
    }


def make_record(run: Run, result: Result, digests: BackgroundDigests) -> dict[str, Any]:
    """Build the content of hcnr.json, without the digests of the written files."""
    config, names = run.config, kernel_names(run.spec)
    cuts = cuts_of(config, run.spec, result.scores, selection=result.selection, names=names)
    lines = {}
    for kernel, name in names.items():
        lines[kernel] = kernel_record(kernel, name, result)
        if cuts.kernels is not None:
            lines[kernel]["cut"] = cuts.kernels[kernel]
    return {
        "format": RECORD_FORMAT,
        "config": config.model_dump(mode="json"),
        "unused_options": list(config.unused),
        "template_date": set_date(None).isoformat(),
        "versions": versions(),
        "output": "model" if run.inputs.adapter is None and config.rank is None else "adapter",
        "dtype": run.plan.dtype,
        "batches": [shape._asdict() for shape in run.plan.shapes],
        "model": {"family": run.spec.family, "layers": run.spec.num_layers, "kernels": len(names)},
        "inputs": {
            **{
                name: {file: digests.file(path) for file, path in model_paths(model).items()}
                for name, model in (("base", run.inputs.base), ("tuned", run.inputs.tuned))
            },
            "honesty": sha256_files([config.honesty]),
            "task": sha256_files([config.task]),
        },
        "rows": {
            name: {"count": len(part.losses), "mean_loss": float(part.losses.mean())}
            for name, part in result.scores.items()
        },
        "cut": cuts.whole,
        "kernels": list(lines.values()),
        "seconds": run.reporter.seconds,
        "warnings": run.reporter.warnings,
        **result.notes,
    }


def _files_under(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Return the sha256 of every file of a folder and its subfolders, by relative path; `known` ones are not read."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in files}
    return {name: known.get(name) or sha256_file(path) for name, path in names.items()}


def kernel_record(kernel: Kernel, name: str, result: Result) -> dict[str, Any]:
    """Build one kernel's line: d_j, whether the kernel is kept, and its restored neurons.

    A solved kernel also has the output distances d_hon (without damping), and the solve's residual and condition.
    """
    selection, corrected = result.selection, result.corrected.get(kernel)
    mask = selection.masks[kernel.path][kernel.index]
    record: dict[str, Any] = {
        "tensor": name,
        "perturbation": selection.perturbations[kernel],
        "kept": kernel in selection.kept,
        "neurons": int(np.asarray(mask).size),
        "neurons_restored": int(np.asarray(mask).sum()),
    }
    if corrected is None or corrected.info is None:
        return record
    info = corrected.info
    return record | {
        "solve": corrected.form,
        "d_hon": {
            "tuned": info.distance_tuned,
            "uncompensated": info.distance_plain,
            "restored": info.distance_restored,
        },
        "residual": info.solve.residual,
        "condition": info.solve.condition,
        "steps": info.solve.steps,
        "correction": info.correction,
    }
