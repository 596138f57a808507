"""The package's front door."""

import pytest

import hcnr_jax


def test_every_public_name_is_there() -> None:
    for name in hcnr_jax.__all__:
        assert getattr(hcnr_jax, name) is not None


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'restored'"):
        _ = hcnr_jax.restored
