"""OpenVINO's core object, and the signal stack that it changes.

Each core with a CPU plugin makes the thread that starts the plugin handle signals on a stack of its own (Linux), and
puts the former stack back when it is destroyed, if its own is still in use. Where the first of two cores is destroyed
first, the second one puts back the stack of the first, which is unmapped by then: the next signal with a handler, e.g.
Ctrl-C or the end of a data loader's worker, ends the process with SIGSEGV.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..extras import require

_lock = threading.Lock()


def openvino_core() -> Any:
    """The one ``openvino.Core`` of this package, which lives as long as the process."""
    with _lock:  # two threads would each make one
        return _core()


@cache
def _core() -> Any:
    return require("openvino", "export").Core()


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_restored() -> Iterator[None]:
    """At the end, this thread handles signals on the same stack as before, whatever cores were created meanwhile."""
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
