"""The examples in the docstrings of hcnr_jax.method run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import hcnr_jax.method

MODULES = sorted(module.name for module in pkgutil.walk_packages(hcnr_jax.method.__path__, "hcnr_jax.method."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
