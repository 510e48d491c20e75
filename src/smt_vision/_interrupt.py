"""Ctrl-C while libraries are imported, or while the interpreter exits, ends the command line without a traceback.

When this module is imported by the command line, SIGINT ends the process, except between :func:`raise_on_interrupt` and
:func:`end_on_interrupt`.
"""

import os
import signal
import sys
import threading
from types import FrameType


def raise_on_interrupt() -> None:
    """Let SIGINT raise KeyboardInterrupt again, except within an import, where it ends the process.

    The commands import PyTorch and others when they need them, which takes seconds. An exception that is raised in the
    initialization of an extension module may come out as an ImportError, or abort the process.
    """
    _replace(signal.SIG_DFL, _interrupt)


def end_on_interrupt() -> None:
    """Let SIGINT end the process again: the command is done, and handlers of the interpreter's exit run."""
    _replace(_interrupt, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    present = frame
    while present is not None:
        if present.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        present = present.f_back
    signal.default_int_handler(number, frame)


def _replace(present: object, handler: object) -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is present:
        signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]


program = os.path.splitext(os.path.basename(sys.argv[0]))[0]  # not with pathlib, whose import takes a while
if program == "smt" or (sys.argv[0] == "-m" and "smt_vision" in sys.orig_argv):
    _replace(signal.default_int_handler, signal.SIG_DFL)
