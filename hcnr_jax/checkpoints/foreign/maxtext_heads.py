"""Undoes MaxText's changes to queries and keys: Llama's scale of the queries, and the order of the rotary channels.

Two checks against BASE stand in for MaxText's config, which the checkpoint does not hold. The order of the channels is
the one in which the first layer's keys are nearer to BASE's. A kernel far from BASE's in either order is refused.

In 16 bits, x / sqrt(head_dim) and back again moves some entries by one unit in the last place. Entries that are within
one unit of BASE's are taken as BASE's own. If not, rounding would look like fine-tuning.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.foreign.tensors import ForeignTensors
from hcnr_jax.checkpoints.names import hf_name_of, tensor_names
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec

# ||W - W_base|| / ||W_base|| beyond which W is no fine-tuned W_base. Two unrelated kernels of one size have sqrt(2).
FAR = 0.8

Q, K = "blocks/attention/q/kernel", "blocks/attention/k/kernel"


@dataclass
class HeadsFinish:
    """Turns MaxText's query and key kernels into Hugging Face's, and leaves all other tensors as they are.

    Attributes:
        base: BASE.
        spec: BASE's description.
        interleaved: whether the channels (2i, 2i + 1) of a head rotate together in the checkpoint.
        taken: per query kernel, the number of entries that were one unit from BASE's, and are BASE's now.
    """

    base: Checkpoint
    spec: ModelSpec
    interleaved: bool
    taken: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """Return the Hugging Face tensor."""
        path = tensor_names(self.spec)[name].path
        if path not in (Q, K):
            return tensor
        turned = halves(tensor, self.spec.head_dim) if self.interleaved else tensor
        if path == K or self.spec.family != "llama":
            return turned
        scale = math.sqrt(self.spec.head_dim)
        scaled = (turned.astype(np.float32) * np.float32(scale)).astype(tensor.dtype)
        if math.frexp(scale)[0] == 0.5:  # a power of two, which rounds nothing
            return scaled
        own = self.base.read(name).astype(tensor.dtype)
        units = abs(_order(scaled) - _order(own))
        self.taken[name] = int(np.count_nonzero(units == 1))
        return np.where(units <= 1, own, scaled)


def halves(kernel: np.ndarray, head_dim: int) -> np.ndarray:
    """Return a kernel (heads * head_dim, in) whose channel pairs (2i, 2i + 1) moved to (i, i + head_dim / 2)."""
    pairs = kernel.reshape(-1, head_dim // 2, 2, kernel.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(kernel.shape)


def heads_finish(base: Checkpoint, spec: ModelSpec, tensors: Callable[[HeadsFinish], ForeignTensors]) -> HeadsFinish:
    """Find the order of the rotary channels, and check the first layer's queries and keys against BASE's.

    Args:
        base: BASE.
        spec: BASE's description.
        tensors: returns the checkpoint's tensors with a given last change.

    Raises:
        InputError: queries or keys are far from BASE's in every order. The message gives the distances.
    """
    orders = (True, False) if spec.family == "llama" else (False,)
    finishes = [HeadsFinish(base, spec, order) for order in orders]
    key, query = (hf_name_of(path, 0, spec.recipe) for path in (K, Q))
    best = min(finishes, key=lambda finish: _distance(tensors(finish)[key], base.read(key)))
    opened = tensors(best)
    for name in (key, query):
        if not (distance := _distance(opened[name], base.read(name))) <= FAR:
            raise InputError(
                f"{name} of the checkpoint is not near that of {base.folder}: ||W - W_base|| / ||W_base|| is "
                f"{distance:.2f}, expected at most {FAR}; was it tuned from another base, or written by a MaxText that "
                "scales or orders its heads in another way?"
            )
    best.taken.clear()
    return best


def _distance(found: np.ndarray, base: np.ndarray) -> float:
    own = base.astype(np.float32)
    return float(np.linalg.norm(found.astype(np.float32) - own) / max(float(np.linalg.norm(own)), 1e-30))


def _order(values: np.ndarray) -> np.ndarray:
    """Return whole numbers in the order of the values; neighbouring floats differ by one."""
    width = values.dtype.itemsize
    bits = values.view(f"i{width}").astype(np.int64)
    return np.where(bits < 0, -(1 << 8 * width - 1) - bits, bits)  # below 0, larger bits are smaller values
