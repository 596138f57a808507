"""Makes the tensors of a restored adapter: A with new columns for the restored neurons, and the same B."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.checkpoints.safetensors_file import TensorInfo, read_tensor
from hcnr_jax.errors import InputError
from hcnr_jax.method.adapter import Coordinates, restored_columns
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.models import ModelSpec
from hcnr_jax.restoration.kernel_names import kernel_names
from hcnr_jax.restoration.resume.products import CorrectedKernel
from hcnr_jax.restoration.select import Selection


class RestoredAdapter(Mapping[str, np.ndarray]):
    """Maps the names of A tensors, as the adapter's file has them, to their restored values in the stored dtype.

    Args:
        adapter: TUNED.
        spec: description of the model.
        selection: the restored neurons.
        corrected: the kept kernels.
        coordinates: of the kept kernels' adapters.
    """

    def __init__(
        self,
        adapter: MergedCheckpoint,
        spec: ModelSpec,
        selection: Selection,
        *,
        corrected: Mapping[Kernel, CorrectedKernel],
        coordinates: Mapping[Kernel, Coordinates],
    ) -> None:
        names = kernel_names(spec)
        self._weights = {adapter.updates[names[kernel]].a.name: names[kernel] for kernel in corrected}
        self._kernels = {names[kernel]: kernel for kernel in corrected}
        self._adapter, self._selection = adapter, selection
        self._corrected, self._coordinates = corrected, coordinates

    @property
    def neurons(self) -> dict[str, np.ndarray]:
        """Return the changed columns of every A tensor."""
        return {name: self._rows(self._kernels[weight]) for name, weight in self._weights.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        kernel, info = self._kernels[self._weights[name]], self._adapter.updates[self._weights[name]].a
        columns = restored_columns(np.asarray(self._corrected[kernel].thin), self._coordinates[kernel].mixing)
        found = read_tensor(info).copy()
        found[:, self._rows(kernel)] = stored_as(columns, info, self._adapter.folder, name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def _rows(self, kernel: Kernel) -> np.ndarray:
        return np.flatnonzero(np.asarray(self._selection.masks[kernel.path][kernel.index]))


class LearntAdapter(Mapping[str, np.ndarray]):
    """Maps the names of A and B tensors, as the adapter's file has them, to values in the stored dtype.

    Args:
        adapter: TUNED.
        spec: description of the model.
        factors: new A^T (in, r) and c B^T (r, out) by kernel; r may be padded with zeros.
    """

    def __init__(
        self, adapter: MergedCheckpoint, spec: ModelSpec, factors: Mapping[Kernel, tuple[np.ndarray, np.ndarray]]
    ) -> None:
        names = kernel_names(spec)
        self._folder = adapter.folder
        self._tensors: dict[str, tuple[TensorInfo, np.ndarray]] = {}
        for kernel, (a, b) in factors.items():
            update = adapter.updates[names[kernel]]
            rank = update.a.shape[0]
            self._tensors[update.a.name] = update.a, a[:, :rank].T
            self._tensors[update.b.name] = update.b, b[:rank].T / update.scale

    @property
    def neurons(self) -> dict[str, np.ndarray]:
        """Return the changed columns of every tensor, which are all."""
        return {name: np.arange(info.shape[1]) for name, (info, _) in self._tensors.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        info, values = self._tensors[name]
        return stored_as(values, info, self._folder, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def stored_as(values: np.ndarray, info: TensorInfo, folder: Path, name: str) -> np.ndarray:
    """Cast restored values to a tensor's stored dtype.

    Raises:
        InputError: a value is NaN, or overflows the dtype.
    """
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values.astype(info.numpy_dtype))
    if not np.isfinite(stored.astype(np.float32)).all():
        raise InputError(
            f"{folder}: the restored values of {name} overflow {info.numpy_dtype} (largest {np.abs(values).max():.3g}):"
            " save the adapter in float32 or bfloat16, or use --output model"
        )
    return stored
