"""Defines the traits that evaluation can measure: label, detector, metrics, and their names in tables.

Honesty is the one trait of the paper. Evaluation, experiments and reports read everything they need from a `Trait`,
so a further trait is an entry of `TRAITS`, an option of `hcnr evaluate` and, for a new label, a field of `data.Row`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from hcnr_jax.data import Row
from hcnr_jax.evaluate.judge.refusal import Detection, detect
from hcnr_jax.evaluate.score.metrics import Mask, over_refusal, refusal_delta, unanswerable_f1
from hcnr_jax.evaluate.score.statistics import Statistic, f1_of, mean_of, refusal_delta_of

Detector = Callable[[str, str | None], Detection]
"""(completion, question) -> verdict and evidence."""

Sample = tuple[Statistic, Bool[np.ndarray, " drawn"]]
"""A statistic over question indices, and the labels within which its questions are resampled."""

# The other side of every trade-off: the role of task questions, and the two metrics that are about right answers.
TASK = "task"
TASK_ACCURACY = "task_accuracy"
KNOWN_FACTS = "known_facts"


class Metric(NamedTuple):
    """Describes one metric of a trait.

    Args:
        name: its JSON field in records, unique over all traits.
        heading: its column in a table.
        title: its words in a picture.
        field: the attribute of `HonestyMetrics` that holds it for one set.
        value: (refused [n], answerable [n]) -> the metric, a fraction.
        sample: the same arguments -> its bootstrap statistic, and the labels within which questions are resampled.
        lost: whether fine-tuning lowers the metric, so that a share of it can be recovered; else it is a cost.
    """

    name: str
    heading: str
    title: str
    field: str
    value: Callable[[Mask, Mask], float]
    sample: Callable[[Mask, Mask], Sample]
    lost: bool = True


@dataclass(frozen=True)
class Trait:
    """Describes a behaviour that a model should show on some questions and not on others.

    The behaviour is refusing: a detector returns the verdict `refused` where a completion shows the trait.

    Args:
        name: the role of its question sets, hence the option `--NAME` and the JSON key of its scores.
        label: the Boolean field of a row that is false where the trait should show ("answerable").
        contrary: the word for a question whose label is false ("unanswerable").
        detect: judges one completion.
        metrics: the first one is what settings are compared by.
    """

    name: str
    label: str
    contrary: str
    detect: Detector
    metrics: tuple[Metric, ...]

    @property
    def main(self) -> Metric:
        """The metric that settings are compared by."""
        return self.metrics[0]

    @property
    def headings(self) -> Mapping[str, str]:
        """Table columns by JSON field: the metrics of the trait, then task accuracy and known facts."""
        return {metric.name: metric.heading for metric in self.metrics} | {
            TASK_ACCURACY: "task",
            KNOWN_FACTS: "known facts",
        }

    @property
    def lost(self) -> tuple[Metric, ...]:
        """The metrics of which fine-tuning loses a part."""
        return tuple(metric for metric in self.metrics if metric.lost)

    @property
    def costs(self) -> tuple[Metric, ...]:
        """The metrics that rise where a model shows the trait too often."""
        return tuple(metric for metric in self.metrics if not metric.lost)

    def metric(self, name: str) -> Metric:
        """Return the metric of that JSON field."""
        return next(metric for metric in self.metrics if metric.name == name)

    def label_of(self, row: Row) -> bool | None:
        """Return the label of a row's question; None where the row has no label."""
        value: bool | None = getattr(row, self.label)
        return value

    def scores(self, refused: Mask, answerable: Mask) -> dict[str, float | None]:
        """Compute every metric by name, as far as the questions' labels allow.

        With questions of the label false alone the main metric is the share refused, and the others are None.
        """
        if answerable.any() and not answerable.all():
            return {metric.name: metric.value(refused, answerable) for metric in self.metrics}
        alone = float(refused.mean()) if len(refused) and not answerable.any() else None
        return {metric.name: alone if metric is self.main else None for metric in self.metrics}


def refusal_metrics(prefix: str = "", expected: str = "unanswerable") -> tuple[Metric, ...]:
    """Build F1, refusal delta and over-refusal under names that begin with `prefix`.

    Args:
        prefix: "safety_" gives safety_f1, safety_refusal_delta and safety_over_refusal.
        expected: the word for questions that should be refused.
    """
    return (
        Metric(
            f"{prefix}f1",
            "F1",
            f'F1 of "{expected}"',
            "f1",
            unanswerable_f1,
            lambda refused, answerable: (f1_of(refused, answerable), answerable),
        ),
        Metric(
            f"{prefix}refusal_delta",
            "delta",
            "refusal delta",
            "refusal_delta",
            refusal_delta,
            lambda refused, answerable: (refusal_delta_of(refused, answerable), answerable),
        ),
        Metric(
            f"{prefix}over_refusal",
            "over-refusal",
            "answerable questions refused",
            "over_refusal",
            over_refusal,
            _over_refusal_sample,
            lost=False,
        ),
    )


def _over_refusal_sample(refused: Mask, answerable: Mask) -> Sample:
    return mean_of(refused[answerable]), np.zeros(int(answerable.sum()), bool)


def _honesty_metrics() -> tuple[Metric, ...]:
    f1, *others = refusal_metrics()
    return (f1._replace(name="honesty_f1"), *others)


HONESTY = Trait("honesty", "answerable", "unanswerable", detect, _honesty_metrics())

TRAITS: dict[str, Trait] = {HONESTY.name: HONESTY}
"""Name -> trait: every trait whose question sets `hcnr evaluate` reads."""


def trait_of(role: str) -> Trait:
    """Return the trait whose sets have this role; task questions are judged by the detector of honesty."""
    return TRAITS.get(role, HONESTY)
