"""Lists the objectives of the compensation: which functions solve them, and what they read.

The table names functions rather than importing them, so that options are checked without JAX. A new objective is its
functions, in a file of this folder, and one row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple


class Objective(NamedTuple):
    """Describes one way to correct the restored neurons of a kernel.

    Args:
        name: the value of `--compensation`.
        forms: {form: its function}, as the function itself or as "module.function" of this folder. The forms are
            `moments` (from second moments), `dual` (from fewer tokens than restored neurons) and `free` (matrix-free).
            Without a form nothing is solved: restored neurons keep their base values.
        reads_task: whether task rows are read.
        propagates: whether the forms take propagated inputs.
        unknowns: whether the system has a row for every input channel (`all`) or for the restored ones.
    """

    name: str
    forms: Mapping[str, object] = MappingProxyType({})
    reads_task: bool = False
    propagates: bool = True
    unknowns: Literal["restored", "all"] = "restored"

    @property
    def solves(self) -> bool:
        """Return whether there is anything to solve."""
        return bool(self.forms)


RIDGE = {"moments": "ridge.ridge_moments", "dual": "ridge.ridge_dual", "free": "ridge.ridge_free"}

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("none", propagates=False),
        Objective(
            "paper",
            {"moments": "paper.paper_moments", "free": "paper.paper_free"},
            propagates=False,
            unknowns="all",
        ),
        Objective("exact", RIDGE),
        Objective("two_sided", RIDGE, reads_task=True),
    )
}
"""Name -> objective."""
