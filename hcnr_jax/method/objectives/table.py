"""Lists the objectives of the compensation, and what each of them reads.

The table imports nothing, so that options can be checked without JAX. `ridge.SOLVES` has the functions of each form.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Objective(NamedTuple):
    """Describes one way to correct the restored neurons of a kernel.

    Args:
        name: the value of `--compensation`.
        solves: whether there is anything to solve; False leaves the restored neurons at their base values.
        reads_task: whether task rows are read.
        propagates: whether a form for propagated inputs exists.
        unknowns: whether the system has a row for every input channel (`all`) or for the restored ones.
    """

    name: str
    solves: bool = True
    reads_task: bool = False
    propagates: bool = True
    unknowns: Literal["restored", "all"] = "restored"


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("none", solves=False, propagates=False),
        Objective("paper", propagates=False, unknowns="all"),
        Objective("exact"),
        Objective("two_sided", reads_task=True),
    )
}
"""Name -> objective."""
