"""Waits for other processes and threads."""

import os
import time
import traceback
from collections.abc import Callable

# Seconds: it ends what hangs, on a machine that is slow and busy, and is no measure of speed.
DEADLINE = 600.0


def wait_until(condition: Callable[[], object]) -> None:
    """Return when the condition holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited for {DEADLINE:.0f} s in vain"
        time.sleep(0.01)


def in_fork(function: Callable[[], int | None]) -> int:
    """Call a function in a copy of this process, which ends with its result and without what this one does at its end.

    Returns:
        The process id. The exit code is 70 after an exception.
    """
    if pid := os.fork():
        return pid
    code = 70
    try:
        code = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
