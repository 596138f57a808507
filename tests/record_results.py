"""Records what a refactoring must not change: weight files, metrics, JSON fields, options and public names.

    python tests/record_results.py before.json
    python tests/record_results.py after.json --compare before.json

The first command writes the record of the tree that the script lies in. The second compares it with an earlier record,
names each difference, and exits with 1 if it finds any. Both must run on one machine: other devices round differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.tiny import honesty_rows, task_rows, write_rows, write_tiny_model  # noqa: E402

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "none": ("--compensation", "none"),
    "paper": ("--compensation", "paper", "--inputs", "local"),
    "exact": ("--compensation", "exact"),
    "two_sided": ("--compensation", "two_sided"),
    "two_sided-local": ("--compensation", "two_sided", "--inputs", "local"),
}
VARIANTS: dict[str, tuple[str, ...]] = {
    "refine": ("--refine", "1"),
    "stream": ("--stream",),
    "cg": ("--solver", "cg"),
    "raw": ("--priority", "raw", "--cross-weight", "0.4"),
    "random": ("--priority", "random"),
    "output": ("--granularity", "output", "--compensation", "none"),
    "weight": ("--granularity", "weight", "--compensation", "none"),
    "mesh": ("--mesh", "data=2,model=2"),
}
COMMANDS = ("restore", "apply", "demo", "evaluate", "probe", "diagnose", "data", "tune", "compare", "ablate", "sweep",
            "recovery", "bench")  # fmt: skip
# Fields of metrics.json that depend on the clock, the place or the package's version.
VOLATILE = re.compile("second|minute|time|version|path|folder|memory|bytes|created")


def hcnr(*arguments: object, devices: int = 1) -> str:
    """Run a command of this tree in a process of its own; its standard output. RuntimeError where it fails."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    code = "import sys; from hcnr_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"hcnr {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every weight file below a folder. Of patches, the tensors alone: their header names versions."""
    return {str(path.relative_to(folder)): tensors_hash(path) for path in sorted(folder.rglob("*.safetensors"))}


def tensors_hash(path: Path) -> str:
    """The sha256 of a safetensors file without the metadata of its header."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + content[8 + size :]).hexdigest()


def fields(value: Any, path: str = "") -> Iterator[str]:
    """Every field of a JSON value as a dotted path; names of tensors and places in lists become `*`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from fields(item, f"{path}.{'*' if 'layers' in key or key.startswith('version') else key}")
    elif isinstance(value, list):
        for item in value:
            yield from fields(item, f"{path}.*")
    else:
        yield path.removeprefix(".")


def stable(value: Any) -> Any:
    """A JSON value without its volatile fields."""
    if isinstance(value, Mapping):
        return {key: stable(item) for key, item in value.items() if not VOLATILE.search(key)}
    return [stable(item) for item in value] if isinstance(value, list) else value


def restorations(folder: Path) -> dict[str, Any]:
    """Weight hashes of one restoration for each family and variant, and the fields of hcnr.json."""
    found: dict[str, Any] = {}
    for family in FAMILIES:
        base = write_tiny_model(folder / family / "base", family)
        tuned = write_tiny_model(folder / family / "tuned", seed=7, base=base, delta=0.2)
        honesty = write_rows(folder / family / "honesty.jsonl", honesty_rows(12))
        task = write_rows(folder / family / "task.jsonl", task_rows(12))
        for name, options in (OBJECTIVES | (VARIANTS if family == "llama" else {})).items():
            out = folder / family / name
            rows = ("--honesty", honesty, "--task", task, "--samples", 8)
            hcnr("restore", base, tuned, *rows, *options, "--out", out, devices=4 if name == "mesh" else 1)
            record = json.loads((out / "hcnr.json").read_text("utf-8"))
            found[f"{family} {name}"] = hashes(out) | {"fields": sorted(set(fields(record)))}
    return found


def demo(folder: Path) -> dict[str, Any]:
    """Weight hashes and metrics of the short demo."""
    hcnr("demo", "--seed", 0, "--fast", "--out", folder / "demo")
    metrics = json.loads((folder / "demo" / "metrics.json").read_text("utf-8"))
    return hashes(folder / "demo") | {"metrics": stable(metrics)}


def options() -> dict[str, list[str]]:
    """The options of every command."""
    return {name: sorted(set(re.findall(r"--[a-z][a-z0-9-]*", hcnr(name, "--help")))) for name in COMMANDS}


def public_names() -> list[str]:
    """The public names of the package."""
    import hcnr_jax

    return sorted(hcnr_jax.__all__)


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Every place where two records differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key, "absent"), after.get(key, "absent"), f"{path}/{key}")
    elif isinstance(before, list) and isinstance(after, list):
        gone, new = [x for x in before if x not in after], [x for x in after if x not in before]
        if gone or new:
            yield f"{path}: gone {gone}, new {new}"
    elif before != after:
        yield f"{path}: {before} before, {after} after"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the record; compare it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="file to write")
    parser.add_argument("--compare", type=Path, help="an earlier record")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = {
            "names": public_names(),
            "options": options(),
            "restorations": restorations(folder),
            "demo": demo(folder),
        }
    asked.record.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    found = list(differences(json.loads(asked.compare.read_text("utf-8")), record)) if asked.compare else []
    sys.stdout.writelines(f"{line}\n" for line in found or ["no difference" if asked.compare else "recorded"])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
