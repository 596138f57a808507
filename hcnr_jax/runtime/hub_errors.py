"""Explains errors of the Hugging Face hub's client in one line, which separates "does not exist" from "unreachable"."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

# Names of errors of huggingface_hub, datasets, httpx and Python. Importing the classes would be slow.
_GATED = {"GatedRepoError"}
_ABSENT = {"RepositoryNotFoundError", "DatasetNotFoundError", "RevisionNotFoundError", "HFValidationError"}
_UNREACHED = {
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectionError",
    "TimeoutError",
    "TransportError",
}


@contextlib.contextmanager
def quiet_hub_log() -> Iterator[None]:
    """Silence the client's log, which reports every retry, twice where the root logger has a handler."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def hub_failure(error: BaseException) -> str:
    """Explain a failed download as the second half of a sentence, with the first line of the client's message."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = (str(error).strip().splitlines() or [""])[0]
    told = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    if kinds & _GATED:
        return f"the Hugging Face hub gives it only to those it let in: ask for access there, and log in ({told})"
    if kinds & _ABSENT:
        return f"the Hugging Face hub has nothing public of that name ({told})"
    if kinds & _UNREACHED:
        return f"the Hugging Face hub could not be reached (network, HF_HUB_OFFLINE, HF_ENDPOINT) ({told})"
    return f"the Hugging Face hub did not give it ({told})"
