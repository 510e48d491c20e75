"""Ctrl-C in the seconds that the command line takes to import its libraries ends it without a traceback.

When this module is imported by the command line, SIGINT ends the process, until :func:`raise_on_interrupt` is called.
"""

import signal
import sys
import threading
from pathlib import Path
from typing import Any


def raise_on_interrupt() -> None:
    """Let SIGINT raise KeyboardInterrupt again."""
    _replace(signal.SIG_DFL, signal.default_int_handler)


def _replace(present: object, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is present:
        signal.signal(signal.SIGINT, handler)


if Path(sys.argv[0]).stem == "smt" or (sys.argv[0] == "-m" and "smt_vision" in sys.orig_argv):
    _replace(signal.default_int_handler, signal.SIG_DFL)
