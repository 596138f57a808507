"""Whether the other processes of a run still answer: each beats in the store they share, and a silent one is named.

JAX notices a dead process too, but ends the others by an abort that may come before anything of ours is said, and
never notices one that hangs with its connection open. Process 0 holds the store: where it dies, JAX's own message,
which speaks of the leader, is all there is.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

# Seconds between beats, and after which a process that has not beaten is given up.
BEAT = 2.0
SILENCE = 60.0
_FOLDER = "hcnr-alive/"
# What a process says last.
_LEFT = "left"


class Peers:
    """What is known of the other processes: when each was last heard.

    A state without a clock or a store of its own: `hear` is told what the store holds and the time.
    """

    def __init__(self, count: int, own: int, now: float, silence: float) -> None:
        self._silence = silence
        self._heard = {number: ("", now) for number in range(count) if number != own}

    def hear(self, beats: Mapping[int, str], now: float) -> str | None:
        """What to say of a process that is lost, else None. beats: process -> its last beat, `NUMBER on HOST (pid)` or
        'left'."""
        for number, (before, since) in self._heard.items():
            beat = beats.get(number, "")
            if beat != before or beat == _LEFT:
                self._heard[number] = (beat, now)
            elif now - since > self._silence:
                where = beat.partition(" ")[2] or "never heard"
                return f"process {number} ({where}) has not answered for {now - since:.0f} s: it died or hangs"
        return None


def watch(client: Any, count: int, own: int, on_lost: Callable[[str], None] | None = None) -> None:
    """Beat and listen in a thread of its own until the process ends. client: JAX's, of the store. on_lost: what to do
    when a process is lost; by default say so and end, since the other threads wait in a collective for good."""
    about = f"on {socket.gethostname()}, pid {os.getpid()}"
    client.key_value_set(f"{_FOLDER}{own}", f"0 {about}", allow_overwrite=True)
    # After jax.distributed's own, hence called before it: a process that ends well says so.
    atexit.register(_leave, client, own)
    arguments = (client, count, own, about, on_lost or _end)
    threading.Thread(target=_run, args=arguments, daemon=True, name="peers").start()


def _run(client: Any, count: int, own: int, about: str, on_lost: Callable[[str], None]) -> None:
    peers, beat = Peers(count, own, time.monotonic(), SILENCE), 0
    while not _leaving.wait(BEAT):
        beat += 1
        try:
            client.key_value_set(f"{_FOLDER}{own}", f"{beat} {about}", allow_overwrite=True)
            found = dict(client.key_value_dir_get(_FOLDER))
        except Exception:  # the store is gone with process 0, or with this process's own end: JAX ends it
            return
        beats = {int(name.rpartition("/")[2]): value for name, value in found.items()}
        lost = peers.hear(beats, time.monotonic())
        if lost:
            if own == 0:  # the store goes with it: the others are to see for themselves
                time.sleep(2 * BEAT)
            on_lost(lost)
            return


_leaving = threading.Event()


def _leave(client: Any, own: int) -> None:
    if not _leaving.is_set():
        _leaving.set()
        try:
            client.key_value_set(f"{_FOLDER}{own}", _LEFT, allow_overwrite=True)
        except Exception:  # nobody is left to be told
            return


def _end(lost: str) -> None:
    sys.stderr.write(
        f"hcnr: the run stopped: {lost}. See its own output; what was done is kept, and the same command with --resume "
        "goes on\n"
    )
    sys.stderr.flush()
    os._exit(1)
