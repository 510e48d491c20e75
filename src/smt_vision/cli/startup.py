"""Start-up of commands that need PyTorch."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Import PyTorch and timm, and load a model, without garbage collection.

    The imports create hundreds of thousands of objects that live as long as the process, and the garbage collector
    would traverse them several times meanwhile. After the block, it is on again, but ignores what was created so far
    until the process ends: some extensions, e.g. Triton's, report what is left then as leaks.

    In a process that has imported PyTorch before, nothing is changed: it may have garbage of its own.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()
