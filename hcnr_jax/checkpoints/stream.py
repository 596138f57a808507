"""Loads a model's parameters one block at a time, for models larger than memory.

The parameters outside the blocks (embedding, final norm, head) are loaded once. A block is read when the caller asks
for that block. Meanwhile a thread reads the following block in the direction of the last step, so that reading and
arithmetic overlap. At most three blocks are in memory: the caller's, the next, and one that the device still works on.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.load import leaf_paths, read_leaf
from hcnr_jax.checkpoints.tensor_checks import check_tensors
from hcnr_jax.models.spec import ModelSpec
from hcnr_jax.runtime.memory import release_freed_memory


class StreamedParams:
    """Loads the parameters of a checkpoint: `outer` is the tree without `blocks`, and `block(i)` loads block i.

    Args:
        checkpoint: an opened folder or a merged adapter.
        spec: the model that its config describes; every tensor must fit.

    Raises:
        InputError: missing, unexpected or misshapen tensors, by Hugging Face name.
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        check_tensors(checkpoint, spec)
        self._checkpoint, self._spec = checkpoint, spec
        paths = leaf_paths(spec)
        self._inside = tuple(path for path in paths if path.startswith("blocks/"))
        self._outside = tuple(path for path in paths if not path.startswith("blocks/"))
        self._outer: dict[str, Any] | None = None
        self._pool = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[dict[str, Any]]] | None = None
        self._last = -1

    @property
    def outer(self) -> dict[str, Any]:
        """Return the tree without `blocks`, read at the first use and kept."""
        if self._outer is None:
            self._outer = unflatten_dict({path: self._read(path, None) for path in self._outside}, sep="/")
        return self._outer

    def block(self, index: int) -> dict[str, Any]:
        """Return the subtree of one block without a layer axis, and read the following block in the background."""
        release_freed_memory()  # the blocks before this one
        ahead, self._ahead = self._ahead, None
        tree = ahead[1].result() if ahead is not None and ahead[0] == index else self._block(index)
        following = index + (1 if index >= self._last else -1)
        self._last = index
        if 0 <= following < self._spec.num_layers:
            self._ahead = following, self._pool.submit(self._block, following)
        return tree

    def drop(self) -> None:
        """Release the arrays that are held; the next use reads them again."""
        if self._ahead is not None:
            self._ahead[1].result()
        self._ahead, self._outer, self._last = None, None, -1

    def _block(self, index: int) -> dict[str, Any]:
        return unflatten_dict({path.removeprefix("blocks/"): self._read(path, index) for path in self._inside}, sep="/")

    def _read(self, path: str, layer: int | None) -> jax.Array:
        return jax.device_put(read_leaf(self._checkpoint, self._spec, path, layer))
