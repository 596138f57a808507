"""One run over several processes with their own devices: start, barriers, and checks that all processes agree.

Process 0 alone prints and holds the output's lock. Every process solves every kernel and writes its share of the files.
A barrier names the processes that do not arrive in time; `heartbeat` names processes that fail or hang.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # the only access to a barrier with its own timeout
from jax.experimental import multihost_utils

from hcnr_jax.errors import InputError, RunError
from hcnr_jax.runtime.devices import open_devices
from hcnr_jax.runtime.heartbeat import start_heartbeat

# Seconds that processes wait for each other at the start, and at a barrier.
START_TIMEOUT = 300
BARRIER_TIMEOUT = 1800
# Seconds after which JAX gives up a process that does not answer and aborts the others; `heartbeat` is faster.
HEARTBEAT_TIMEOUT = 150

_EXPLICIT = re.compile(r"(?P<address>[^,\s]+:\d+),(?P<count>\d+),(?P<number>\d+)")


def start(text: str | None) -> None:
    """Join the processes that `--distributed` names; None is a run of one process.

    text: `auto`, which reads the environment of a TPU pod, SLURM, Open MPI or Kubernetes as jax.distributed does, or
    COORDINATOR:PORT,PROCESSES,NUMBER. InputError for any other text, or where the processes do not connect.
    """
    if text is None or jax.distributed.is_initialized():
        return
    arguments = _arguments(text)
    waits: dict[str, Any] = {"initialization_timeout": START_TIMEOUT, "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT}
    try:
        jax.distributed.initialize(**arguments, **waits)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--distributed {text}: the processes did not meet ({' '.join(str(error).split())[:300]}); expected auto "
            "in a TPU pod, SLURM or MPI job, or COORDINATOR:PORT,PROCESSES,NUMBER with the same coordinator in every "
            "process"
        ) from error
    open_devices()
    if jax.process_count() > 1:
        start_heartbeat(global_state.client, jax.process_count(), jax.process_index())


def _arguments(text: str) -> dict[str, Any]:
    if text == "auto":
        return {}
    found = _EXPLICIT.fullmatch(text)
    if found is None or int(found["number"]) >= int(found["count"]):
        raise InputError(
            f"--distributed {text}: expected auto, or COORDINATOR:PORT,PROCESSES,NUMBER with numbers from 0 on, as in "
            "host0:1234,2,0"
        )
    return {
        "coordinator_address": found["address"],
        "num_processes": int(found["count"]),
        "process_id": int(found["number"]),
    }


def is_first() -> bool:
    """Return whether this is process 0, which prints and writes."""
    return jax.process_index() == 0


def barrier(name: str, timeout: int = BARRIER_TIMEOUT) -> None:
    """Wait for all processes. RunError names those that did not arrive within `timeout` seconds."""
    if jax.process_count() == 1:
        return
    client: Any = global_state.client
    key = f"hcnr-{name}"
    # JAX's error names the missing processes in words that change between its versions; this store entry does not.
    client.key_value_set(f"{key}/{jax.process_index()}", "here", allow_overwrite=True)
    try:
        client.wait_at_barrier(key, timeout * 1000)
    except jax.errors.JaxRuntimeError as error:
        here = {int(entry.rpartition("/")[2]) for entry, _ in client.key_value_dir_get(f"{key}/")}
        missing = [str(number) for number in range(jax.process_count()) if number not in here]
        who = f"process {', '.join(missing)}" if missing else "a process"
        raise RunError(f"{who} did not come to '{name}' within {timeout} s: see its own output") from error


def from_first(values: np.ndarray) -> np.ndarray:
    """Broadcast process 0's value of a small array to every process."""
    return values if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(values))


def agree(what: str, text: str) -> None:
    """Raise RunError on every process whose `text` differs from process 0's. what: names the text in the message."""
    own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if not np.array_equal(from_first(own), own):
        raise RunError(
            f"process {jax.process_index()} sees another {what} than process 0 ({text[:200]}): every process needs the "
            "same inputs and options, and a work folder on storage they share"
        )
