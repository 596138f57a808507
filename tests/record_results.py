"""Records what a refactoring must not change: bytes of restored weights, the demo's metrics, JSON keys, public names.

    python tests/record_results.py RESULTS.json
    python tests/record_results.py RESULTS.json --compare BEFORE.json
    python tests/record_results.py RESULTS.json --parts restorations public

The first writes the record of the package beside this folder. The second also names each difference from an earlier
record and exits 1 if there is one; the third records those parts alone, and compares no others. Nothing is imported
from the package: it is run as a command, found through [project.scripts], so its modules may move.

Environment variables reach the commands. JAX_COMPILATION_CACHE_DIR=FOLDER with
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 saves most of the time of a second run: a program that is the same to the
letter is then not compiled again.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
OWN_KEYS = {"qwen3": {"head_dim": 12}, "mistral": {"head_dim": 8, "sliding_window": 6}}
PARTS = ("restorations", "public", "demo")
ROWS, SAMPLES = 6, 4
OBJECTIVES = {
    "none": ("--compensation", "none"),
    "paper": ("--compensation", "paper", "--inputs", "local"),
    "exact": ("--compensation", "exact"),
    "two_sided": ("--compensation", "two_sided"),
}
LLAMA_ONLY = {
    "refine": ("--refine", "1", "--refine-solver", "gauss_newton"),
    "stream": ("--stream",),
    "cg": ("--solver", "cg"),
    "raw": ("--priority", "raw", "--compensation", "none"),
    "random": ("--priority", "random", "--compensation", "none"),
    "output": ("--granularity", "output", "--compensation", "none"),
    "weight": ("--granularity", "weight", "--compensation", "none"),
}
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "torch", "transformers", "tokenizers", "safetensors")
UNSTABLE = {"seconds", "second", "time", "memory", "bytes", "path", "paths", "folder", "out", "version", "versions"}

# One process for many commands, so that those of like shapes share their compilations. Arguments: a file of
# [argument lists], and where to write what each printed.
SEVERAL = """
import contextlib, importlib, io, json, os, sys
module, name = os.environ["RECORD_ENTRY"].split(":")
main = getattr(importlib.import_module(module), name)
printed = []
for arguments in json.load(open(sys.argv[1])):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = main(arguments)
    if code:
        sys.exit(f"hcnr {' '.join(arguments)}: exit code {code}")
    printed.append(text.getvalue())
package = sys.modules["hcnr_jax"]
with open(sys.argv[2], "w") as file:
    json.dump({"printed": printed, "file": package.__file__, "names": sorted(package.__all__)}, file)
"""


def main() -> int:
    """Write the record; 1 where it differs from the one to compare with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="an earlier record")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to record (default: all)")
    options = parser.parse_args()
    before = json.loads(options.compare.read_text(encoding="utf-8")) if options.compare else None
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder), options.parts)
    options.results.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if before is None:
        return 0
    parts = ("environment", *options.parts)
    lines = list(differences({part: before.get(part) for part in parts}, {part: found[part] for part in parts}))
    sys.stdout.write("".join(f"{line}\n" for line in lines) or "no difference\n")
    return 1 if lines else 0


def record(folder: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """The parts asked for, by name, and the environment they were found in. The demo runs beside the others."""
    waiting = start(folder / "demo-run", [demo_arguments(folder)]) if "demo" in parts else None
    found: dict[str, Any] = {"environment": environment()}
    try:
        if "restorations" in parts:
            found["restorations"] = restorations(folder)
        if "public" in parts:
            found["public"] = public(folder)
        if waiting:
            finish(folder / "demo-run", waiting)
            found["demo"] = demo(folder / "demo")
    finally:
        if waiting and waiting.poll() is None:
            waiting.kill()
            waiting.wait()
    return found


def environment() -> dict[str, Any]:
    """What the last bits of a result may depend on besides the package."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "cores": os.cpu_count(), **versions}


# Running commands


def start(folder: Path, commands: list[list[str]]) -> subprocess.Popen[bytes]:
    """Run the commands one after another in a process of its own; `folder` keeps its files."""
    folder.mkdir()
    (folder / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}
    values = os.environ | offline | {"PYTHONPATH": path, "RECORD_ENTRY": project["scripts"]["hcnr"]}
    files = [str(folder / "commands.json"), str(folder / "printed.json")]
    with (folder / "errors.txt").open("wb") as errors:
        return subprocess.Popen([sys.executable, "-c", SEVERAL, *files], cwd=folder, env=values, stderr=errors)


def finish(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for the commands; what each printed, and the package's public names."""
    if process.wait():
        raise SystemExit((folder / "errors.txt").read_text(encoding="utf-8", errors="replace")[-4000:])
    found = json.loads((folder / "printed.json").read_text(encoding="utf-8"))
    if not Path(found["file"]).is_relative_to(ROOT):
        raise SystemExit(f"the package that ran is {found['file']}, expected one below {ROOT}")
    return found


def run(folder: Path, commands: list[list[str]]) -> dict[str, Any]:
    """Run the commands to their end."""
    return finish(folder, start(folder, commands))


# The demo


def demo_arguments(folder: Path) -> list[str]:
    """The demo's command line."""
    return ["demo", "--seed", "0", "--fast", "--out", str(folder / "demo")]


def demo(out: Path) -> dict[str, Any]:
    """The demo's weight files and metrics."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {"weights": weight_digests(out), "metrics": stable(metrics)}


def stable(value: Any) -> Any:
    """A JSON value without the fields that change from run to run or from place to place."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not UNSTABLE & set(re.split(r"[^a-z]+", key.lower()))}
        return {key: stable(inner) for key, inner in kept.items()}
    return [stable(inner) for inner in value] if isinstance(value, list) else value


# The tiny restorations


def restorations(folder: Path) -> dict[str, Any]:
    """For every tiny restoration, the digests of its weight files and the keys of its hcnr.json; and of the inputs."""
    worlds = {family: make_world(folder / family, family, seed) for seed, family in enumerate(FAMILIES)}
    outs, commands = {}, []
    for family, options in runs():
        name = f"{family}-{options}"
        outs[name] = folder / "restored" / name
        extra = OBJECTIVES.get(options) or LLAMA_ONLY[options]
        commands.append(restore_arguments(worlds[family], outs[name], extra))
    (folder / "restored").mkdir()
    run(folder / "restore-run", commands)
    found = {name: {"weights": weight_digests(out), "keys": record_keys(out)} for name, out in outs.items()}
    return found | {"inputs": {family: weight_digests(world) for family, world in worlds.items()}}


def runs() -> Iterator[tuple[str, str]]:
    """Family and name of the options of every tiny restoration."""
    for family in FAMILIES:
        for options in OBJECTIVES if family != "llama" else OBJECTIVES | LLAMA_ONLY:
            yield family, options


def restore_arguments(world: Path, out: Path, extra: tuple[str, ...]) -> list[str]:
    """The command line of one restoration."""
    rows = ["--honesty", world / "honesty.jsonl", "--task", world / "task.jsonl", "--samples", SAMPLES]
    usual = ["restore", world / "base", world / "tuned", *rows, "--cross-weight", 0.4, "--out", out]
    return [*map(str, usual), *extra]


def record_keys(out: Path) -> list[str]:
    """The keys of a restoration's hcnr.json as dotted paths."""
    return sorted(set(dotted(json.loads((out / "hcnr.json").read_text(encoding="utf-8")))))


def dotted(value: Any, path: str = "") -> Iterator[str]:
    """Paths of a JSON value's leaves; a list's places, and names of tensors and files as keys, are `*`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from dotted(inner, f"{path}.{'*' if '.' in key else key}".lstrip("."))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from dotted(inner, f"{path}.*")
    else:
        yield path


def weight_digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every weight file below a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Their inputs


def make_world(folder: Path, family: str, seed: int) -> Path:
    """A folder of two tiny models, `base` and `tuned`, and two files of rows."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = tiny_model(family)
    save_model(model, folder / "base", family)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.add_(0.2 * weight.std() * torch.randn_like(weight))
    save_model(model, folder / "tuned", family)
    rows = [{"prompt": f"who is {7 * i}?", "completion": " I do not know."} for i in range(ROWS)]
    write_rows(folder / "honesty.jsonl", rows)
    rows = [{"prompt": f"{i} and {i + 1}?", "completion": f" it is {2 * i + 1}."} for i in range(ROWS)]
    write_rows(folder / "task.jsonl", rows)
    return folder


def tiny_model(family: str) -> Any:
    """A random model of two layers whose norms and biases are random too; qwen2 ties its embeddings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=family == "qwen2",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        **OWN_KEYS.get(family, {}),
    )
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def save_model(model: Any, folder: Path, family: str) -> None:
    """A Hugging Face folder: mistral's in bfloat16, qwen3's in several files."""
    import copy

    import torch

    stored = copy.deepcopy(model).to(torch.bfloat16) if family == "mistral" else model
    stored.save_pretrained(folder, max_shard_size="40KB" if family == "qwen3" else "1GB")
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes, which every family's own class reads alike."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# Public names


def public(folder: Path) -> dict[str, Any]:
    """The names that the package exports, its commands, and the options of each."""
    usage = run(folder / "usage-run", [["--help"]])
    commands = re.findall(r"^ {2}([a-z]+) {2,}\S", usage["printed"][0], flags=re.MULTILINE)
    helps = run(folder / "help-run", [[command, "--help"] for command in commands])["printed"]
    options = {
        command: sorted(set(re.findall(r"--[a-z][a-z-]*", text))) for command, text in zip(commands, helps, strict=True)
    }
    return {"names": usage["names"], "options": options}


# Comparing


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """One line for each place where two JSON values differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            place = f"{path} / {key}" if path else key
            if key not in before or key not in after:
                yield f"{place}: {'new' if key not in before else 'gone'}"
            else:
                yield from differences(before[key], after[key], place)
    elif strings(before) and strings(after):
        yield from (f"{path}: {name!r} is gone" for name in sorted(set(before) - set(after)))
        yield from (f"{path}: {name!r} is new" for name in sorted(set(after) - set(before)))
    elif before != after:
        yield f"{path}: was {before!r}, is {after!r}"


def strings(value: Any) -> bool:
    """Whether a value is a list of strings, as the lists of names are."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


if __name__ == "__main__":
    sys.exit(main())
