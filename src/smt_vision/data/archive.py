"""Random access to the files in a tar archive, from any number of processes."""

import functools
import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import weakref
import zlib
from pathlib import Path

import numpy as np

from .fingerprint import hash_content

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Directory of unpacked and downloaded datasets: ``$SMT_CACHE_DIR``, by default ``~/.cache/smt-vision``."""
    return Path(os.environ.get("SMT_CACHE_DIR") or Path.home() / ".cache" / "smt-vision")


class TarIndex:
    """Index of the regular files in an uncompressed tar.

    Files are read with ``pread``, so forked processes can share the open descriptor.

    Args:
        path: Path of the tar file.

    Raises:
        ValueError: If the file is not a tar or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        stat = path.stat()
        self._version = stat.st_size, stat.st_mtime_ns
        names, folders, offsets, sizes = [], [], [], []
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    name = member.name.removeprefix("./").strip("/")
                    if member.isdir():
                        folders.append(name)
                    elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                        names.append(name)
                        offsets.append(member.offset_data)
                        sizes.append(member.size)
                    # tarfile would otherwise keep every member, about 1 kB per file.
                    tar.members.clear()  # type: ignore[attr-defined]
        except tarfile.TarError as error:
            raise ValueError(f"{path}: invalid or truncated tar file ({error}); download or pack it again") from error
        if offsets and offsets[-1] + sizes[-1] > stat.st_size:
            raise ValueError(f"{path}: truncated within {names[-1]}; download or pack it again")
        self.names: list[str] = names
        self.folders: list[str] = folders
        self._offsets = np.array(offsets, dtype=np.int64)
        self._sizes = np.array(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"names": [], "folders": []}  # worker processes read by row and need no names

    def read(self, row: int) -> bytes:
        """Return the content of file ``row``, counted in the order of the tar."""
        return self._read(row, 0, int(self._sizes[row]))

    def fingerprint(self, row: int) -> int:
        """The :func:`~smt_vision.data.fingerprint.hash_content` of file ``row``."""
        return hash_content(int(self._sizes[row]), lambda offset, length: self._read(row, offset, length))

    def _read(self, row: int, offset: int, length: int) -> bytes:
        file = _open_file(self.path, self._version)
        length = min(length, int(self._sizes[row]) - offset)
        return os.pread(file.descriptor, length, int(self._offsets[row]) + offset)


class _OpenFile:
    """A file descriptor that is closed when its owner is garbage-collected."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


@functools.lru_cache(maxsize=64)  # a dataset may have more shards than a process may have open files
def _open_file(path: Path, version: tuple[int, int]) -> _OpenFile:
    return _OpenFile(path)


def open_tar(path: Path) -> TarIndex:
    """Index a tar file; a compressed one (.tar.gz, .tgz) is first unpacked to an uncompressed tar in the cache."""
    if path.suffix in (".gz", ".tgz"):
        path = _decompress(path)
    stat = path.stat()
    return _index(path, (stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=2)  # the train and val splits of one tar are opened one after the other
def _index(path: Path, version: tuple[int, int]) -> TarIndex:
    return TarIndex(path)


def _decompress(path: Path) -> Path:
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_dir() / "tars" / f"{path.name.partition('.')[0]}-{key}.tar"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("unpacking %s to %s (once)", path, target)
    # Renamed only when complete: an interrupted run must not leave a file that looks like the tar.
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as out, gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, out, 1 << 20)
        os.replace(partial, target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: invalid or truncated gzip file ({error}); download or pack it again") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return target
