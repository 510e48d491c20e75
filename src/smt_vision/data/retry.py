"""Reading again after an error of storage that may pass, e.g. while a file server restarts."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# Of network file systems; not of files that are missing or must not be read.
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "EAGAIN", "ESTALE", "EREMOTEIO", "ETIMEDOUT", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN",
        "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "ESHUTDOWN",
    )
    if hasattr(errno, name)
)  # fmt: skip
PAUSES = (0.5, 2.0, 8.0)  # seconds before each further attempt


def retried(read: Callable[[], T]) -> T:
    """``read()``, called again up to three times, within about 10 seconds, after a transient error of the storage.

    Raises:
        Exception: That of the last call, or of the first one that may not pass.
    """
    for pause in PAUSES:
        try:
            return read()
        except (OSError, ValueError) as error:  # decoding turns the first into the second
            if not _is_transient(error):
                raise
        time.sleep(pause)
    return read()


def _is_transient(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return True
        error = error.__cause__
    return False
