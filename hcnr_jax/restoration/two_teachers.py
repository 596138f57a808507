"""Takes the steps of `--refine` by AdamW: restored weights, or an adapter's A and B, learn from BASE and from TUNED.

The steps start from the corrected kernels. Rows that the restoration has not read tell when to stop: the state with the
lowest J on these rows is used, so that the steps never end worse there than they began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.data import Example, pad_examples
from hcnr_jax.method.adapter import Coordinates, restored_columns
from hcnr_jax.method.neurons import Kernel, Leaves, Params, get_leaves, put_leaves, spread
from hcnr_jax.restoration.correct import restored_params
from hcnr_jax.restoration.decoder_blocks import completion_outputs
from hcnr_jax.restoration.kernel_names import kernel_names
from hcnr_jax.restoration.microbatches import loss_window
from hcnr_jax.restoration.questions.held_out import judging_examples
from hcnr_jax.restoration.resume.products import CorrectedKernel
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.select import Selection
from hcnr_jax.training.lora import adapted, joined
from hcnr_jax.training.teachers import BATCH, Lessons, Outputs, row_divergences, two_teachers, write_lessons
from hcnr_jax.training.trainer import TrainSettings, checked, each_step, epoch_batches

# The share of the steps in which the learning rate rises, and the default rates. An adapter's rate counts for A and B
# scaled to equal norms.
WARMUP, RATE, ADAPTER_RATE = 0.1, 4e-4, 4e-3
# One scored row of so many judges the steps where a file has too few others.
JUDGES_SHARE = 8
# How often the steps are judged, and after how many judgements without progress they end.
JUDGED, PATIENCE = 10, 3

Factors = tuple[np.ndarray, np.ndarray]


class _Student(NamedTuple):
    """Holds what learns: frozen and trained params, how they join into the model's params, and its forward pass."""

    frozen: Any
    trained: Any
    join: Callable[[Any, Any], Params]
    outputs: Outputs


class TwoTeachersResult(NamedTuple):
    """Holds the state after the steps.

    Args:
        corrected: the kept kernels; of an adapter all kernels that it moves.
        record: step, and mean KL in nats on the judging rows, of every judgement; the start comes first.
        factors: an adapter's new A^T (in, r) and c B^T (r, out) by kernel; None for whole weights.
    """

    corrected: dict[Kernel, CorrectedKernel]
    record: list[dict[str, float]]
    factors: dict[Kernel, Factors] | None


def learn_from_teachers(
    run: Run, selection: Selection, corrected: Mapping[Kernel, CorrectedKernel]
) -> TwoTeachersResult:
    """Take at most `config.refine` steps from the corrected kernels.

    Raises:
        NumericalError: the divergence is not finite; the message names the step.
    """
    config = run.config
    train, judges = _split(run)
    window = loss_window([example for examples in (*train, *judges) for example in examples])
    outputs = completion_outputs(run.spec, jnp.dtype(run.plan.dtype), window)
    adapter, coordinates = run.inputs.adapter, run.inputs.coordinates
    balances: dict[Kernel, float] = {}
    if adapter is None or coordinates is None:
        student = _weights(run, selection, corrected, outputs)
    else:
        start = _factors_of(adapter, coordinates, run, selection, corrected=corrected)
        balances = {kernel: _balance(*pair) for kernel, pair in start.items()}
        student = _adapter(run, {k: (a * balances[k], b / balances[k]) for k, (a, b) in start.items()}, outputs)
    weights = (1.0, config.task_weight)
    lessons = _lessons(outputs, run, train, weights)
    exams = [_lessons(outputs, run, (judges[0], []), weights), _lessons(outputs, run, ([], judges[1]), weights)]
    trained, record = _learn(run, student, lessons, exams)
    if not balances:
        moved = {kernel: trained[kernel.path][kernel.index] for kernel in corrected}
        return TwoTeachersResult({k: replace(corrected[k], weights=leaf) for k, leaf in moved.items()}, record, None)
    factors = {kernel: (a / balances[kernel], b * balances[kernel]) for kernel, (a, b) in _unstacked(trained, balances)}
    bases = get_leaves(run.models.base, [path for path in run.spec.kernels if any(k.path == path for k in factors)])
    found = {}
    for kernel, (a, b) in factors.items():
        weights = bases[kernel.path][kernel.index].astype(jnp.float32) + a @ b
        item = corrected.get(kernel)
        found[kernel] = CorrectedKernel(weights, item.form if item else "none", item.info if item else None)
    return TwoTeachersResult(found, record, factors)


def _split(run: Run) -> tuple[tuple[list[Example], list[Example]], tuple[list[Example], list[Example]]]:
    """Return the rows to learn from and the rows that judge, honesty and task.

    Rows of the files that are not scored judge, where there are enough of them; otherwise every eighth scored row does.
    """
    train, judges = [], []
    for role, scored in (("honesty", run.inputs.honesty), ("task", run.inputs.task)):
        others = judging_examples(run.inputs, role)
        if others:
            train.append(scored)
            judges.append(others)
        else:
            train.append([example for place, example in enumerate(scored) if place % JUDGES_SHARE])
            judges.append(scored[::JUDGES_SHARE])
    return (train[0], train[1]), (judges[0], judges[1])


def _lessons(
    outputs: Outputs, run: Run, sides: tuple[Sequence[Example], Sequence[Example]], weights: tuple[float, float]
) -> Lessons:
    """Ask BASE about honesty rows and TUNED about task rows, and join the answers."""
    length, rows = run.plan.shapes[-1]
    total = sum(map(len, sides))
    parts: list[Lessons] = []
    for teacher, examples, weight in zip(run.models, sides, weights, strict=True):
        for start in range(0, len(examples), rows):
            chosen = examples[start : start + rows]
            batch = pad_examples(chosen, length, rows)
            (found,) = write_lessons(outputs, teacher, [batch], weight * total / len(examples))
            parts.append(_some(found, 0, len(chosen)))
    joint: Lessons = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return joint


def _some(lessons: Lessons, start: int, stop: int) -> Lessons:
    found: Lessons = jax.tree.map(lambda leaf: leaf[start:stop], lessons)
    return found


def _weights(run: Run, selection: Selection, corrected: Mapping[Kernel, CorrectedKernel], outputs: Outputs) -> _Student:
    """Let the restored entries of the kept kernels learn."""
    start = restored_params(run.models.tuned, corrected)
    paths = [path for path in run.spec.kernels if path in {kernel.path for kernel in corrected}]
    leaves = get_leaves(start, paths)
    granularity = run.config.granularity
    masks = {path: spread(jnp.asarray(selection.masks[path]), leaf, granularity) for path, leaf in leaves.items()}

    def join(frozen: tuple[Params, Leaves], trained: Leaves) -> Params:
        params, masks = frozen
        old = get_leaves(params, trained)
        return put_leaves(params, {p: jnp.where(masks[p], x.astype(old[p].dtype), old[p]) for p, x in trained.items()})

    return _Student((start, masks), leaves, join, outputs)


def _factors_of(
    adapter: MergedCheckpoint,
    coordinates: Mapping[Kernel, Coordinates],
    run: Run,
    selection: Selection,
    *,
    corrected: Mapping[Kernel, CorrectedKernel],
) -> dict[Kernel, Factors]:
    """Return A^T with the restored columns and c B^T of every kernel that the adapter moves."""
    found = {}
    for kernel, name in kernel_names(run.spec).items():
        update = adapter.low_rank(name)
        if kernel not in coordinates or update is None:
            continue
        a, b, scale = update
        if kernel in corrected:
            rows = np.flatnonzero(np.asarray(selection.masks[kernel.path][kernel.index]))
            a[:, rows] = restored_columns(np.asarray(corrected[kernel].thin), coordinates[kernel].mixing)
        found[kernel] = a.T, scale * b.T
    return found


def _balance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the number that A^T is multiplied with, and c B^T divided by, to give both the same norm."""
    left, right = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return (right / left) ** 0.5 if left > 0 and right > 0 else 1.0


def _adapter(run: Run, factors: Mapping[Kernel, Factors], outputs: Outputs) -> _Student:
    """Let A and B of every kernel that the adapter moves learn, over BASE's kernels."""
    kernels = [path for path in run.spec.kernels if any(kernel.path == path for kernel in factors)]
    base, tuned = run.models
    frozen = put_leaves(tuned, get_leaves(base, kernels))

    def forward(params: Params, batch: Any) -> Any:
        with adapted(1.0):
            return outputs(params, batch)

    return _Student(frozen, _stacked(factors, kernels, run.spec.num_layers), joined, forward)


def _stacked(factors: Mapping[Kernel, Factors], paths: Sequence[str], layers: int) -> Params:
    """Stack factors into leaves lora_a (layers, in, r) and lora_b (layers, r, out), with zeros where there are none."""
    tree = {}
    for path in paths:
        own = {kernel.index[0]: pair for kernel, pair in factors.items() if kernel.path == path}
        rank = max(a.shape[1] for a, _ in own.values())
        a0, b0 = next(iter(own.values()))
        lora_a = np.zeros((layers, a0.shape[0], rank), np.float32)
        lora_b = np.zeros((layers, rank, b0.shape[1]), np.float32)
        for layer, (a, b) in own.items():
            lora_a[layer, :, : a.shape[1]], lora_b[layer, : b.shape[0]] = a, b
        parent = path.removesuffix("/kernel")
        tree[f"{parent}/lora_a"], tree[f"{parent}/lora_b"] = jnp.asarray(lora_a), jnp.asarray(lora_b)
    return dict(unflatten_dict(tree, sep="/"))


def _unstacked(trained: Params, kernels: Iterable[Kernel]) -> Iterator[tuple[Kernel, Factors]]:
    """Yield each kernel's factors, as `_stacked` took them. Columns of padding are zero."""
    for kernel in kernels:
        parent = kernel.path.removesuffix("/kernel")
        a, b = get_leaves(trained, [f"{parent}/lora_a", f"{parent}/lora_b"]).values()
        yield kernel, (np.asarray(a[kernel.index], np.float32), np.asarray(b[kernel.index], np.float32))


def _learn(run: Run, student: _Student, lessons: Lessons, exams: Sequence[Lessons]) -> tuple[Any, list[dict[str, Any]]]:
    """Take the steps. Return the params with the lowest J on the judging rows, and the record of the judgements."""
    config, rows = run.config, len(lessons.weight)
    batch = min(BATCH, rows)
    settings = TrainSettings(
        learning_rate=config.refine_rate or (RATE if run.inputs.adapter is None else ADAPTER_RATE),
        steps=config.refine,
        warmup_steps=int(WARMUP * config.refine),
        batch_size=batch,
        seed=config.seed or 0,
        microbatch=_divisor(batch, run.plan.shapes[-1].rows),
    )
    inner = two_teachers(student.outputs)

    def objective(frozen: Any, trained: Any, part: Lessons, key: jax.Array) -> Any:
        return inner(student.join(frozen, trained), part, key)

    def judge(trained: Any) -> tuple[float, float]:
        found = []
        for exam in exams:
            total = 0.0
            size = run.plan.shapes[-1].rows
            for place in range(0, len(exam.weight), size):
                part = _some(exam, place, place + size)
                total += float(jnp.sum(row_divergences(student.outputs, student.join(student.frozen, trained), part)))
            found.append(total / len(exam.weight))
        return found[0], found[1]

    def value(found: tuple[float, float]) -> float:
        return found[0] + config.task_weight * found[1]

    best = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), student.trained)
    lowest = value(start := judge(best))
    record: list[dict[str, Any]] = [{"step": 0, "honesty_kl": start[0], "task_kl": start[1]}]
    every, since, kept = max(1, config.refine // JUDGED), 0, 0
    steps = each_step(
        jax.tree_util.Partial(objective, student.frozen),
        best,
        epoch_batches(lessons, batch, settings.seed),
        settings=settings,
        key=jax.random.key(settings.seed),
    )
    with run.reporter.stage("refine", config.refine, "steps") as stage:
        for step, (trained, info) in enumerate(steps, 1):
            stage.advance()
            if step % every and step != config.refine:
                continue
            checked([info], step)
            found = judge(trained)
            record.append({"step": step, "honesty_kl": found[0], "task_kl": found[1]})
            since += 1
            if value(found) < lowest:
                best, lowest, since, kept = jax.tree.map(jnp.copy, trained), value(found), 0, step
            if since >= PATIENCE:
                break
    run.reporter.say(f"refine: the state after step {kept} has the lowest divergence on rows that were not learnt from")
    record.append({"kept_step": kept})
    return best, record


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is at most `limit`."""
    return max(size for size in range(1, min(number, limit) + 1) if number % size == 0)
