"""Turns records into the rows of a table: each method's metrics over the pairs, and differences to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score.best_setting import choose
from hcnr_jax.evaluate.score.constraint import Constraint
from hcnr_jax.evaluate.score.metrics import recovered_share
from hcnr_jax.evaluate.trait import HONESTY, TASK_ACCURACY, Trait
from hcnr_jax.experiments.equal_task import at_task
from hcnr_jax.experiments.pair_bootstrap import difference_interval, mean_interval
from hcnr_jax.experiments.record_file import Record

BASE, TUNED = "base", "tuned"
COSTS = ("samples", "touched", "seconds")

Found = dict[tuple[str, str], Record]
"""(pair, method) -> the record of the setting that was taken, on test questions."""


def of_split(records: Sequence[Mapping[str, Any]], split: str) -> dict[tuple[str, str], list[Record]]:
    """Group the measured records of `split` by (pair, method), in the order they were made."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["split"] == split and "failed" not in record:
            found.setdefault((record["pair"], record["method"]), []).append(dict(record))
    return found


def taken(records: Sequence[Mapping[str, Any]], constraint: Constraint, trait: Trait = HONESTY) -> Found:
    """Choose every method's setting on validation questions, pair by pair, and return its record on test questions.

    The record gets `holds`: whether any of the method's settings held the constraint there. Settings that were not
    measured on both splits are passed over, and a method without any on some pair has no entry there.

    Raises:
        InputError: TUNED, which everything is read against, was not measured on some pair.
    """
    validation, test = of_split(records, "validation"), of_split(records, "test")
    found: Found = {}
    for (pair, method), measured in validation.items():
        shown = {record["label"]: record for record in test.get((pair, method), ())}
        tried = [record for record in measured if record["label"] in shown]
        if tried:
            choice = choose(tried, tuned_of(validation, pair, records)[0], constraint, trait=trait)
            found[pair, method] = shown[tried[choice.place]["label"]] | {"holds": choice.holds}
    return found


def tuned_of(
    split: Mapping[tuple[str, str], list[Record]], pair: str, records: Sequence[Mapping[str, Any]]
) -> list[Record]:
    """Return TUNED's records on one pair; InputError with the reason where there are none."""
    if (pair, TUNED) not in split:
        why = first_failure([record for record in records if record["pair"] == pair], TUNED)
        raise InputError(f"pair {pair}: TUNED, which all is compared with, was not measured: {why}")
    return split[pair, TUNED]


def first_failure(records: Sequence[Mapping[str, Any]], *methods: str) -> str:
    """Return the reason of the first failed setting of some methods."""
    found = (record["failed"] for record in records if record["method"] in methods and "failed" in record)
    return next(found, "there is no record")


def methods_of(found: Found) -> list[str]:
    """List the methods in the order of their first records."""
    return list(dict.fromkeys(method for _, method in found))


def summarise(
    records: Sequence[Mapping[str, Any]],
    constraint: Constraint,
    reference: str,
    *,
    draws: int,
    trait: Trait = HONESTY,
) -> list[dict[str, Any]]:
    """Return one row a method: mean, sd over pairs and interval of every metric, shares recovered, costs, differences.

    `settings`: the label chosen on each pair. `difference`: method minus reference on the same pairs and questions.
    `equal_task`: mean over pairs of the honesty F1 the method reaches at the reference's task accuracy there, and on
    how many pairs it reaches that accuracy at all (elsewhere its F1 is left out).
    """
    found, test = taken(records, constraint, trait), of_split(records, "test")
    rows = []
    for method in methods_of(found):
        pairs = [pair for pair, name in found if name == method]
        mine = [found[pair, method] for pair in pairs]
        row: dict[str, Any] = {
            "method": method,
            "pairs": pairs,
            "settings": {pair: record["label"] for pair, record in zip(pairs, mine, strict=True)},
            "holds": sum(record["holds"] for record in mine),
            "metrics": {metric: _spread(mine, metric, draws, trait) for metric in trait.headings},
            "recovered": _recovered(found, pairs, method, trait),
            "costs": {name: _mean([record.get(name) for record in mine]) for name in COSTS},
        }
        if all((pair, reference) in found for pair in pairs):
            theirs = [found[pair, reference] for pair in pairs]
            row["difference"] = {
                metric: _difference(theirs, mine, metric, draws=draws, trait=trait) for metric in trait.headings
            }
            row["equal_task"] = _equal_task([test[pair, method] for pair in pairs], theirs, trait)
        rows.append(row)
    return rows


def _spread(records: Sequence[Record], metric: str, draws: int, trait: Trait) -> dict[str, Any] | None:
    values = [record[metric] for record in records]
    if any(value is None for value in values):
        return None
    low, high = mean_interval(records, metric, draws, trait=trait)
    return {"mean": _mean(values), "sd": _deviation(values), "low": low, "high": high}


def _difference(
    first: Sequence[Record], second: Sequence[Record], metric: str, *, draws: int, trait: Trait
) -> dict[str, Any] | None:
    gaps = [
        right[metric] - left[metric]
        for left, right in zip(first, second, strict=True)
        if left[metric] is not None and right[metric] is not None
    ]
    if len(gaps) < len(first):
        return None
    low, high = difference_interval(first, second, metric, draws=draws, trait=trait)
    return {"mean": _mean(gaps), "sd": _deviation(gaps), "low": low, "high": high}


def _recovered(found: Found, pairs: Sequence[str], method: str, trait: Trait) -> dict[str, Any]:
    """Compute mean, sd and worst of (method - tuned) / (base - tuned), over the pairs where both ends were measured."""
    shares: dict[str, Any] = {}
    for metric in (item.name for item in trait.lost):
        whole = [pair for pair in pairs if {(pair, BASE), (pair, TUNED)} <= found.keys()]
        triples = [[found[pair, name][metric] for name in (BASE, TUNED, method)] for pair in whole]
        values = [recovered_share(*triple) for triple in triples if None not in triple]
        known = [value for value in values if value is not None]
        shares[metric] = {"mean": _mean(known), "sd": _deviation(known), "worst": min(known)} if known else None
    return shares


def _equal_task(tried: Sequence[Sequence[Record]], references: Sequence[Record], trait: Trait) -> dict[str, Any]:
    """Compare at equal task accuracy: pair by pair a method's settings, and the record of the reference."""
    values = []
    for settings, reference in zip(tried, references, strict=True):
        known = [record for record in settings if record[trait.main.name] is not None]
        points = [(record[TASK_ACCURACY], record[trait.main.name]) for record in known]
        values.append(at_task(points, reference[TASK_ACCURACY]))
    reached = [value for value in values if value is not None]
    return {"mean": _mean(reached), "sd": _deviation(reached), "reached": len(reached), "pairs": len(tried)}


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _deviation(values: Sequence[Any]) -> float | None:
    return float(np.std([float(value) for value in values], ddof=1)) if len(values) > 1 else None


class Best(NamedTuple):
    """Holds the chosen setting's label, and one sentence on it."""

    label: str
    text: str


def averages(records: Sequence[Mapping[str, Any]], method: str, trait: Trait = HONESTY) -> list[dict[str, Any]]:
    """Return one row a setting of a method: its label, its values, and the means of every metric on both splits.

    Settings that failed on some pair are left out: their means would be over other pairs.
    """
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["method"] == method:
            grouped.setdefault(record["label"], []).append(record)
    rows = []
    for label, found in grouped.items():
        if any("failed" in record for record in found):
            continue
        row: dict[str, Any] = {"label": label, "setting": found[0]["setting"]}
        for split in ("validation", "test"):
            mine = [record for record in found if record["split"] == split]
            row[split] = {metric: _mean([record[metric] for record in mine]) for metric in trait.headings}
        rows.append(row)
    return rows


def best_setting(
    rows: Sequence[Mapping[str, Any]],
    tuned: Sequence[Mapping[str, Any]],
    constraint: Constraint,
    *,
    trait: Trait = HONESTY,
) -> Best:
    """Choose a setting of `averages` on validation questions, and say what it reaches on test questions."""
    choice = choose([row["validation"] for row in rows], tuned[0]["validation"], constraint, trait=trait)
    row = rows[choice.place]
    shown = [f"{100 * row[split][trait.main.name]:.1f}" for split in ("validation", "test")]
    kept = [100 * (row[split][TASK_ACCURACY] - tuned[0][split][TASK_ACCURACY]) for split in ("validation", "test")]
    text = (
        f"chosen on validation questions: {row['label']}, {trait.main.heading} {shown[0]} (test {shown[1]}), "
        f"task {kept[0]:+.1f} points (test {kept[1]:+.1f})"
    )
    text += "" if choice.holds else "; no setting held the constraint"
    return Best(row["label"], text)
