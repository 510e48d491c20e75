"""Ctrl-C in the seconds that the command line takes to import its libraries ends it without a traceback.

When this module is imported by the command line, SIGINT ends the process, until :func:`raise_on_interrupt` is called.
"""

import os
import signal
import sys
import threading


def raise_on_interrupt() -> None:
    """Let SIGINT raise KeyboardInterrupt again."""
    _replace(signal.SIG_DFL, signal.default_int_handler)


def _replace(present: object, handler: object) -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is present:
        signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]


program = os.path.splitext(os.path.basename(sys.argv[0]))[0]  # not with pathlib, whose import takes a while
if program == "smt" or (sys.argv[0] == "-m" and "smt_vision" in sys.orig_argv):
    _replace(signal.default_int_handler, signal.SIG_DFL)
