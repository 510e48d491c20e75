"""Stopping a run on a signal, after it has saved itself."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..text import shell_word

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        super().__init__(
            f"stopped after step {step} of {total_steps} and saved; resume with: smt train --resume "
            f"{shell_word(folder)}",
            received[0] if received else int(signal.SIGTERM),  # none: another process received it
        )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of ending the process; a second signal ends it."""
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    try:
        before = {number: signal.signal(number, collect) for number in SIGNALS}
    except ValueError:  # not the main thread, e.g. in a notebook: handlers cannot be set
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
