"""Rows in few shapes: the cheapest choice, every row once, padding where it belongs."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from hcnr_jax.data import Example
from hcnr_jax.data.rows import parse_row
from hcnr_jax.models import spec_from_config
from hcnr_jax.restoration import microbatches as batches
from hcnr_jax.restoration.microbatches import Shape
from tests.tiny import tiny_config

SPEC = spec_from_config(tiny_config(), "config.json")
ROW = parse_row({"prompt": "a", "completion": "b"}, "rows.jsonl", 1)


def examples(*lengths):
    return [Example(tuple(range(3, 3 + n)), max(n // 2, 1), ROW) for n in lengths]


def brute_force(lengths, worth):
    """The least cost of all sets of up to MAX_SHAPES padded lengths."""
    padded = [-(-n // batches.LENGTH_STEP) * batches.LENGTH_STEP for n in lengths]
    found = []
    for count in range(1, batches.MAX_SHAPES + 1):
        for cuts in itertools.combinations(sorted(set(padded)), count):
            if cuts[-1] >= max(padded):
                found.append(sum(min(c for c in cuts if c >= n) for n in padded) + worth * count)
    return min(found)


@pytest.mark.parametrize("worth", [0.0, 30.0, 200.0, 1e9])
@pytest.mark.parametrize("seed", range(4))
def test_lengths_are_the_cheapest(seed, worth):
    lengths = np.random.default_rng(seed).integers(1, 90, 12).tolist()
    cuts = batches.choose_lengths(lengths, worth)
    assert list(cuts) == sorted(set(cuts)) and len(cuts) <= batches.MAX_SHAPES and cuts[-1] >= max(lengths)
    cost = sum(min(c for c in cuts if c >= n) for n in lengths) + worth * len(cuts)
    assert cost == pytest.approx(brute_force(lengths, worth))
    if worth == 1e9:
        assert len(cuts) == 1


def test_every_row_once_in_the_shortest_shape_that_holds_it():
    rows = examples(5, 30, 8, 17, 40, 3, 9)
    shapes = (Shape(8, 2), Shape(24, 4), Shape(40, 1))
    parts = batches.microbatches(rows, shapes)
    assert [p.batch.tokens.shape for p in parts] == [(2, 8), (2, 8), (4, 24), (1, 40), (1, 40)]
    assert [p.places.tolist() for p in parts] == [[0, 2], [5], [3, 6], [1], [4]]
    assert parts[1].weights.tolist() == [1.0, 0.0] and not parts[1].batch.attention_mask[1].any()
    assert batches.count_rows(rows, shapes) == (3, 2, 2)
    assert batches.padded_tokens(rows, shapes) == 32 + 96 + 80


def test_a_small_model_takes_one_shape_and_a_large_one_several():
    rows = examples(*([10] * 40), *([200] * 4))
    assert [s.length for s in batches.choose_shapes(SPEC, rows, flops_per_token=1e6)] == [200]
    assert [s.length for s in batches.choose_shapes(SPEC, rows, flops_per_token=1e12)] == [16, 200]
    assert {s.rows for s in batches.choose_shapes(SPEC, rows, 1e12, microbatch=3)} == {3}


def test_halving_stops_at_one_row():
    assert batches.halved((Shape(8, 5), Shape(16, 1))) == (Shape(8, 3), Shape(16, 1))


def test_an_accelerators_microbatch_follows_its_memory(monkeypatch):
    free = 10 * batches.row_bytes(SPEC, 32, 16)
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": free + 7, "bytes_in_use": 7})
    monkeypatch.setattr(batches.jax, "local_devices", lambda: [device])
    assert (
        batches.choose_microbatch(SPEC, 32, 100, window=16) == 5
        and batches.choose_microbatch(SPEC, 32, 3, window=16) == 3
    )
    assert batches.row_bytes(SPEC, 32, 16, streamed=True) < batches.row_bytes(SPEC, 32, 16)
    assert batches.row_bytes(SPEC, 32, 16) < batches.row_bytes(SPEC, 32, 32) == batches.row_bytes(SPEC, 32, 40)


def test_the_loss_window_holds_every_completion_and_the_token_before_it():
    rows = examples(5, 30, 17)
    assert rows[1].completion_start == 15
    assert batches.loss_window(rows) == 16 and batches.loss_window(examples(5)) == 8
