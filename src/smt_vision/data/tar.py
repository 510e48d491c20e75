"""The members of an uncompressed tar file, read from its headers; no size in a header is trusted."""

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of an extended header, i.e. of a long name; longer ones are damage
MAX_PADDING = 1 << 26  # zero bytes at the end; tar pads to a record, of 10 kB by default
_NOT_A_TAR = (
    "not a tar file, or damaged in its first bytes; expected a tar, uncompressed or compressed with gzip, bzip2 or xz "
    "(unpack any other archive to a directory)"
)
_FILES, _EXTENDED, _WITHOUT_DATA = b"0\x007", b"xXgLK", b"123456V"


class DamagedTar(ValueError):
    """Raised where a tar file ends early or is invalid; the message has the reason and the position in the file."""


class Member(NamedTuple):
    """An entry of a tar file.

    Args:
        name: Name as stored.
        kind: ``file``, ``folder``, ``hard link`` or ``symbolic link``; ``other`` for e.g. devices.
        offset: Position of the content in the tar file.
        size: Length of the content in bytes.
        target: Name that a link points to, as stored.
    """

    name: str
    kind: Literal["file", "folder", "hard link", "symbolic link", "other"]
    offset: int
    size: int
    target: str


def read_members(descriptor: int, length: int) -> Iterator[Member]:
    """Yield the members of a tar file in the formats ustar, pax, GNU and v7, up to the end-of-archive marker.

    Args:
        descriptor: Descriptor of the open file.
        length: Length of the file in bytes.

    Raises:
        DamagedTar: If a header is invalid, the file ends before the end-of-archive marker, or data follows the marker.
        ValueError: If the file is not a tar, has a sparse file in it, or is not the first volume of a tar.
    """
    offset = 0
    of_all: dict[bytes, bytes] = {}  # fields of pax global headers
    of_next: dict[bytes, bytes] = {}  # fields of the extended headers before a member
    while True:
        block = os.pread(descriptor, BLOCK, offset)
        if offset == 0 and 0 < len(block) < BLOCK:
            raise ValueError(_NOT_A_TAR)
        if len(block) < BLOCK:
            raise DamagedTar(f"the file ends at byte {length}, without an end-of-archive marker")
        if block.count(0) == BLOCK:
            if of_next:
                raise DamagedTar(f"an extended header without a member before byte {offset}")
            return _check_end(descriptor, length, offset)
        name, size, kind, target = _parse(block, offset)
        start = offset + BLOCK
        if kind in _EXTENDED:
            if size > min(MAX_EXTENDED, length - start):
                raise DamagedTar(f"an invalid size ({size}) in the extended header at byte {offset}")
            content = os.pread(descriptor, size, start)
            if kind in b"LK":
                value = content.partition(b"\0")[0]
                if not value:
                    raise DamagedTar(f"an empty long name at byte {offset}")
                of_next[b"path" if kind == b"L" else b"linkpath"] = value
            else:
                (of_all if kind == b"g" else of_next).update(_pax_fields(content, start))
            offset = start + _padded(size)
            continue
        fields = of_all | of_next if of_all else of_next
        if fields:
            name, target = fields.get(b"path") or name, fields.get(b"linkpath") or target
            if kind not in _WITHOUT_DATA and b"size" in fields:
                size = _decimal(fields[b"size"], offset)
            of_next = {}
        if kind == b"S" or b"GNU.sparse" in fields:
            raise ValueError(f"{os.fsdecode(name)} is stored as a sparse file; pack it again without --sparse")
        if kind == b"M":
            raise ValueError(f"the first member continues {os.fsdecode(name)} from another volume; pack one tar file")
        if kind in _WITHOUT_DATA:
            size = 0
        if size > length - start:
            raise DamagedTar(
                f"{os.fsdecode(name)} at byte {offset} should have {size} bytes, but the file ends at byte {length}"
            )
        if kind != b"V":  # the label of the archive
            yield Member(os.fsdecode(name), _kind(kind, name), start, size, os.fsdecode(target))
        offset = start + _padded(size)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _parse(block: bytes, offset: int) -> tuple[bytes, int, bytes, bytes]:
    """Name, size, type and link target in a header block."""
    checksum, size = _number(block[148:156]), _number(block[124:136])
    computed = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    # Some old programs add the bytes as signed numbers.
    if checksum != computed and checksum != computed - 256 * sum(byte > 127 for byte in block):
        if offset == 0:
            raise ValueError(_NOT_A_TAR)
        raise DamagedTar(f"an invalid header at byte {offset}")
    if size is None or size < 0:
        raise DamagedTar(f"an invalid size in the header at byte {offset}")
    name, prefix = (field.partition(b"\0")[0] for field in (block[:100], block[345:500]))
    if prefix and block[257:263] == b"ustar\0":  # GNU tar has other fields there
        name = prefix + b"/" + name
    return name, size, block[156:157], block[157:257].partition(b"\0")[0]


def _number(field: bytes) -> int | None:
    """A number in octal digits, or in binary after a first byte of 128 (255: negative); ``None`` if it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * 256 ** (len(field) - 1)
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _decimal(text: bytes, offset: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise DamagedTar(f"an invalid size in the extended header before byte {offset}")
    return int(text)


def _pax_fields(content: bytes, offset: int) -> dict[bytes, bytes]:
    """Path, link target and size in a pax header: records ``LENGTH KEY=VALUE\\n``, the length counting all of it."""
    if content and not any(content):
        raise DamagedTar(f"an extended header of zeros at byte {offset}")
    fields = {}
    position = 0
    content = content.rstrip(b"\0")
    while position < len(content):
        digits = content[position : position + 20].partition(b" ")[0]
        end = position + int(digits) if digits.isdigit() else 0
        record = content[position + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or end > len(content):
            raise DamagedTar(f"an invalid extended header at byte {offset}")
        if key.startswith(b"GNU.sparse."):
            key = b"GNU.sparse"
        if key in (b"path", b"linkpath", b"size", b"GNU.sparse"):
            fields[key] = value[:-1]
        position = end
    return fields


def _kind(kind: bytes, name: bytes) -> Literal["file", "folder", "hard link", "symbolic link", "other"]:
    if kind in _FILES:
        return "folder" if name.endswith(b"/") else "file"  # in the v7 format, folders have no type of their own
    if kind in b"5D":
        return "folder"
    return "hard link" if kind == b"1" else "symbolic link" if kind == b"2" else "other"


def _check_end(descriptor: int, length: int, offset: int) -> None:
    """Check that only padding follows the end-of-archive marker at ``offset``."""
    if length - offset > MAX_PADDING:
        raise DamagedTar(f"{length - offset} zero bytes from byte {offset} to the end, as in an unfinished download")
    padding = os.pread(descriptor, length - offset, offset)
    if padding.count(0) < len(padding):
        more = length - len(padding.lstrip(b"\0"))
        raise DamagedTar(
            f"more data at byte {more}, behind the end-of-archive marker at byte {offset}, as in archives that were "
            "joined with cat"
        )
