"""Imports run one way: every module of the package, parsed, imports only what stands before it."""

import ast
from pathlib import Path

import pytest

import hcnr_jax

ROOT = Path(hcnr_jax.__file__).parent
# What stands on one line does not import each other; `ALLOWED` names the exceptions.
LAYERS = (
    ("errors",),
    ("runtime", "presets"),
    ("config",),
    ("models", "checkpoints", "data"),
    ("method",),
    ("evaluate", "training", "baselines"),
    ("organism", "report"),
    ("restoration",),
    ("experiments", "commands"),
    ("bench", "integrations"),
    ("cli",),
)
LAYER = {part: place for place, parts in enumerate(LAYERS) for part in parts}
# checkpoints fills params by a model's shapes, and needs no more of models than their description.
# The training rivals are the trainer's objectives on other rows, judged by the labels that evaluation reads.
# An experiment's options name the methods of the table of baselines, which imports nothing.
ALLOWED = {
    ("checkpoints", "models.spec"),
    ("checkpoints", "models.families"),
    ("baselines", "training"),
    ("baselines", "evaluate.ask.prompts"),
    ("config", "baselines"),
    # Options know what an objective reads from its table, which imports nothing.
    ("config", "method.objectives.table"),
}
# The method sees pytrees and functions alone.
FORBIDDEN = {("method", part) for part in ("models", "checkpoints", "data")}


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path):
    """The part of the package that a file is in: its folder's name, or its own."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """(line, name) of every import of the package, 'models.spec.ModelSpec', also in functions and for type checkers."""
    package = ("hcnr_jax", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = start + (node.module.split(".") if node.module else [])
            names = [[*stem, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "hcnr_jax":
                yield node.lineno, ".".join(name[1:])


def fault(importer, name):
    """Why the part `importer` may not import `name`; None where it may."""
    part = name.split(".")[0]
    exempt = any(importer == who and f"{name}.".startswith(f"{what}.") for who, what in ALLOWED)
    if importer == part or part == "__version__" or exempt:
        return None
    if part not in LAYER:
        return f"'{part}' has no place in the order"
    if (importer, part) in FORBIDDEN or LAYER[part] >= LAYER[importer]:
        return f"{importer} may not import {part}"
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    importer = part_of(path)
    assert importer in LAYER, f"{path.name}: '{importer}' has no place in the order of imports: give it one"
    faults = [f"line {line}: {why}" for line, name in imported(path) if (why := fault(importer, name))]
    assert not faults, f"{path.relative_to(ROOT)}: {'; '.join(faults)}"


def test_a_wrong_import_would_be_found(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    file = tmp_path / "method" / "bad.py"
    file.write_text(
        "from hcnr_jax import data, runtime\nfrom ..models.spec import ModelSpec\nfrom . import solve\n"
        "def late():\n    import hcnr_jax.restoration.run\n",
        "utf-8",
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = list(imported(file))
    names = ["data", "runtime", "models.spec.ModelSpec", "method.solve", "restoration.run"]
    assert [name for _, name in found] == names
    assert [name for _, name in found if fault("method", name)] == ["data", "models.spec.ModelSpec", "restoration.run"]


@pytest.mark.parametrize(
    ("importer", "name"),
    [("method", "evaluate"), ("data", "method.solve"), ("models", "data"), ("checkpoints", "models.decoder"),
     ("checkpoints", "models.specious"), ("report", "cli"), ("method", "__init__"), ("method", "")],
)  # fmt: skip
def test_the_order_forbids(importer, name):
    assert fault(importer, name) is not None


@pytest.mark.parametrize(
    ("importer", "name"),
    [("method", "runtime.memory"), ("checkpoints", "models.spec.ModelSpec"), ("cli", "errors"), ("cli", "__version__")],
)
def test_the_order_allows(importer, name):
    assert fault(importer, name) is None
