"""Heartbeats between the processes of one run, so that a process that died or hangs is named and the others end.

Each process writes a heartbeat to the shared key-value store, and the reason when it exits. A thread of every process
reads the others' heartbeats. Without this check the others would wait in a collective forever.

JAX notices a dead process too, but it aborts the others, sometimes before they can print a reason. JAX never notices a
process that hangs with its connection open. Process 0 holds the store: when process 0 dies, only JAX's own message,
which speaks of the leader, is printed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from hcnr_jax.errors import InputError, Stopped

# Seconds between heartbeats, and the seconds without a heartbeat after which a process counts as failed.
INTERVAL = 2.0
TIMEOUT = 60.0
_FOLDER = "hcnr-heartbeat/"
# First word of a process's last entry: it exited normally, or it failed (an exit code and a message follow).
_EXITED, _FAILED = "exited", "failed"
# What XLA's error says about a collective whose other side is gone.
_COLLECTIVE = re.compile("Gloo|NCCL|UNAVAILABLE|[Cc]onnection (closed|reset)")


class ProcessFailure(NamedTuple):
    """Why a run of several processes cannot go on: the message, and the exit code."""

    message: str
    code: int = 1


class LastSeen:
    """The last heartbeat of every other process, and when it was seen.

    This class holds neither a clock nor a store: `update` takes the store's content and the time.
    """

    def __init__(self, count: int, own: int, now: float, *, timeout: float) -> None:
        self._timeout = timeout
        self._seen = {number: ("", now) for number in range(count) if number != own}

    def update(self, heartbeats: Mapping[int, str], now: float, needed: bool = True) -> ProcessFailure | None:
        """Take in new heartbeats; return the failure of a process, if one failed or fell silent.

        Args:
            heartbeats: process -> its last entry, `NUMBER on HOST, pid PID`, `exited`, or `failed CODE MESSAGE`.
            now: seconds of a monotonic clock.
            needed: whether this process waits for a process that has exited.
        """
        for number, (before, since) in self._seen.items():
            heartbeat = heartbeats.get(number, "")
            word, _, rest = heartbeat.partition(" ")
            if word == _FAILED:
                code, _, message = rest.partition(" ")
                return ProcessFailure(f"process {number} ended: {message}", int(code))
            if heartbeat != before or (word == _EXITED and not needed):
                self._seen[number] = (heartbeat, now)
            elif now - since > self._timeout:
                if word == _EXITED:
                    return ProcessFailure(f"process {number} ended before the run did")
                where = rest or "no heartbeat seen"
                return ProcessFailure(
                    f"process {number} ({where}) has not answered for {now - since:.0f} s: it died or hangs"
                )
        return None


class HeartbeatMonitor:
    """Writes this process's heartbeats and reads the others', in a thread that runs until the process ends.

    `needed` is True while this process cannot go on without the others.
    """

    def __init__(
        self, client: Any, count: int, own: int, *, on_failure: Callable[[ProcessFailure], None] | None = None
    ) -> None:
        """Start the thread.

        Args:
            client: JAX's client of the key-value store.
            count: number of processes.
            own: number of this process.
            on_failure: is called when another process fails; by default this process prints the failure and ends.
        """
        self.needed = False
        self._client, self._own, self._count = client, own, count
        self._identity = f"on {socket.gethostname()}, pid {os.getpid()}"
        self._on_failure = on_failure or _end
        self._exiting = threading.Event()
        self._write(f"0 {self._identity}")
        # Registered after jax.distributed's own handler, so that this handler runs first.
        atexit.register(self._report_exit)
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def report_failure(self, message: str, code: int) -> None:
        """Tell the others that this process ends, and why. Then call `exit`: JAX's own end would wait for them."""
        if not self._exiting.is_set():
            self._exiting.set()
            self._write(f"{_FAILED} {code} {message}")

    def exit(self, code: int) -> NoReturn:
        """End this process without waiting for the others; call `report_failure` before."""
        self.report_failure("it ended early", code)
        time.sleep(self._grace())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _write(self, entry: str) -> None:
        # The store may be gone: it ends with process 0, and JAX closes it when this process ends.
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_FOLDER}{self._own}", entry, allow_overwrite=True)

    def _report_exit(self) -> None:
        if not self._exiting.is_set():
            self._exiting.set()
            self._write(_EXITED)

    def _run(self) -> None:
        seen, number = LastSeen(self._count, self._own, time.monotonic(), timeout=TIMEOUT), 0
        while not self._exiting.wait(INTERVAL):
            number += 1
            self._write(f"{number} {self._identity}")
            try:
                found = dict(self._client.key_value_dir_get(_FOLDER))
            except Exception:
                return
            heartbeats = {int(name.rpartition("/")[2]): value for name, value in found.items()}
            failure = seen.update(heartbeats, time.monotonic(), self.needed)
            if failure:
                # Where all processes fail alike, this one has time to end by itself.
                if not self._exiting.wait(INTERVAL + self._grace()):
                    self._on_failure(failure)
                return

    def _grace(self) -> float:
        """Seconds process 0 waits before it ends: the store goes with it, and JAX aborts processes that miss the store.

        The others read the failure and end in this time.
        """
        return 5 * INTERVAL if self._own == 0 else 0.0


_monitor: HeartbeatMonitor | None = None  # this process's, once `start_heartbeat` was called


def start_heartbeat(client: Any, count: int, own: int) -> None:
    """Write and read heartbeats from now on, as process `own` of `count`."""
    global _monitor
    _monitor = HeartbeatMonitor(client, count, own)


@contextlib.contextmanager
def propagate_failure() -> Iterator[None]:
    """Run a block that needs every process of the run; an exception in one process ends all of them.

    A process that leaves the block by an exception reports it, and the others end with the same exit code instead of
    waiting. The failed process should then call `exit_process`.
    """
    if _monitor is None:
        yield
        return
    _monitor.needed = True
    try:
        yield
    except BaseException as error:
        if _COLLECTIVE.search(str(error)) and not isinstance(error, InputError | Stopped):
            # Another process is the cause. The heartbeat thread will name that process and end this one.
            time.sleep(TIMEOUT + 10 * INTERVAL)
        code = error.code if isinstance(error, Stopped) else 2 if isinstance(error, InputError) else 1
        message = " ".join(str(error).split())[:500] or type(error).__name__
        _monitor.report_failure(message.partition(";")[0] if isinstance(error, Stopped) else message, code)
        raise
    finally:
        _monitor.needed = False


def exit_process(code: int) -> None:
    """End this process at once if it is one of several and `code` is not 0.

    JAX's own end would wait minutes for the others and replace the exit code.
    """
    if _monitor is not None and code:
        _monitor.exit(code)


def _end(failure: ProcessFailure) -> None:
    sys.stderr.write(
        f"hcnr: the run stopped: {failure.message}. See its own output; what was done is kept, and the same command "
        "with --resume goes on\n"
    )
    sys.stderr.flush()
    os._exit(failure.code)
