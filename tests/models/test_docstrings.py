"""The examples in the docstrings of hcnr_jax.models run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import hcnr_jax.models

MODULES = sorted(module.name for module in pkgutil.walk_packages(hcnr_jax.models.__path__, "hcnr_jax.models."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
