"""Runs the Python blocks of a documentation page, so that every example on it works."""

import ast
import importlib
import re
import sys
import types
from contextlib import contextmanager
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages(folder):
    """The pages of a folder of docs/ that hold a Python block, in alphabetical order."""
    return sorted(path for path in (DOCS / folder).glob("*.md") if blocks(path))


def blocks(path):
    """(first line in the page, source) of every Python block."""
    text = path.read_text("utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in _BLOCK.finditer(text)]


def run(path):
    """Execute the blocks of a page in order, in the namespace of one module, and return that module.

    The module can be imported under its `__name__` while the blocks run. Entries that a page adds to a table of the
    package, such as `TRAITS`, are removed afterwards.
    """
    module = types.ModuleType(f"page_{path.stem.replace('-', '_')}")
    found = blocks(path)
    sys.modules[module.__name__] = module
    try:
        with unchanged_tables([source for _, source in found]):
            for line, source in found:
                # Blank lines in front, so that a traceback names the line of the page.
                code = compile("\n" * (line - 1) + source, str(path), "exec")
                exec(code, vars(module))
    finally:
        del sys.modules[module.__name__]
    return module


@contextmanager
def unchanged_tables(sources):
    """Put every table of the package back that the sources, or modules they import, change."""
    for source in sources:
        for name in imported(source):
            importlib.import_module(name)
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "hcnr_jax"]
    tables = [
        table for module in modules for name, table in vars(module).items() if name.isupper() and type(table) is dict
    ]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)


def imported(source):
    """The modules of the package that a block imports."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [node.module for node in nodes if node.module and node.module.split(".")[0] == "hcnr_jax"]
