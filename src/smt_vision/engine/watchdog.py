"""Ends a run that stands still."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, cast

from ..signals import StopSignals

POLL_SECONDS = 1.0
SUSPENDED_SECONDS = 5.0  # without a poll
GRACE_SECONDS = 20.0  # to save and end after a signal, if steps are short


class Watchdog:
    """A thread that ends the process when it makes no progress, e.g. because a file system does not answer.

    It does nothing where signals are not handled, outside the main thread.

    The main thread says what it does with :meth:`at`. Without a call for ``minutes``, its wait for data is ended as by
    a signal, if it is in one, so that the run can save itself; otherwise, the process is ended. After a signal, the
    limit is 20 seconds or twice the longest step so far.

    Args:
        minutes: The limit.
        signals: The signals received so far.
        beat: Called about every second, from the thread.
        where: Begins the messages, e.g. the run's folder.

    Attributes:
        stalled: What the process waited for when the limit passed; empty before.
    """

    def __init__(self, minutes: float, signals: StopSignals, beat: Callable[[], None], where: str) -> None:
        self._limit, self._signals, self._beat, self._where = 60 * minutes, signals, beat, where
        self._phase, self._since, self._longest = "starting", time.monotonic(), 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        # Of its own: it writes to the file system that may not answer.
        self._beats = threading.Thread(target=self._keep_beating, name="watchdog-beats", daemon=True)
        self.stalled = ""

    def at(self, phase: str) -> None:
        """Say what follows, e.g. "waiting for a training batch"."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._phase, self._since = phase, now

    def __enter__(self) -> Self:
        if self._signals.handled:
            self._thread.start()
            self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._beats.join(POLL_SECONDS)

    def _keep_beating(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            with contextlib.suppress(OSError):
                self._beat()

    def _watch(self) -> None:
        asked = 0.0  # when the wait was ended
        polled = time.monotonic()
        while not self._end.wait(POLL_SECONDS):
            late = time.monotonic() - polled - POLL_SECONDS
            polled = time.monotonic()
            if late > SUSPENDED_SECONDS:  # so was the whole process: by Ctrl-Z, or a scheduler that gave its place away
                self._since += late
                asked += late
            still = time.monotonic() - self._since
            received = list(self._signals.received)
            grace = max(GRACE_SECONDS, 2 * self._longest)
            if self.stalled:
                if time.monotonic() - asked > GRACE_SECONDS and still > GRACE_SECONDS:
                    self._exit(self.stalled, 1)
            elif received and still > grace:
                name = signal.Signals(received[0]).name
                self._exit(
                    f"{self._where}: {self._phase} for {still:.0f} s, without an answer to {name}", 128 + received[0]
                )
            elif still > self._limit:
                self.stalled = f"{self._where}: {self._phase} for {still:.0f} s, longer than engine.timeout_minutes"
                asked = time.monotonic()
                signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGUSR1)

    def _exit(self, message: str, code: int) -> None:
        """End the process: the main thread does not react, so that it cannot end itself."""
        print(f"smt train: error: {message}; nothing was saved since the last checkpoint", file=sys.stderr, flush=True)
        os._exit(code)
