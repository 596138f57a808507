"""Stages are declared once, on the option; cache keys, grids and unused options derive from them."""

from pathlib import Path
from typing import Annotated

import pytest

from hcnr_jax.config import RestoreConfig, RunConfig, Stage, fields_of, stage_of
from hcnr_jax.restoration.grid import FREE
from hcnr_jax.restoration.resume.fingerprint import STAGES

PLACES = {"base": "b", "tuned": "t", "honesty": Path("h"), "task": Path("k"), "out": Path("o")}


class Untyped(RunConfig):
    bare: int = 0
    twice: Annotated[int, Stage(("a",)), Stage(("b",))] = 0


def test_every_option_of_restore_declares_known_stages():
    known = {*STAGES, "inputs", "output", "run"}
    for name in RestoreConfig.model_fields:
        assert stage_of(RestoreConfig, name).names
        assert set(stage_of(RestoreConfig, name).names) <= known


@pytest.mark.parametrize("field", ["bare", "twice"])
def test_a_field_without_one_declaration_is_an_error(field):
    with pytest.raises(ValueError, match=f"Untyped.{field}: expected one Stage, found [02]"):
        stage_of(Untyped, field)


def test_a_grid_varies_what_neither_rows_nor_scores_depend_on():
    assert frozenset(
        ("in_weight", "cross_weight", "priority", "compensation", "task_weight", "inputs", "solver", "damping",
         "moments_at", "refine", "refine_solver", "refine_rate", "output", "rank", "out")
    ) == FREE  # fmt: skip


def test_fields_of_keeps_the_order_of_declaration():
    assert fields_of(RestoreConfig, ["selection"]) == ("in_weight", "cross_weight", "priority")
    assert "seed" in fields_of(RestoreConfig, ["inputs", "selection"])


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({}, {"moments_at"}),
        ({"inputs": "local"}, set()),
        ({"compensation": "none"}, {"task_weight", "inputs", "solver", "damping", "moments_at"}),
        ({"compensation": "none", "refine": 1}, {"inputs", "solver", "damping", "moments_at"}),
        ({"compensation": "exact"}, {"task_weight", "moments_at"}),
        ({"priority": "random"}, {"scores_at", "loss", "moments_at"}),
        ({"honesty_samples": 4, "task_samples": 4}, {"samples", "moments_at"}),
        ({"honesty_samples": 4}, {"moments_at"}),
    ],
)
def test_unused_options_follow_from_the_declarations(settings, unused):
    refinement = set() if "refine" in settings else {"refine_solver", "refine_rate"}
    assert set(RestoreConfig(**PLACES, **settings).unused) == unused | refinement
