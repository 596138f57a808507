"""Section sweep: many settings from one scoring, against the compute of one restoration.

25 settings (five R_IW by five R_CW, two_sided) with local inputs share the scores and one pass through both models.
Settings with propagated inputs share only the scores; one and two of them are measured. Loading and writing are left
out on both sides. Single restorations are compiled before; the 25 settings include compilation for their sizes of R.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax

from hcnr_jax.bench.measurement import BenchContext, Measurement
from hcnr_jax.bench.random_models import write_pair
from hcnr_jax.bench.sections.restore import restore_config
from hcnr_jax.config import RestoreConfig
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.grid import restore_grid
from hcnr_jax.restoration.inputs import open_inputs
from hcnr_jax.restoration.load import load_run
from hcnr_jax.restoration.plan import make_plan
from hcnr_jax.restoration.score_pair import score_pair

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


def measure(context: BenchContext) -> list[Measurement]:
    """Measure 25 settings against one restoration with local inputs, and two against one with propagated inputs."""
    config = context.config
    folder = context.scratch / "sweep"
    folder.mkdir()
    pair = write_pair(folder, config.shape, context.dtype, rows=config.rows, tokens=config.tokens, seed=config.seed)
    first = restore_config("recommended", pair, folder / "out", rows=config.rows, seed=config.seed)
    reporter = Reporter()
    checked = open_inputs(first, reporter)
    opened = load_run(checked, make_plan(checked), reporter)
    score_pair(opened)
    start = time.perf_counter()
    scores = score_pair(opened)
    scoring = time.perf_counter() - start

    def run(configs: Sequence[RestoreConfig]) -> float:
        begun = time.perf_counter()
        for result in restore_grid(opened, configs, scores):
            jax.block_until_ready([item.weights for item in result.corrected.values()])
        return time.perf_counter() - begun

    for inputs in ("local", "propagated"):
        run(with_ratios(first, [(0.5, 0.4)], inputs=inputs))
    one = scoring + run(with_ratios(first, [(0.5, 0.4)], inputs="local"))
    grid = scoring + run(with_ratios(first, list(itertools.product(RATIOS, RATIOS)), inputs="local"))
    alone = scoring + run(with_ratios(first, [(0.5, 0.4)], inputs="propagated"))
    two = scoring + run(with_ratios(first, [(0.5, 0.4), (0.5, 0.6)], inputs="propagated"))
    shutil.rmtree(folder)
    return [
        Measurement("scoring alone", scoring),
        Measurement("25 settings, local", grid, "one, local", one),
        Measurement("2 settings, propagated", two, "one, propagated", alone),
    ]


def with_ratios(config: RestoreConfig, ratios: Sequence[tuple[float, float]], **changes: Any) -> list[RestoreConfig]:
    """Return the configuration at every (R_IW, R_CW)."""
    return [
        config.model_copy(update={"in_weight": part, "cross_weight": kernels, **changes}) for part, kernels in ratios
    ]
