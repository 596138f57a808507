"""Opens the devices of this process, and explains a backend that cannot be opened."""

from __future__ import annotations

import jax

from hcnr_jax.errors import InputError


def open_devices() -> None:
    """Open the backend that JAX_PLATFORMS names, or the best available one. InputError where it cannot be opened.

    Call it after `distributed.start`, and after options that JAX reads at the first use of a device.
    """
    asked: str | None = getattr(jax.config, "jax_platforms")  # noqa: B009 (typed nowhere)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where cuda is named and no GPU is found
        why = (" ".join(str(error).split()) or f"no {asked} device is seen")[:300]
        if not asked:
            raise InputError(f"the devices cannot be opened ({why}); JAX_PLATFORMS=cpu does without them") from error
        raise InputError(
            f"JAX_PLATFORMS={asked}: that backend cannot be used here ({why}); usable here: {', '.join(_usable())}; "
            "set JAX_PLATFORMS to one of these, or unset it to take the best"
        ) from error


def _usable() -> list[str]:
    """List the backends that open on this machine, the best last. It opens them: the process should then end."""
    jax.config.update("jax_platforms", None)
    try:
        jax.devices()
        return sorted({device.platform for device in jax.devices("cpu")} | {jax.default_backend()})
    except (RuntimeError, AssertionError):
        return ["cpu"]
