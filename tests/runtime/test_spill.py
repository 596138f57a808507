"""Arrays on the disk: what went in comes out, in every dtype, and nothing stays."""

import ml_dtypes
import numpy as np
import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.runtime.spill import Spill, spill_folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32])
def test_arrays_come_back(tmp_path, dtype):
    spill = Spill(tmp_path / "s")
    array = np.arange(12).reshape(3, 4).astype(dtype)
    spill["blocks/q/kernel", 1] = array.T
    assert spill["blocks/q/kernel", 1].dtype == dtype
    np.testing.assert_array_equal(spill["blocks/q/kernel", 1], array.T)
    assert list(spill) == [("blocks/q/kernel", 1)]
    spill.pop(("blocks/q/kernel", 1))
    assert not spill and list((tmp_path / "s").iterdir()) == []


def test_the_folder_is_cleared_and_goes(tmp_path):
    left = tmp_path / ".out.hcnr-spill"
    left.mkdir()
    (left / "old").write_text("of a killed run")
    with spill_folder(tmp_path / "out") as folder:
        assert folder == left and list(folder.iterdir()) == []
        Spill(folder / "s")["a"] = np.zeros(3)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_told(tmp_path):
    spill = Spill(tmp_path / "s")
    (tmp_path / "s").rmdir()
    with pytest.raises(InputError, match="writing failed"):
        spill["a"] = np.zeros(3)
