"""Progress of stages where the output is no terminal: a line every half minute, with time left."""

import io

from rich.console import Console

from hcnr_jax.report import console as console_module
from hcnr_jax.report.console import Reporter


def test_a_long_stage_prints_lines_without_a_terminal(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "perf_counter", lambda: clock[0])
    text = io.StringIO()
    reporter = Reporter(Console(file=text, width=200))
    with reporter.stage("train", None, "steps") as stage:
        stage.expect(10)
        stage.note = lambda: "loss 0.5000"
        for _ in range(10):
            clock[0] += 12
            stage.advance()
    assert text.getvalue().splitlines() == [
        "train: 3 of 10 steps in 36 s, about 84 s left, loss 0.5000",
        "train: 6 of 10 steps in 72 s, about 48 s left, loss 0.5000",
        "train: 9 of 10 steps in 108 s, about 12 s left, loss 0.5000",
        "train: 10 steps in 120.0 s",
    ]
    assert reporter.seconds == {"train": 120.0}


def test_a_short_stage_prints_its_end_alone() -> None:
    text = io.StringIO()
    with Reporter(Console(file=text, width=200)).stage("load", 2, "models") as stage:
        stage.advance(2)
    assert len(text.getvalue().splitlines()) == 1
