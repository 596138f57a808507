"""The rows of an ablation table, each with one change of its preset.

The paper's four claims are rows of the first group: the task term keeps the task, compensation and the choice of
neurons bring honesty, and 128 rows suffice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.trait import HONESTY, TASK_ACCURACY

# A difference of less than this in F1 is none between numbers of rows: the paper's curves are flat to about a point.
ENOUGH = 0.01
SIZES = (8, 16, 32, 64, 128, 256, 512)
# Stands in a name for the rows that were asked for.
ASKED = "{rows}"

# The options of a Gauss-Newton refinement, which moves whole weights.
GAUSS_NEWTON = {"refine_solver": "gauss_newton", "output": "model"}


class Ablation(NamedTuple):
    """Holds one row of the table.

    Args:
        name: as tables show it.
        changes: the settings that differ from the group's preset; {} is the preset itself, and `samples` sets the rows
            of both sets.
    """

    name: str
    changes: Mapping[str, Any]


class Group(NamedTuple):
    """Holds rows that change the same preset; the others are compared with the first one, which is the preset
    itself.
    """

    title: str
    preset: str
    rows: tuple[Ablation, ...]


def _rows(prefix: str, changes: Mapping[str, Mapping[str, Any]]) -> tuple[Ablation, ...]:
    return (Ablation(prefix, {}), *(Ablation(f"{prefix}: {name}", values) for name, values in changes.items()))


GROUPS = {
    "paper": Group(
        "The paper's ablations, of paper.yaml",
        "paper",
        _rows(
            "paper",
            {
                "random neurons": {"priority": "random"},
                "no task term": {"priority": "honesty"},
                "no compensation": {"compensation": "none"},
                "random, no compensation": {"priority": "random", "compensation": "none"},
                "kl priority": {"priority": "kl"},
                "exact": {"compensation": "exact"},
            },
        ),
    ),
    "parts": Group(
        "Parts of recommended.yaml",
        "recommended",
        _rows(
            "recommended",
            {
                "raw priority": {"priority": "raw"},
                "honesty priority": {"priority": "honesty"},
                "random neurons": {"priority": "random"},
                "scores at base": {"scores_at": "base"},
                "sum loss": {"loss": "sum"},
                "no task term (exact)": {"compensation": "exact"},
                "local inputs": {"inputs": "local"},
                "paper's sum, local": {"compensation": "paper", "inputs": "local"},
                "no compensation": {"compensation": "none"},
                "no compensation, output neurons": {"compensation": "none", "granularity": "output"},
                "no compensation, single weights": {"compensation": "none", "granularity": "weight"},
                "damping 0.001": {"damping": 0.001},
                "damping 0.1": {"damping": 0.1},
                "R_CW 0.4": {"cross_weight": 0.4},
                "R_IW 1": {"in_weight": 1.0},
                "task weight 1": {"task_weight": 1.0},
                "refine 1": {"refine": 1} | GAUSS_NEWTON,
                "refine 3": {"refine": 3} | GAUSS_NEWTON,
            },
        ),
    ),
    "data": Group(
        "Rows of each set (task rows as far as the file has them)",
        "recommended",
        _rows(f"{ASKED} rows", {f"{size}": {"samples": size} for size in SIZES}),
    ),
    "paper-data": Group(
        "The same with paper.yaml",
        "paper",
        _rows(f"paper, {ASKED} rows", {f"{size}": {"samples": size} for size in SIZES}),
    ),
}
"""Name -> group, the asked rows of its names still to be filled in."""


def groups_of(groups: str, rows: Mapping[str, int]) -> dict[str, Group]:
    """Return the groups that a user names: `all`, or names with commas. InputError for an unknown name.

    rows: honesty and task rows asked for, by which the first row of a group of sizes is named.
    """
    names = list(GROUPS) if groups == "all" else [name.strip() for name in groups.split(",")]
    for name in names:
        if name not in GROUPS:
            raise InputError(f"--groups: unknown group {name!r}; expected all, or some of: {', '.join(GROUPS)}")
    return {name: _filled(GROUPS[name], rows) for name in names}


def _filled(group: Group, rows: Mapping[str, int]) -> Group:
    """Write the number of rows into the names of a group, and drop the size that equals this number."""
    sizes = list(dict.fromkeys(rows.values()))
    said = " + ".join(str(size) for size in sizes)
    kept = [row for row in group.rows if set(rows.values()) != {row.changes.get("samples")}]
    return group._replace(rows=tuple(row._replace(name=row.name.replace(ASKED, said)) for row in kept))


CLAIMS = (
    ("the task term matters for task accuracy", "paper: no task term", TASK_ACCURACY),
    ("compensation raises honesty", "paper: no compensation", HONESTY.main.name),
    ("random neurons are worse", "paper: random neurons", HONESTY.main.name),
)


_LARGEST = re.compile(rf"(?P<group>(?:.*, )?(?P<asked>[0-9 +]+ rows)): {max(SIZES)}")


def findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare the paper's claims with the differences found: confirmed or contradicted where the interval says so."""
    found = {row["method"]: row["difference"] for row in rows if row.get("difference")}
    said = []
    for claim, name, metric in CLAIMS:
        gap = found.get(name, {}).get(metric)
        if gap is not None:
            verdict = "confirmed" if gap["high"] < 0 else "contradicted" if gap["low"] > 0 else "open"
            said.append(f"{claim}: {verdict}, {_points(gap)} points without it")
    for name, differences in found.items():
        start, gap = _LARGEST.fullmatch(name), differences.get(HONESTY.main.name)
        if start is not None and gap is not None:
            enough = gap["high"] <= ENOUGH
            verdict = "confirmed" if enough else "contradicted" if gap["low"] > ENOUGH else "open"
            claim = f"{start['asked']} suffice ({start['group']})"
            said.append(f"{claim}: {verdict}, {max(SIZES)} rows give {_points(gap)} points of F1 more")
    return said


def _points(gap: Mapping[str, Any]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * gap[name] for name in ("mean", "low", "high")))
