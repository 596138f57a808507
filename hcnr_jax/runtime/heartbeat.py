"""Whether the other processes of a run still answer: each beats in the store they share and says there why it ends; one
that failed or fell silent is named by the others, which end too: they would wait for it in a collective for good.

JAX notices a dead process too, but ends the others by an abort that may come before anything of ours is said, and
never notices one that hangs with its connection open. Process 0 holds the store: where it dies, JAX's own message,
which speaks of the leader, is all there is.
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

# Seconds between beats, and after which a process that has not beaten is given up.
BEAT = 2.0
SILENCE = 60.0
_FOLDER = "hcnr-alive/"
# First words of what a process says last: it ended well; it ended, with which exit code, and why.
_LEFT, _FAILED = "left", "failed"
# What XLA says of a collective whose other side is gone.
_COLLECTIVE = re.compile("Gloo|NCCL|UNAVAILABLE|[Cc]onnection (closed|reset)")


class Lost(NamedTuple):
    """Why a run of several processes cannot go on: what to say, and the exit code."""

    message: str
    code: int = 1


class Peers:
    """What is known of the other processes: when each was last heard.

    A state without a clock or a store of its own: `hear` is told what the store holds and the time.
    """

    def __init__(self, count: int, own: int, now: float, silence: float) -> None:
        self._silence = silence
        self._heard = {number: ("", now) for number in range(count) if number != own}

    def hear(self, beats: Mapping[int, str], now: float, needed: bool = True) -> Lost | None:
        """The process that failed or is silent, if one is. beats: process -> its last beat: `NUMBER on HOST, pid PID`,
        `left`, or `failed CODE MESSAGE`. needed: whether one that has left is waited for."""
        for number, (before, since) in self._heard.items():
            beat = beats.get(number, "")
            word, _, rest = beat.partition(" ")
            if word == _FAILED:
                code, _, message = rest.partition(" ")
                return Lost(f"process {number} ended: {message}", int(code))
            if beat != before or (word == _LEFT and not needed):
                self._heard[number] = (beat, now)
            elif now - since > self._silence:
                if word == _LEFT:
                    return Lost(f"process {number} ended before the run did")
                where = rest or "never heard"
                return Lost(f"process {number} ({where}) has not answered for {now - since:.0f} s: it died or hangs")
        return None


class Watch:
    """Beats and listens in a thread of its own until the process ends.

    client: JAX's, of the store. on_lost: what to do when a process is lost; by default say so and end. `needed` is True
    while this process cannot go on without the others.
    """

    def __init__(self, client: Any, count: int, own: int, on_lost: Callable[[Lost], None] | None = None) -> None:
        self.needed = False
        self._client, self._own, self._count = client, own, count
        self._about = f"on {socket.gethostname()}, pid {os.getpid()}"
        self._on_lost = on_lost or _end
        self._leaving = threading.Event()
        self._say(f"0 {self._about}")
        # After jax.distributed's own, hence called before it: a process that ends well says so.
        atexit.register(self._leave)
        threading.Thread(target=self._run, daemon=True, name="peers").start()

    def fail(self, message: str, code: int) -> None:
        """Tell the others that this process ends, and why. It must end by `leave`: JAX's own way waits for them."""
        if not self._leaving.is_set():
            self._leaving.set()
            self._say(f"{_FAILED} {code} {message}")

    def leave(self, code: int) -> NoReturn:
        """End this process after `fail`, without waiting for the others."""
        self.fail("it ended early", code)
        time.sleep(self._grace())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _say(self, words: str) -> None:
        # The store may be gone with process 0, or with this process's own end: JAX ends it.
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_FOLDER}{self._own}", words, allow_overwrite=True)

    def _leave(self) -> None:
        if not self._leaving.is_set():
            self._leaving.set()
            self._say(_LEFT)

    def _run(self) -> None:
        peers, beat = Peers(self._count, self._own, time.monotonic(), SILENCE), 0
        while not self._leaving.wait(BEAT):
            beat += 1
            self._say(f"{beat} {self._about}")
            try:
                found = dict(self._client.key_value_dir_get(_FOLDER))
            except Exception:
                return
            beats = {int(name.rpartition("/")[2]): value for name, value in found.items()}
            lost = peers.hear(beats, time.monotonic(), self.needed)
            if lost:
                # Time for this process to end by itself, where all fail alike.
                if not self._leaving.wait(BEAT + self._grace()):
                    self._on_lost(lost)
                return

    def _grace(self) -> float:
        """The store goes with process 0, and JAX aborts those that miss it: they are to hear and to end first."""
        return 5 * BEAT if self._own == 0 else 0.0


_watch: Watch | None = None  # of this process, once `watch` was called


def watch(client: Any, count: int, own: int) -> None:
    """Beat and listen from now on, as process `own` of `count`."""
    global _watch
    _watch = Watch(client, count, own)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that the processes of a run go through side by side. Where one leaves it by an exception the others,
    which would wait for it, are told and end too, with its exit code; it should then call `leave`."""
    if _watch is None:
        yield
        return
    _watch.needed = True
    try:
        yield
    except BaseException as error:
        if _COLLECTIVE.search(str(error)) and not isinstance(error, InputError | Stopped):
            # Another process is the cause, which the listening thread soon knows by name; it ends this one then.
            time.sleep(SILENCE + 10 * BEAT)
        code = error.code if isinstance(error, Stopped) else 2 if isinstance(error, InputError) else 1
        message = " ".join(str(error).split())[:500] or type(error).__name__
        _watch.fail(message.partition(";")[0] if isinstance(error, Stopped) else message, code)
        raise
    finally:
        _watch.needed = False


def leave(code: int) -> None:
    """End this process at once where it is one of several and `code` is not 0: JAX's own end would wait for the
    others, for minutes, and replace the code by its own."""
    if _watch is not None and code:
        _watch.leave(code)


def _end(lost: Lost) -> None:
    sys.stderr.write(
        f"hcnr: the run stopped: {lost.message}. See its own output; what was done is kept, and the same command with "
        "--resume goes on\n"
    )
    sys.stderr.flush()
    os._exit(lost.code)
