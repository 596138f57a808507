"""What a block sweep solves: two models of one shape and the rows that their inputs are taken from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hcnr_jax.method.adapter import Coordinates
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.method.sweep.model import Batch, BlockModel


class Problem(NamedTuple):
    """Holds what every sweep reads; the masks say which kernels of TUNED it solves, the settings how.

    Args:
        model: how to run either model block by block.
        base: params theta_0 of the aligned model.
        tuned: params theta_f of the fine-tuned model, a tree like `base`.
        honesty: microbatches of honesty rows. Each shape among them compiles once.
        task: microbatches of task rows, read by objectives with a task term alone.
        adapter: coordinates of every kernel's adapter, in which the corrections are solved; None for whole kernels.
    """

    model: BlockModel
    base: Params
    tuned: Params
    honesty: Sequence[Batch]
    task: Sequence[Batch]
    adapter: Mapping[Kernel, Coordinates] | None = None

    def blocks(self, index: int) -> tuple[Params, Params]:
        """Return the params of one block, in base and in tuned."""
        return self.model.block_params(self.base, index), self.model.block_params(self.tuned, index)
