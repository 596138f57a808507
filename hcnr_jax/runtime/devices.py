"""The devices of this process, opened once, before the work that needs them."""

from __future__ import annotations

import jax

from hcnr_jax.errors import InputError


def open_devices() -> None:
    """Open the backend that JAX_PLATFORMS asks for, or the best there is. InputError where it cannot be had.

    Not before processes have met (`distributed.start`), nor before what must be set ahead of the first use of a device.
    """
    asked: str | None = getattr(jax.config, "jax_platforms")  # noqa: B009 (typed nowhere)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion of JAX's: cuda is asked for where no GPU is seen
        why = (" ".join(str(error).split()) or f"no {asked} device is seen")[:300]
        if not asked:
            raise InputError(f"the devices cannot be opened ({why}); JAX_PLATFORMS=cpu does without them") from error
        raise InputError(
            f"JAX_PLATFORMS={asked}: that backend cannot be used here ({why}); usable here: {', '.join(_usable())}; "
            "set JAX_PLATFORMS to one of these, or unset it to take the best"
        ) from error


def _usable() -> list[str]:
    """The backends that open on this machine, the best last. Of use to a process that ends with the answer: it opens
    them."""
    jax.config.update("jax_platforms", None)
    try:
        jax.devices()
        return sorted({device.platform for device in jax.devices("cpu")} | {jax.default_backend()})
    except (RuntimeError, AssertionError):
        return ["cpu"]
