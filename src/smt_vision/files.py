"""Files that are written atomically."""

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".writing-"  # in the names of temporary files
_umask_lock = threading.Lock()
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, write: Callable[[Path], object], size: int = 0) -> None:
    """Call ``write`` with a temporary file in the directory of ``path``, then rename it to ``path``.

    A reader always finds the complete old file or the complete new one, also after the machine has lost power. If
    ``write`` fails, the old file is kept.

    Args:
        path: Path of the file.
        write: Writes the content to the path that it is called with.
        size: Number of bytes that will be written, as far as it is known.

    Raises:
        OSError: The file cannot be written; if the disk is full, the message says how much space is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise _disk_full(path, size, free)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{TEMPORARY}", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        with _umask_lock:  # it belongs to the process, and is read by setting it
            umask = os.umask(0)
            os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        if (cause := _of_storage(error, path)) is None:
            raise
        if cause.errno in NO_SPACE:
            written = temporary.stat().st_size
            raise _disk_full(path, max(size, written), shutil.disk_usage(path.parent).free + written) from error
        raise cause from None
    finally:
        temporary.unlink(missing_ok=True)


def _of_storage(error: Exception, path: Path) -> OSError | None:
    """The error of the storage behind an error of a library that wrote to it; ``None`` if there is none."""
    if code := re.search(r"os error (\d+)", str(error)):  # as safetensors tells it
        return OSError(int(code[1]), os.strerror(int(code[1])), str(path))
    each: BaseException | None = error
    while each is not None and not isinstance(each, OSError):
        each = each.__context__  # torch.save raises another error for the one of the file
    return each


def _disk_full(path: Path, size: int, free: int) -> OSError:
    needed = f"{size / 2**20:,.1f} MiB" if size else "some space"
    return OSError(
        errno.ENOSPC,
        f"the disk or quota is full: {needed} needed, {free / 2**20:,.1f} MiB free; make room and run the same command "
        "again. A file that was there before is unchanged",
        str(path),
    )


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk where the system can, so that a power failure does not undo a renaming."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files of :func:`write_atomic` that killed processes have left in a folder."""
    for path in folder.glob(f".*{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as :func:`write_atomic` does."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write, len(text))
