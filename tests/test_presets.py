"""Presets are found by name."""

import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.presets import preset


def test_known_and_unknown() -> None:
    assert preset("paper").name == "paper.yaml"
    with pytest.raises(InputError, match=r"expected one of: .*paper.*recommended"):
        preset("papers")
