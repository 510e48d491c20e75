"""Errors of converters and runtimes, which raise almost any exception, as one that says what failed, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..data.decode import UnreadableImage
from ..signals import Stopped

MAX_REASON = 300  # characters of the original message, which can be a page long
# In the messages of PyTorch on a CPU, under Windows, on MPS and of CUDA and its libraries, ONNX Runtime and OpenVINO.
SIGNS = (
    "can't allocate memory", "not enough memory", "failed to allocate memory", "bad_alloc", "bad allocation",
    "out of memory", "alloc_failed",
)  # fmt: skip


class ProgramError(ValueError):
    """A model cannot be converted to a format, or a program cannot be loaded or run."""


class ProgramMemoryError(ProgramError, MemoryError):
    """The same, since memory ran out."""


@contextmanager
def program_errors(failed: str, remedy: str) -> Iterator[None]:
    """Turn any exception but those that are clear already into a :class:`ProgramError`; its cause is kept.

    Args:
        failed: What failed, e.g. ``the converter of format 'onnx' failed``.
        remedy: What to do, unless memory ran out.
    """
    try:
        yield
    except (ProgramError, UnreadableImage, ImportError, OSError, Stopped):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} ..."
        message = f"{failed} ({type(error).__name__}: {reason})"
        if is_out_of_memory(error):
            raise ProgramMemoryError(f"{message}: memory ran out; use fewer or smaller images per call") from error
        raise ProgramError(f"{message}; {remedy}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that memory could not be allocated, on the CPU or on another device."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in SIGNS)
