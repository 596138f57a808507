"""The search for the gentlest collapse, on curves of F1 against rate that are known."""

from collections.abc import Callable
from math import sqrt

import pytest

from hcnr_jax.organism.learning_rate_search import Trial, gentlest, try_rates

RATES = (1.0, 1.3, 1.7)


def search(curve: Callable[[float], float], floor: float = 0.1, bisections: int = 3) -> tuple[list[float], float]:
    """The rates tried and the one kept, with a collapse at 0.28."""
    trials = try_rates(curve, RATES, 0.28, floor=floor, bisections=bisections)
    assert all(trial.f1 == curve(trial.rate) for trial in trials)
    return [trial.rate for trial in trials], trials[gentlest(trials, 0.28)].rate


def cliff(*steps: tuple[float, float]) -> Callable[[float], float]:
    """F1 0.9 below the first rate, then that of the last `(from rate, f1)` passed."""
    return lambda rate: [0.9, *(f1 for start, f1 in steps if rate >= start)][-1]


def test_a_rate_that_collapses_within_the_band_ends_the_search() -> None:
    assert search(cliff((1.2, 0.28))) == ([1.0, 1.3], 1.3)
    assert search(cliff((1.2, 0.1))) == ([1.0, 1.3], 1.3)


def test_where_none_collapses_the_highest_is_kept() -> None:
    assert search(cliff()) == (list(RATES), 1.7)


def test_a_rate_far_above_is_bisected_until_the_band_is_met() -> None:
    middle = sqrt(1.3)
    tried, kept = search(cliff((1.1, 0.2), (1.2, 0.05)))
    assert tried == pytest.approx([1.0, 1.3, middle]) and kept == pytest.approx(middle)


def test_a_middle_that_holds_raises_the_lower_end_and_one_far_above_lowers_the_upper() -> None:
    one = sqrt(1.3)
    two = sqrt(one * 1.3)
    three = sqrt(one * two)
    tried, kept = search(cliff((1.15, 0.2), (1.19, 0.05)))
    assert tried == pytest.approx([1.0, 1.3, one, two, three]) and kept == pytest.approx(three)


def test_a_cliff_without_a_band_costs_no_more_than_was_allowed() -> None:
    for bisections in range(4):
        tried, kept = search(cliff((1.2, 0.0)), bisections=bisections)
        assert len(tried) == 2 + bisections
        assert kept == min(rate for rate in tried if rate >= 1.2)


def test_below_the_first_rate_steps_lead_down_until_one_holds() -> None:
    tried, kept = search(cliff((0.6, 0.2), (0.8, 0.05)))
    assert tried == pytest.approx([1.0, sqrt(0.5)]) and kept == pytest.approx(sqrt(0.5))
    tried, kept = search(cliff((0.55, 0.05)))
    assert tried == pytest.approx([1.0, sqrt(0.5), 0.5, 0.5**0.75]) and kept == pytest.approx(0.5**0.75)
    tried, kept = search(cliff((0.1, 0.05)))
    assert tried == pytest.approx([1.0, sqrt(0.5), 0.5, sqrt(0.125)]) and kept == pytest.approx(sqrt(0.125))


def test_a_floor_of_zero_never_bisects() -> None:
    assert search(cliff((1.2, 0.0)), floor=0.0) == ([1.0, 1.3], 1.3)


def test_the_gentlest_is_chosen_by_rate_not_by_order_or_f1() -> None:
    trials = [Trial(1.0, 0.9), Trial(1.7, 0.1), Trial(1.3, 0.2), Trial(1.5, 0.28), Trial(1.2, 0.3)]
    assert gentlest(trials, 0.28) == 2
    assert gentlest(trials, 0.0) == 1
