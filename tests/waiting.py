"""Waits for other processes and threads."""

import time
from collections.abc import Callable

# Seconds: it ends what hangs, on a machine that is slow and busy, and is no measure of speed.
DEADLINE = 600.0


def wait_until(condition: Callable[[], object]) -> None:
    """Return when the condition holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited for {DEADLINE:.0f} s in vain"
        time.sleep(0.01)
