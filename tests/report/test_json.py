"""hcnr.json is strict JSON whatever goes in."""

import json

import jax.numpy as jnp
import numpy as np

from hcnr_jax.report.json import dependency_versions, plain, to_json, versions


def test_arrays_and_what_is_not_finite() -> None:
    record = {"a": jnp.float32(0.5), "b": np.array([1, 2]), "c": float("nan"), "d": (np.float64(np.inf), None, True)}
    assert plain(record) == {"a": 0.5, "b": [1, 2], "c": None, "d": [None, None, True]}


def test_text_is_utf8_and_reads_back() -> None:
    assert json.loads(to_json({"ö": [1.5, {"x": "ü"}]})) == {"ö": [1.5, {"x": "ü"}]}


def test_versions_name_the_device() -> None:
    assert versions()["device"].startswith("cpu") and versions()["jax"]


def test_cache_keys_do_not_know_the_release():
    assert versions().keys() - dependency_versions().keys() == {"hcnr_jax"}
