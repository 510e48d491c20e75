"""Random access to the files in a tar archive, from any number of processes."""

import bz2
import functools
import glob
import gzip
import hashlib
import lzma
import os
import posixpath
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from ..text import get_logger
from .files import is_image
from .fingerprint import hash_content
from .tar import DamagedTar, read_members

Offsets = npt.NDArray[np.int64]
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MIN_FREE = 1 << 28  # bytes that unpacking leaves free on the disk
MAX_RATIO, ALWAYS_UNPACKED = 200, 1 << 26  # unpacked over compressed bytes, in files of more than 64 MB unpacked
_CHUNK = 1 << 20
PARTIAL = ".partial"  # suffix of a file that is being unpacked
ABANDONED_SECONDS = 3600.0  # since the last byte was written to it: by a process that has died
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
log = get_logger(__name__)


def cache_dir() -> Path:
    """Directory of unpacked and downloaded datasets and of indices: ``$SMT_CACHE_DIR``, or ``~/.cache/smt-vision``."""
    return Path(os.environ.get("SMT_CACHE_DIR") or Path.home() / ".cache" / "smt-vision")


def cache_name(path: Path, suffix: str, *state: int) -> str:
    """Name of the file of the cache that is made from a file, e.g. ``train-0123456789abcdef.npz``.

    Args:
        path: The file.
        suffix: Suffix of the name.
        state: What changes with the file's content, e.g. its size and time of modification.
    """
    key = hashlib.sha256(os.fsencode("|".join(map(str, (path.resolve(), *state))))).hexdigest()[:16]
    return f"{path.name.partition('.')[0]}-{key}{suffix}"


@contextmanager
def cache_lock(target: Path) -> Iterator[None]:
    """Let one process at a time make a file of the cache; those of other machines and other runs may want it, too."""
    locks = cache_dir() / "locks"
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):  # a folder that is read-only, or on storage without locks
            locks.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(locks / f"{target.name}.lock"))
        yield


def is_tar(name: str) -> bool:
    """Whether a file name has the suffix of a tar, compressed or not."""
    return name.lower().endswith(TAR_SUFFIXES)


class TarIndex:
    """Index of the files in an uncompressed tar.

    Hard and symbolic links to a file in the same tar are files as well. Of several members with one name, the last
    counts, as if the tar were unpacked. Other members, e.g. links to files outside of the tar, are counted in a
    warning. Files are read with ``pread``, so forked processes can share the open descriptor.

    Attributes:
        names: Names of the files.
        version: Size of the tar in bytes, and its time of modification in nanoseconds.
        damaged: Whether it ends early or is invalid.
        has_warnings: Whether it is damaged, or has members that do not count.

    Args:
        path: Path of the tar file.
        allow_damaged: Use a damaged tar up to the damage, with a warning.
        source: Path of the compressed tar that was unpacked to ``path``, for messages.
        damage: Damage that was found in unpacking it.

    Raises:
        ValueError: If the file is not a tar, or is damaged and this is not allowed.
    """

    def __init__(
        self, path: Path, *, allow_damaged: bool = False, source: Path | None = None, damage: str | None = None
    ) -> None:
        self.path = path
        source = source or path
        file = _OpenFile(path)
        stat = os.fstat(file.descriptor)
        self.version = stat.st_size, stat.st_mtime_ns
        rows: dict[str, int] = {}
        folders: list[str] = []
        offsets: list[int] = []
        sizes: list[int] = []
        links: dict[str, str] = {}
        replaced: list[str] = []
        ignored: list[str] = []
        count = 0
        try:
            for member in read_members(file.descriptor, stat.st_size):
                count += 1
                name = _normalized(member.name)
                if member.kind == "folder":
                    folders.append(name)
                elif member.kind == "file" and name in rows:
                    replaced.append(name)
                    offsets[rows[name]], sizes[rows[name]] = member.offset, member.size
                elif member.kind == "file":
                    rows[name] = len(rows)
                    offsets.append(member.offset)
                    sizes.append(member.size)
                elif member.kind == "hard link":
                    links[name] = _normalized(member.target)
                elif member.kind == "symbolic link":
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.target))
                else:
                    ignored.append(name)
        except DamagedTar as error:
            damage = damage or str(error)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        followed = _follow(links, rows)
        for name in links:
            row = followed[name]
            if row is None:
                ignored.append(name)
            elif name not in rows:
                rows[name] = len(rows)
                offsets.append(offsets[row])
                sizes.append(sizes[row])
        self.names = list(rows)
        self.folders = folders
        self._offsets = np.array(offsets, dtype=np.int64)
        self._sizes = np.array(sizes, dtype=np.int64)
        self.damaged = damage is not None
        self.has_warnings = bool(self.damaged or replaced or ignored)
        if damage is not None:
            if not (count and allow_damaged):
                raise _damaged(source, damage, count)
            log.warning(
                "%s: damaged archive: %s; using the %d members before, %d of them images, whose content may be damaged "
                "as well",
                source, damage, count, sum(map(is_image, self.names)),
            )  # fmt: skip
        if replaced:
            log.warning(
                "%s: %d files are replaced by a later one of the same name, e.g. %s", source, len(replaced), replaced[0]
            )
        if ignored:
            log.warning(
                "%s: ignored %d members that are neither files nor links to files in the archive, e.g. %s",
                source, len(ignored), ignored[0],
            )  # fmt: skip

    @classmethod
    def of_files(cls, path: Path, version: tuple[int, int], offsets: Offsets, sizes: Offsets) -> Self:
        """An index of known files, without their names.

        Args:
            path: Path of the tar file.
            version: Its size and time of modification, as :attr:`version`.
            offsets: Positions of the files' content, (N,).
            sizes: Lengths of the files in bytes, (N,).
        """
        index = cls.__new__(cls)
        index.path, index.version, index.names, index.folders = path, version, [], []
        index.damaged = index.has_warnings = False
        index._offsets, index._sizes = offsets, sizes
        return index

    def __len__(self) -> int:
        return len(self._sizes)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"names": [], "folders": []}  # worker processes read by row and need no names

    def positions(self, rows: Sequence[int]) -> tuple[Offsets, Offsets]:
        """Positions of the content of files, and their lengths in bytes, (N,) each."""
        return self._offsets[rows], self._sizes[rows]

    def size(self, row: int) -> int:
        """Length of file ``row`` in bytes."""
        return int(self._sizes[row])

    def read(self, row: int) -> bytes:
        """Return the content of file ``row``, counted in the order of :attr:`names`."""
        return self._read(row, 0, int(self._sizes[row]))

    def fingerprint(self, row: int) -> int:
        """The :func:`~smt_vision.data.fingerprint.hash_content` of file ``row``."""
        return hash_content(int(self._sizes[row]), lambda offset, length: self._read(row, offset, length))

    def _read(self, row: int, offset: int, length: int) -> bytes:
        file = _open_file(self.path, self.version)
        length = min(length, int(self._sizes[row]) - offset)
        return os.pread(file.descriptor, length, int(self._offsets[row]) + offset)


def _damaged(source: Path, damage: str, count: int) -> ValueError:
    """The error for a damaged tar of which ``count`` members could be read."""
    text = f"{source}: damaged archive: {damage}; read {count} members. Download or pack it again"
    if count:
        text += ", or use it as far as it goes with input.allow_damaged"
        text += " (on the command line: --input.allow_damaged true)"
    return ValueError(text)


def _normalized(name: str) -> str:
    """The name of a member relative to the top of the archive, without ``.`` and ``..``."""
    return posixpath.normpath("/" + name.lstrip("/"))[1:]


def _follow(links: dict[str, str], rows: dict[str, int]) -> dict[str, int | None]:
    """Row of the file that each link points to, directly or through other links; ``None`` if there is none."""
    followed: dict[str, int | None] = {}
    for start in links:
        passed: dict[str, None] = {}
        name = start
        while name in links and name not in passed and name not in followed:
            passed[name] = None
            name = links[name]
        row = followed[name] if name in followed else None if name in passed else rows.get(name)
        followed.update(dict.fromkeys(passed, row))
    return followed


class _OpenFile:
    """A file descriptor that is closed when its owner is garbage-collected."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


@functools.lru_cache(maxsize=64)  # a dataset may have more shards than a process may have open files
def _open_file(path: Path, version: tuple[int, int]) -> _OpenFile:
    file = _OpenFile(path)
    stat = os.fstat(file.descriptor)
    if (stat.st_size, stat.st_mtime_ns) != version:  # what is at the old offsets may be another image
        raise OSError(f"{path}: the archive has changed since it was opened; start again with the present one")
    return file


# The train and val splits of a dataset are opened one after the other, and share its indices.
_indices: weakref.WeakValueDictionary[tuple[Path, int, int, bool], TarIndex] = weakref.WeakValueDictionary()


def open_tar(path: Path, *, allow_damaged: bool = False) -> TarIndex:
    """Index a tar file; one compressed with gzip, bzip2 or xz is first unpacked to the cache.

    Args:
        path: Path of the file. Its content decides whether it is compressed, not its name.
        allow_damaged: Use a damaged file up to the damage, with a warning.

    Raises:
        ValueError: If the file is not a tar, is damaged and this is not allowed, or does not fit on the disk.
    """
    stat = path.stat()
    key = path, stat.st_size, stat.st_mtime_ns, allow_damaged
    index = _indices.get(key)
    if index is None:
        with open(path, "rb") as file:
            start = file.read(max(map(len, _OPENERS)))
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            index = TarIndex(path, allow_damaged=allow_damaged)
        else:
            index = _open_compressed(path, opener, allow_damaged)
        _indices[key] = index
    return index


def _open_compressed(path: Path, opener: Callable[..., Any], allow_damaged: bool) -> TarIndex:
    stat = path.stat()
    target = cache_dir() / "tars" / cache_name(path, ".tar", stat.st_size, stat.st_mtime_ns)
    target.parent.mkdir(parents=True, exist_ok=True)
    with cache_lock(target):
        if target.exists():
            try:
                return TarIndex(target, source=path)
            except ValueError:
                log.warning("%s: damaged; unpacking %s again", target, path)
        for left in target.parent.glob(f"{glob.escape(target.name)}*{PARTIAL}"):
            # By a process that was killed; where there are no locks, another one may be writing its own now.
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()
        return _unpacked(path, opener, target, allow_damaged)


def _unpacked(path: Path, opener: Callable[..., Any], target: Path, allow_damaged: bool) -> TarIndex:
    log.info("unpacking %s to %s (once)", path, target)
    # Renamed only when complete: neither an interrupted run nor damage may leave a file that looks like the tar.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=PARTIAL)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as out, opener(path, "rb") as packed:
            damage = _unpack(packed, out, path, target.parent)
        index = TarIndex(partial, allow_damaged=allow_damaged, source=path, damage=damage)
        index.path = partial.replace(target.with_suffix(".damaged.tar") if index.damaged else target)
        return index
    finally:
        partial.unlink(missing_ok=True)


def _unpack(packed: Any, out: Any, path: Path, folder: Path) -> str | None:
    """Write the unpacked content to ``out``; returns the damage in the compressed file, if there is any."""
    length = 0
    packed_size = path.stat().st_size
    while True:
        try:
            chunk = packed.read1(_CHUNK)  # read() would lose the last bytes before the damage
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            return f"the compressed data is invalid or ends early after {length} unpacked bytes ({error})"
        if not chunk:
            return None
        if length + len(chunk) > max(ALWAYS_UNPACKED, MAX_RATIO * packed_size):
            raise ValueError(
                f"{path}: {packed_size} bytes that unpack to more than {MAX_RATIO} times as many, as no archive of "
                "images does; if this one does, unpack it to an uncompressed .tar or a directory, and use that"
            )
        try:
            if shutil.disk_usage(folder).free < MIN_FREE + len(chunk):
                raise OSError("the disk is full")
            out.write(chunk)
            out.flush()
        except OSError as error:
            raise ValueError(
                f"{path}: cannot unpack more than {length} bytes to {folder} ({error}); free disk space, or set "
                "SMT_CACHE_DIR to a directory on a larger disk"
            ) from error
        length += len(chunk)
