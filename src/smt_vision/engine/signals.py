"""Stopping a run without losing it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(RuntimeError):
    """A run was asked to stop, and has saved itself.

    Attributes:
        signal: the signal that asked, so that a program can end with the usual code, 128 + signal.
    """

    def __init__(self, folder: Path, step: int, total_steps: int, asked: list[int]) -> None:
        self.signal = asked[0] if asked else int(signal.SIGTERM)
        super().__init__(
            f"stopped after update {step} of {total_steps} and saved; go on with: smt train --resume {folder}"
        )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list in place of dying of them; a second one dies."""
    asked: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.append(number)

    try:
        before = {number: signal.signal(number, collect) for number in SIGNALS}
    except ValueError:  # not the main thread, as in a notebook's worker: signals are not ours to take
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
