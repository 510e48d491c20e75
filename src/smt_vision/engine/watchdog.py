"""Ends a run that makes no progress."""

import os
import select
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Self

from ..signals import ONE_EVENT_SECONDS, SIGNALS, StopSignals

POLL_SECONDS = 1.0
LAST_WORDS_SECONDS = 1.0  # to write why the process ends
SUSPENDED_SECONDS = 5.0  # without a poll
GRACE_SECONDS = 20.0  # to save and end after a signal, if steps are short
STARTING, WAITING = "starting", "waiting for training images"  # phases whose time says nothing about a step's
SAVING = "writing a checkpoint"  # what a signal asks for
MEASURING, RECORDING = "computing the metrics", "recording the evaluation"  # once per evaluation; no step is as long
PATIENT = (SAVING, MEASURING, RECORDING)  # phases with the long limit, also after a signal


class Watchdog:
    """A thread that ends the process when it makes no progress, e.g. because a file system does not answer.

    It does nothing where signals are not handled, outside the main thread.

    The main thread says what it does with :meth:`at`. Without a call for ``minutes``, its wait for data is ended as by
    a signal, if it is in one, so that the run can save itself; otherwise, the process is ended. After a signal, the
    limit is 20 seconds, or twice the longest step so far, from the signal or the last step on; a checkpoint and the end
    of an evaluation may take as long as without a signal. A second signal, a second later or more, ends a process whose
    main thread cannot answer.

    Args:
        minutes: The limit.
        signals: The signals received so far.
        where: Begins the messages, e.g. the run's folder.

    Attributes:
        stalled: What the process waited for when the limit passed; empty before.
    """

    def __init__(self, minutes: float, signals: StopSignals, where: str) -> None:
        self._limit, self._signals, self._where = 60 * minutes, signals, where
        self._phase, self._since, self._longest = STARTING, time.monotonic(), 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._first = 0  # the first signal
        self._arrived = 0.0  # and when it arrived
        self.stalled = ""

    def at(self, phase: str) -> None:
        """Say what follows, e.g. "waiting for a training batch"."""
        now = time.monotonic()
        if self._phase not in (STARTING, WAITING, *PATIENT):
            self._longest = max(self._longest, now - self._since)
        self._phase, self._since = phase, now

    def __enter__(self) -> Self:
        if self._signals.handled:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended = True
        if self._thread.ident is not None:
            self._signals.wake()
            self._thread.join()

    def _watch(self) -> None:
        asked = 0.0  # when the wait was ended
        polled = time.monotonic()
        while not self._ended:
            arrived = self._arrivals()
            if self._ended:
                return
            late = time.monotonic() - polled - POLL_SECONDS
            polled = time.monotonic()
            if late > SUSPENDED_SECONDS:  # so was the whole process: by Ctrl-Z, or a scheduler that gave its place away
                self._since += late
                self._arrived += late
                asked += late
            self._note(arrived, polled)
            still = polled - self._since
            grace = max(GRACE_SECONDS, 2 * self._longest)
            if self.stalled:
                if polled - max(self._since, asked) > (self._limit if self._phase == SAVING else grace):
                    self._exit(self.stalled, os.EX_TEMPFAIL)
            elif self._first and polled - max(self._since, self._arrived) > (
                self._limit if self._phase in PATIENT else grace
            ):
                self._unanswered(self._first)
            elif still > self._limit:
                self.stalled = f"{self._where}: {self._phase} for {still:.0f} s, longer than engine.timeout_minutes"
                asked = polled
                self._signals.interrupt()

    def _arrivals(self) -> bytes:
        """The numbers of the signals that arrive within a poll, as soon as there are any."""
        ready, _, _ = select.select([self._signals.pipe], [], [], POLL_SECONDS)
        return os.read(self._signals.pipe, 1024) if ready else b""

    def _note(self, arrived: bytes, now: float) -> None:
        """Note the first signal; another one, a second later or more, ends the process if the main thread does not."""
        for number in arrived:
            if number not in SIGNALS or self.stalled:  # the one that ended the wait is of this thread
                continue
            if not self._first:
                self._first, self._arrived = number, now
            elif now - self._arrived > ONE_EVENT_SECONDS:
                time.sleep(POLL_SECONDS)  # the handler ends the process at once where it is called
                if not self._ended:
                    self._unanswered(number)

    def _unanswered(self, number: int) -> None:
        still = time.monotonic() - self._since
        name = signal.Signals(number).name
        self._exit(f"{self._where}: {self._phase} for {still:.0f} s, without a response to {name}", 128 + number)

    def _exit(self, message: str, code: int) -> None:
        """End the process: the main thread does not react, so that it cannot end itself."""
        line = f"smt train: error: {message}; nothing was saved since the last checkpoint"
        # By another thread: whoever reads the standard error may not react either.
        last_words = threading.Thread(target=lambda: print(line, file=sys.stderr, flush=True), daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_SECONDS)
        os._exit(code)
