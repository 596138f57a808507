"""Plain restoration: base where the mask is True, tuned elsewhere, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.method.restore import restore, restore_kernel

RNG = np.random.default_rng(0)
BASE = {"a": {"kernel": jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32)}, "norm": jnp.ones(4)}
TUNED = {"a": {"kernel": jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32)}, "norm": jnp.full(4, 2.0)}


@pytest.mark.parametrize(("granularity", "shape"), [("input", (2, 4)), ("output", (2, 3)), ("weight", (2, 4, 3))])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_weights_are_one_or_the_other(granularity, shape, share):
    mask = np.random.default_rng(1).random(shape) < share
    found = restore(BASE, TUNED, {"a/kernel": jnp.asarray(mask)}, granularity)
    old, new = np.asarray(BASE["a"]["kernel"]), np.asarray(TUNED["a"]["kernel"])
    wide = {"input": mask[..., None], "output": mask[:, None, :] if mask.ndim == 2 else mask, "weight": mask}
    np.testing.assert_array_equal(
        found["a"]["kernel"], np.where(np.broadcast_to(wide[granularity], old.shape), old, new)
    )
    assert found["norm"] is TUNED["norm"]


def test_under_jit_and_vmap():
    mask = jnp.asarray(np.random.default_rng(1).random((2, 4)) < 0.5)
    eager = restore(BASE, TUNED, {"a/kernel": mask})
    jax.tree.map(np.testing.assert_array_equal, jax.jit(restore)(BASE, TUNED, {"a/kernel": mask}), eager)
    mapped = jax.vmap(restore_kernel)(BASE["a"]["kernel"], TUNED["a"]["kernel"], mask)
    np.testing.assert_array_equal(mapped, eager["a"]["kernel"])


def test_the_tuned_dtype_is_kept_and_nan_does_not_leak():
    tuned = TUNED["a"]["kernel"].astype(jnp.bfloat16).at[:, 0].set(jnp.nan)
    mask = jnp.zeros((2, 4), bool).at[:, 0].set(True)
    found = restore_kernel(BASE["a"]["kernel"], tuned, mask)
    assert found.dtype == jnp.bfloat16
    assert np.all(np.isfinite(np.asarray(found, np.float32)))
    np.testing.assert_array_equal(found[:, 1:], tuned[:, 1:])


def test_an_unknown_kernel_is_named():
    with pytest.raises(InputError, match="no parameter at 'b/kernel'"):
        restore(BASE, TUNED, {"b/kernel": jnp.ones((2, 4), bool)})
