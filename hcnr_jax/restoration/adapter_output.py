"""Makes the tensors of a restored adapter: A with new columns for the restored neurons, and the same B."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.checkpoints.safetensors_file import read_tensor
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
        with np.errstate(over="ignore"):
            stored = columns.astype(info.numpy_dtype)
        if not np.isfinite(stored.astype(np.float32)).all():
            raise InputError(
                f"{self._adapter.folder}: the restored columns of {name} overflow {info.numpy_dtype} (largest "
                f"{np.abs(columns).max():.3g}): save the adapter in float32 or bfloat16, or use --output model"
            )
        found = read_tensor(info).copy()
        found[:, self._rows(kernel)] = stored
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def _rows(self, kernel: Kernel) -> np.ndarray:
        return np.flatnonzero(np.asarray(self._selection.masks[kernel.path][kernel.index]))
