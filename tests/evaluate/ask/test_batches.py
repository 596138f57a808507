"""Batches: padded lengths, few shapes, halving when memory runs out."""

import jax
import pytest

from hcnr_jax.errors import RunError
from hcnr_jax.evaluate.ask.batches import buckets, padded_length, run_batches


def test_padded_lengths_rise_by_half():
    assert [padded_length(n) for n in (1, 16, 17, 24, 25, 32, 33, 49, 100)] == [16, 16, 24, 24, 32, 32, 48, 64, 128]


def test_every_question_is_in_one_bucket_that_holds_it():
    lengths = [3, 70, 12, 20, 18, 16, 33, 5, 90, 17]
    found = buckets(lengths, rows=2)
    assert sorted(i for _, members in found for i in members) == list(range(len(lengths)))
    for length, members in found:
        assert max(lengths[i] for i in members) <= length
        assert [lengths[i] for i in members] == sorted(lengths[i] for i in members)


def test_a_bucket_smaller_than_a_batch_joins_the_next():
    assert buckets([10, 20, 30, 31, 32], rows=4) == [(32, [0, 1, 2, 3, 4])]
    assert buckets([10, 11, 20], rows=2) == [(16, [0, 1]), (24, [2])]
    assert buckets([], rows=2) == []


def out_of_memory():
    return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_batches_are_halved_until_they_fit():
    seen, told = [], []

    def run(indices, length, rows):
        if rows > 2:
            raise out_of_memory()
        return [10 * i for i in indices]

    run_batches(
        [4] * 7, 8, run, take=lambda indices, found: seen.extend(zip(indices, found, strict=True)), smaller=told.append
    )
    assert seen == [(i, 10 * i) for i in range(7)] and told == [4, 2]


def test_one_row_too_many_stops_with_the_remedy():
    def run(indices, length, rows):
        raise out_of_memory()

    with pytest.raises(RunError, match="does not hold one prompt of 16 tokens: shorten"):
        run_batches([4], 1, run, take=lambda indices, found: None)


def test_other_faults_of_the_device_are_not_taken_for_memory():
    def run(indices, length, rows):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    with pytest.raises(RunError, match="the device failed: INTERNAL: broken"):
        run_batches([4, 4], 2, run, take=lambda indices, found: None)
