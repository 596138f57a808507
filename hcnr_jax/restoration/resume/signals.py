"""Handles SIGTERM and Ctrl-C: a run stops between steps, keeps its results, and says how to continue."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from hcnr_jax.config import RestoreConfig, is_positional, option_name
from hcnr_jax.errors import Stopped

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopping:
    """Handles the signals while `listening`.

    Outside `held` a signal stops the run at once, because no unfinished work exists there. Inside `held` the run stops
    at the next `check`, and a second signal stops the run at once.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._held = False
        self._pending: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stopping]:
        """Handle the signals while the block runs. Only the main thread can do so; in other threads nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Delay the stop to the next `check` while the block runs."""
        self._held = True
        try:
            yield
            self.check()
        finally:
            self._held = False

    def check(self) -> None:
        """Raise `Stopped` if a signal came. Called between the steps of a stage."""
        if self._pending is not None:
            raise _stopped(self._pending)

    def _handle(self, number: int, frame: Any) -> None:
        second, self._pending = self._pending is not None, signal.Signals(number)
        if second or not self._held:
            raise _stopped(self._pending)
        self._say(f"{SIGNALS[self._pending]}: stopping after this step; once more stops at once")


def _stopped(number: signal.Signals) -> Stopped:
    return Stopped(f"stopped by {SIGNALS[number]}", 128 + number)


def resume_command(config: RestoreConfig) -> str:
    """Return the command line that continues this run."""
    words = ["hcnr", "restore"]
    for name, info in RestoreConfig.model_fields.items():
        value = getattr(config, name)
        if is_positional(info.metadata):
            words.append(str(value))
        elif info.is_required() or (value != info.default and name != "resume"):
            words.append(option_name(RestoreConfig, name))
            if value is not True:
                words.append("none" if value is None else str(value))
    return shlex.join([*words, "--resume"])
