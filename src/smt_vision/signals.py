"""Stopping work on a signal, after it has saved itself."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import cast

from .text import shell_word

# Ctrl-C; what schedulers and process managers send; the end of a terminal session; SLURM's --signal=USR1@SECONDS.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# timeout(1) sends its signal to the command and then to its process group, which the command is in; schedulers signal
# all processes of a job, some of which pass it on.
ONE_EVENT_SECONDS = 1.0
PARENT_SECONDS = 1.0  # between two looks whether the parent process is there


class Stopped(RuntimeError):
    """Work was stopped by a signal and can be resumed.

    Attributes:
        signal: The signal, so that a program can exit with the usual code, 128 + signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class RunStopped(Stopped):
    """A run was stopped by a signal, with a checkpoint."""

    def __init__(self, folder: Path, step: int, total_steps: int, received: list[int]) -> None:
        self.step, self.total_steps, self.received = step, total_steps, received
        super().__init__(
            f"stopped after step {step} of {total_steps} and saved; resume with: smt train --resume "
            f"{shell_word(folder)}",
            received[0] if received else int(signal.SIGTERM),  # none: another process received it
        )

    def within(self, folder: Path) -> "RunStopped":
        """The same of a run that is a part of what is resumed with another folder."""
        return RunStopped(folder, self.step, self.total_steps, self.received)


class Interrupted(BaseException):
    """A signal arrived in an :meth:`StopSignals.interruptible` section, which it ended.

    Not an ``Exception``, so that code which handles those of a dataset or a metric does not handle it.
    """


class StopSignals:
    """The signals received so far.

    Attributes:
        received: Their numbers, in order.
        handled: Whether signals are collected: they are in the main thread only.
        numbers: Those that are collected: the others are ignored.
        pipe: Read end of a pipe in which every signal is a byte, its number, as soon as it arrives: Python calls
            handlers between two steps of the main thread's code, and thus not while that waits in a collective. There
            may be other bytes, of signals that are not handled here, and 0. -1 if signals are not collected.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.handled = False
        self.numbers: tuple[signal.Signals, ...] = ()
        self.pipe = self._pipe_end = -1
        self._interruptible = 0
        self._ends_at = 0.0  # from when on another signal ends the process

    def __bool__(self) -> bool:
        return bool(self.received)

    @contextmanager
    def interruptible(self, enabled: bool = True) -> Iterator[None]:
        """A section without anything to save, e.g. a wait: a signal ends it at once.

        Args:
            enabled: ``False`` for a section that a signal does not end.

        Raises:
            Interrupted: A signal arrived, before the section or in it.
        """
        if not enabled:
            yield
            return
        self._interruptible += 1
        try:
            if self.received:
                raise Interrupted
            yield
        finally:
            self._interruptible -= 1

    def interrupt(self) -> None:
        """End an :meth:`interruptible` section of the main thread, as a signal does; called in another thread."""
        if self.numbers:
            signal.pthread_kill(cast(int, threading.main_thread().ident), self.numbers[-1])

    def wake(self) -> None:
        """End a wait for the next byte of ``pipe``."""
        os.write(self._pipe_end, b"\0")

    def collect(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals.

        A second one ends the process; those within a second of the first one count as the same event.
        """
        now = time.monotonic()
        if not self.received:
            self._ends_at = now + ONE_EVENT_SECONDS
        elif now < self._ends_at:
            return
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received.append(number)
        if self._interruptible:
            raise Interrupted


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Collect signals instead of ending the process; a second signal, a second later or more, ends it.

    A signal that is ignored, as nohup does with SIGHUP and a shell with SIGINT of background jobs, stays ignored.
    """
    signals = StopSignals()
    signals.handled = threading.current_thread() is threading.main_thread()  # elsewhere handlers cannot be set
    if not signals.handled:
        yield signals
        return
    signals.pipe, signals._pipe_end = os.pipe()
    os.set_blocking(signals._pipe_end, False)
    signals.numbers = tuple(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)
    before = {number: signal.signal(number, signals.collect) for number in signals.numbers}
    wakeup_before = signal.set_wakeup_fd(signals._pipe_end, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(signals._pipe_end)
        os.close(signals.pipe)


def ignore_stop_signals() -> None:
    """In a worker process: leave the signals that a group of processes receives to the process that started it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def blocked_stop_signals() -> Iterator[None]:
    """Block the signals. A process that is started here has them blocked, and leaves those of its group to its parent.

    A signal that arrives meanwhile is handled afterwards. multiprocessing starts its resource tracker with the first
    process, and then unblocks signals; here it is started before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_stop_signals() -> None:
    """In a process that was started within :func:`blocked_stop_signals`: let the parent's signals in."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@cache  # one thread, however often it is called
def end_with_parent(parent: int, grace_seconds: float = 30.0) -> None:
    """End this process when the process that started it has ended, which would otherwise leave it waiting.

    It receives SIGTERM, and SIGKILL if it has not ended after the grace period, e.g. because it waits in a collective.

    Args:
        parent: Process id of the parent.
        grace_seconds: Time from SIGTERM to SIGKILL.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
