"""Section restore with its processes run in this one, which has compiled much of it already."""

import json
from pathlib import Path

import jax
import pytest

from hcnr_jax.bench import timed_restoration as child
from hcnr_jax.bench.measurement import BenchContext
from hcnr_jax.bench.model_shapes import spec_of
from hcnr_jax.bench.roofline import Rates
from hcnr_jax.bench.sections import restore
from hcnr_jax.config import BenchConfig


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """`run_restore` without a process: the same files in and out."""

    def run(config, environment=None):
        given, report = Path(tmp_path / "config.json"), Path(tmp_path / "report.json")
        given.write_text(config.model_dump_json())
        child.main(given, report)
        told = json.loads(report.read_text())
        return child.Run(1.0, told.pop("peak_bytes"), told)

    monkeypatch.setattr(restore, "run_restore", run)
    monkeypatch.setattr(restore, "PRESETS", ("paper",))
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_row_for_the_whole_and_one_for_each_stage(in_process, tmp_path) -> None:
    config = BenchConfig(shape="tiny", rows=4, tokens=8, repeats=1)
    context = BenchContext(config, spec_of("tiny"), "float32", Rates(1e9, 1e9, 1e9), tmp_path, print)
    whole, *stages = restore.measure(context)
    assert whole.name == "paper" and whole.against == "read both, write one" and whole.ratio > 1
    assert whole.memory > 1e6 and whole.compile_seconds > 0 and whole.notes["compilations"] > 0
    assert stages and all(row.name.startswith("paper: ") and row.seconds >= 0 for row in stages)
    assert not (tmp_path / "restore").exists()
