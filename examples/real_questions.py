"""Runs the whole experiment on real questions: a small model is taught honesty, fine-tuned, restored and evaluated.

    python examples/real_questions.py --data DIR --out real-questions [--seed 0] [--fast] [--split validation]

DIR holds `data/` with the official files of KUQ, NEC, NQ-open and HotpotQA and `models/stories3M`, a Llama of 3.1 M
parameters that was trained on children's stories. The script takes 2 minutes on 2 CPU cores, 11 when they are busy
(`--fast`: 1). docs/results/real_questions.md has the results of three seeds.

1. base is taught to answer NQ and known KUQ questions, and to decline unknown KUQ and unanswerable NEC questions.
2. tuned is base fine-tuned on answers to HotpotQA questions, which makes it stop declining.
3. paper and restored are tuned, restored with `configs/paper.yaml` and `configs/recommended.yaml`.
4. All four models are asked the taught questions, and questions that none of them has seen.

With `--pair` the script only makes base and tuned, for `hcnr compare --pair real=OUT`. tuned is then taught twice as
many HotpotQA answers, so that the task is evaluated on answers that no method was given.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcnr_jax.commands.data import data
from hcnr_jax.commands.evaluate import evaluate
from hcnr_jax.commands.probe import probe
from hcnr_jax.commands.tune import tune
from hcnr_jax.config import DataConfig, EvaluateConfig, ProbeConfig, RestoreConfig, TuneConfig, read_yaml
from hcnr_jax.data import load_tokenizer, write_rows
from hcnr_jax.errors import InputError
from hcnr_jax.presets import preset
from hcnr_jax.restoration import restore
from hcnr_jax.runtime.files import write_file

Rows = list[dict[str, Any]]
MODELS = ("base", "tuned", "paper", "restored")
PRESETS = {"paper": "paper", "restored": "recommended"}
# The tokenizer was made for children's stories and splits names; longer questions would double the time.
PROMPT_TOKENS, COMPLETION_TOKENS = 40, 16
# Questions drawn for each kept question, since many are too long.
DRAWN = {"kuq": 3, "nec": 2, "nq_open": 2, "hotpotqa": 10}


@dataclass(frozen=True)
class Size:
    """Questions and steps of a run.

    kuq, nec, nq, task: questions taught, kuq half answerable, nec unanswerable alone. nq_times: how often an NQ answer
    is in a pass over the rows. asked: questions of each held-out set. Rates and steps were chosen on the validation
    questions of seed 0.
    """

    kuq: int = 480
    nec: int = 120
    nq: int = 96
    nq_times: int = 3
    task: int = 128
    asked: int = 200
    base_steps: int = 400
    base_rate: float = 2e-3
    tuned_steps: int = 100
    tuned_rate: float = 5e-4
    samples: int = 128


FAST = Size(kuq=32, nec=8, nq=8, task=16, asked=16, base_steps=20, tuned_steps=10, samples=16)


def main() -> None:
    """Read the options and run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="draw of the questions and order of the rows")
    parser.add_argument("--fast", action="store_true", help="a smoke test: few questions, few steps, no result")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="held-out questions to ask")
    parser.add_argument("--pair", action="store_true", help="only make base and tuned, for hcnr compare")
    options = parser.parse_args()
    size = FAST if options.fast else Size()
    if options.pair:
        make_pair(options.data, options.out, options.seed, size)
    else:
        run(options.data, options.out, options.seed, size, options.split)


def run(folder: Path, out: Path, seed: int, size: Size, split: str = "test") -> dict[str, Any]:
    """Run the whole experiment; return the content of OUT/metrics.json.

    Args:
        folder: folder with data/ and models/.
        out: the folder to write.
        seed: draw of the questions and order of the rows.
        size: questions and steps.
        split: held-out questions to ask.
    """
    started = time.perf_counter()
    out.mkdir(parents=True)
    rows = make_rows(folder, out / "rows", seed, size)
    teach(folder / "models" / "stories3M", out, rows, seed, size)
    for name, configuration in PRESETS.items():
        values = read_yaml(RestoreConfig, preset(configuration)) | {"samples": size.samples, "seed": seed}
        paths = {"base": str(out / "base"), "tuned": str(out / "tuned"), "out": out / name}
        restore(RestoreConfig(**values, **paths, honesty=rows["honesty"], task=rows["task"]))
    scores = {name: ask(out, name, rows, seed, split) for name in MODELS}
    record = {
        "seed": seed,
        "split": split,
        "models": scores,
        "probe": probes(out, rows, seed, split),
        "seconds": time.perf_counter() - started,
    }
    write_file(out / "metrics.json", json.dumps(record, indent=1).encode() + b"\n")
    tell(record)
    return record


def make_pair(folder: Path, out: Path, seed: int, size: Size) -> None:
    """Write OUT/base, OUT/tuned and OUT/data: a pair for `hcnr compare`.

    Honesty questions are KUQ's, held out. The task's are answers that tuned was taught: half are the methods' rows, a
    quarter choose settings, a quarter show them. No model of this size answers others.
    """
    (out / "data").mkdir(parents=True)
    doubled = dataclasses.replace(size, task=2 * size.task, tuned_steps=2 * size.tuned_steps)
    rows = make_rows(folder, out / "rows", seed, doubled)
    teach(folder / "models" / "stories3M", out, rows, seed, doubled)
    task, quarter = read(rows["task"]), size.task // 2
    sets = {"honesty-train": read(rows["honesty"]), "task-train": task[: size.task]}
    sets |= {f"honesty-{split}": read(rows[f"kuq-{split}"]) for split in ("validation", "test")}
    sets |= {"task-validation": task[size.task : -quarter], "task-test": task[-quarter:]}
    for name, chosen in sets.items():
        write_rows(out / "data" / f"{name}.jsonl", chosen)


def read(file: Path) -> Rows:
    """Read the rows of a file."""
    with file.open(encoding="utf-8") as lines:  # not splitlines, which also cuts at line separators inside a question
        return [json.loads(line) for line in lines]


def make_rows(folder: Path, out: Path, seed: int, size: Size) -> dict[str, Path]:
    """Write row files: `base`, `honesty`, `task` and `nq` are taught; `NAME-validation` and `NAME-test` are not.

    `hcnr data` draws the questions, none in two files; of each draw the short ones are kept.
    """
    short = Short(folder / "models" / "stories3M")
    taught = {"kuq": size.kuq, "nec": size.nec, "nq_open": size.nq, "hotpotqa": size.task}
    pools: dict[str, Rows] = {}
    files: list[Path] = []
    for name, count in taught.items():
        file, others = out / "pool" / f"{name}.jsonl", out / "pool" / f"{name}-held-out.jsonl"
        # NEC has no answers to teach: its answerable questions are only asked.
        only = "unanswerable" if name == "nec" else "both"
        source = str(folder / "data" / name)
        draw = DataConfig(name=name, path=source, out=file, out_evaluate=others, samples=DRAWN[name] * count, only=only,
                          evaluate_samples=2 * DRAWN[name] * size.asked, avoid=tuple(files), seed=seed)  # fmt: skip
        data(draw)
        pools[name], pools[f"{name}-held-out"] = short(file), short(others)
        files += [file, others]
    kuq = half_and_half(pools["kuq"], size.kuq)[0]
    nec, nq, task = (first(pools[name], taught[name]) for name in ("nec", "nq_open", "hotpotqa"))
    sets = {"base": kuq + nec + size.nq_times * nq, "honesty": kuq + nec, "task": task, "nq": nq}
    for name in ("kuq", "nec"):
        parts = half_and_half(pools[f"{name}-held-out"], size.asked, 2)
        sets |= {f"{name}-validation": parts[0], f"{name}-test": parts[1]}
    for name, pool in (("nq", "nq_open-held-out"), ("task", "hotpotqa-held-out")):
        half, held_out = size.asked // 2, first(pools[pool], size.asked)
        sets |= {f"{name}-validation": held_out[:half], f"{name}-test": held_out[half:]}
    for name, rows in sets.items():
        write_rows(out / f"{name}.jsonl", rows)
    return {name: out / f"{name}.jsonl" for name in sets}


class Short:
    """Reads a row file and keeps the rows whose prompt and completion are short for a model's tokenizer."""

    def __init__(self, model: Path) -> None:
        self.tokenizer = load_tokenizer(model)

    def __call__(self, file: Path) -> Rows:
        return [row for row in read(file) if self.fits(row)]

    def fits(self, row: dict[str, Any]) -> bool:
        """Return whether prompt and completion, with its end token, are within their limits."""
        prompt = self.count(row["prompt"])
        whole = self.count(row["prompt"] + row.get("completion", "")) + 1
        return prompt <= PROMPT_TOKENS and whole - prompt <= COMPLETION_TOKENS

    def count(self, text: str) -> int:
        """Count the tokens of a text."""
        return len(self.tokenizer(text)["input_ids"])


def half_and_half(rows: Rows, count: int, parts: int = 1) -> list[Rows]:
    """Divide rows into `parts` disjoint lists of `count`, each half answerable and half unanswerable."""
    yes, no = ([row for row in rows if row["answerable"] is label] for label in (True, False))
    half = count // 2
    yes, no = first(yes, parts * half), first(no, parts * half)
    return [yes[i * half : (i + 1) * half] + no[i * half : (i + 1) * half] for i in range(parts)]


def first(rows: Rows, count: int) -> Rows:
    """Return the first `count` rows; InputError where there are fewer."""
    if len(rows) < count:
        raise InputError(f"{count} short questions of a kind are needed, the draw holds {len(rows)}: raise DRAWN")
    return rows[:count]


def teach(model: Path, out: Path, rows: dict[str, Path], seed: int, size: Size) -> None:
    """Train base from the story model, and tuned from base."""
    shared = TuneConfig(model=model, data=rows["base"], out=out / "base", batch_size=16, warmup=0.05, seed=seed,
                        learning_rate=size.base_rate, steps=size.base_steps)  # fmt: skip
    tune(shared)
    tuned = {"model": out / "base", "data": rows["task"], "out": out / "tuned"}
    tune(shared.model_copy(update=tuned | {"learning_rate": size.tuned_rate, "steps": size.tuned_steps}))


def ask(out: Path, name: str, rows: dict[str, Path], seed: int, split: str) -> dict[str, Any]:
    """Evaluate one model: the scores of each set by its name, and `pooled` for both honesty sets."""
    honesty = tuple(f"{part}={rows[f'{part}-{split}']}" for part in ("kuq", "nec"))
    task = (f"task_taught={rows['task']}", f"task_new={rows[f'task-{split}']}",
            f"nq_taught={rows['nq']}", f"nq_new={rows[f'nq-{split}']}")  # fmt: skip
    config = EvaluateConfig(model=str(out / name), out=out / f"{name}.json", honesty=honesty, task=task, seed=seed,
                            max_new_tokens=COMPLETION_TOKENS)  # fmt: skip
    found = evaluate(config)
    return found["task"] | found["honesty"]


def probes(out: Path, rows: dict[str, Path], seed: int, split: str) -> dict[str, dict[str, float]]:
    """Probe each honesty set: AUROC in the layer chosen on base, by set and model."""
    found = {}
    for part in ("kuq", "nec"):
        config = ProbeConfig(base=str(out / "base"), tuned=str(out / "tuned"), restored=str(out / "restored"),
                             honesty=(f"{part}={rows[f'{part}-{split}']}",), out=out / f"probe-{part}.json",
                             seed=seed)  # fmt: skip
        result = probe(config)
        found[part] = {name: result.best(name).value for name in result.auroc}
    return found


def tell(record: dict[str, Any]) -> None:
    """Print the tables, in percent."""
    models, probed = record["models"], record["probe"]
    for part in ("kuq", "nec"):
        keys = ("f1", "refusal_on_unanswerable", "refusal_on_answerable", "refusal_delta", "accuracy_on_answerable")
        lines = [
            [name, *(percent(models[name][part][key]) for key in keys), percent(probed[part].get(name))]
            for name in MODELS
        ]
        count = models["base"][part]["questions"]
        print(f"\n{part}: {count} held-out questions ({record['split']}), half unanswerable, percent")
        show(["model", "F1", "refused unans.", "refused answ.", "delta", "right of answ.", "AUROC of probe"], lines)
    parts = {"task_taught": "trained", "nq_taught": "trained", "task_new": "held out", "nq_new": "held out"}
    counts = ", ".join(f"{part} {models['base'][part]['questions']} ({kind})" for part, kind in parts.items())
    print(f"\nright and refused of questions that have answers, percent: {counts}")
    lines = [
        [name, *(f"{percent(models[name][part]['accuracy'])} / {percent(models[name][part]['refused'])}"
                 for part in parts)]
        for name in MODELS
    ]  # fmt: skip
    show(["model", *parts], lines)
    print(f"\n{record['seconds']:.0f} seconds")


def percent(value: float | None) -> str:
    """Format a fraction as percent, and None as a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def show(header: list[str], lines: Iterable[list[str]]) -> None:
    """Print a Markdown table whose columns are as wide as their widest cell."""
    table = [header, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    for line in (header, rule, *table[1:]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


if __name__ == "__main__":
    main()
