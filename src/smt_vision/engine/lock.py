"""A lock on the folder of a run, so that two processes do not write into it."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from ..data.retry import retried
from ..text import get_logger

log = get_logger(__name__)
LOCK = "run.lock"
BEAT_SECONDS = 15.0  # between two signs of life
STALE_SECONDS = 90.0  # without one: the process on another machine has died
WATCH_SECONDS = 1.0  # between two looks for one
JOIN_SECONDS = 1.0  # that the end waits for a file system which does not answer


_held: set[TextIO] = set()


def _close_in_child() -> None:
    """In a forked process: close the files of locks, which it would hold on to when the process it came from dies."""
    for file in _held:
        os.close(file.fileno())
    _held.clear()  # a further fork would close what has these numbers by then


os.register_at_fork(after_in_child=_close_in_child)


class FolderLock:
    """Holds the lock of a folder in a ``with`` block.

    The lock is that of the operating system on the file ``run.lock``, which a process loses when it dies, however it
    dies. The file names the host and the process, and a thread renews its time, for file systems whose locks do not
    reach other machines: there, a lock without a heartbeat for 90 seconds is that of a process that has died.

    Args:
        folder: The folder; created if missing, and removed again if nothing was written into it.

    Raises:
        ValueError: On entering: another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._end = threading.Event()
        # Of its own: it writes to a file system that may not answer.
        self._beats = threading.Thread(target=self._keep_beating, name="lock-beats", daemon=True)

    def __enter__(self) -> Self:
        self._made_folder = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            self._acquire()
        except BaseException:
            self._file.close()
            raise
        _held.add(self._file)
        self._beats.start()
        return self

    def _acquire(self) -> None:
        supported = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(self._holder()) from None
        except OSError:  # a file system without locks
            supported = False
        holder = self._holder()
        # Where there are no locks, the number may be that of another process by now.
        if holder and (holder["host"] != socket.gethostname() or (not supported and _is_alive(holder["pid"]))):
            self._wait_until_stale(holder)
        self._file.truncate(0)
        self._file.write(json.dumps(_this_process()))
        self._file.flush()

    def check(self) -> None:
        """Raise a ValueError if another process has taken the lock over while this one did not update it."""
        with contextlib.suppress(FileNotFoundError):  # removed by hand; whoever comes next makes another one
            if (holder := self._holder()) == _this_process():
                return
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            raise ValueError(
                f"{self.path.parent}: {who} has taken over this folder, since this process did not update its "
                f"lock for more than {STALE_SECONDS:.0f} s; it ends without writing anything"
            )

    def _holder(self) -> dict[str, Any] | None:
        """What the file says of the process that holds the lock, or that died with it."""
        try:
            holder = json.loads(retried(lambda: self.path.read_text(encoding="utf-8")))
            return {"host": str(holder["host"]), "pid": int(holder["pid"])}
        except (ValueError, TypeError, KeyError):  # empty, as after an orderly end, or damaged
            return None

    def _wait_until_stale(self, holder: dict[str, Any]) -> None:
        """Return if the lock's file is not updated for long enough, so that its process must have died.

        The file's time is only compared with itself: it may be of another machine's clock.

        Raises:
            ValueError: It was updated.
        """
        log.warning(
            "%s: held by process %d on %s; waiting %.0f s for a heartbeat before taking over the folder",
            self.path, holder["pid"], holder["host"], STALE_SECONDS,
        )  # fmt: skip
        seen, start = self.path.stat().st_mtime_ns, time.monotonic()
        while time.monotonic() - start < STALE_SECONDS:
            time.sleep(WATCH_SECONDS)
            if self.path.stat().st_mtime_ns != seen:
                raise self._in_use(holder)

    def _in_use(self, holder: dict[str, Any] | None) -> ValueError:
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        return ValueError(
            f"{self.path.parent}: {who} is training in this folder; wait for its end, stop it, or choose another "
            f"folder with --run"
        )

    def _keep_beating(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, ValueError):  # the latter, when another process has it: leave its time
                self.check()
                os.utime(self.path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end.set()
        self._beats.join(JOIN_SECONDS)
        _held.discard(self._file)
        with contextlib.suppress(ValueError):  # another process has it now
            self.check()
            self._file.truncate(0)
        self._file.close()
        if self._made_folder and list(self.path.parent.iterdir()) == [self.path]:  # nothing was written
            self.path.unlink()
            self.path.parent.rmdir()


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
