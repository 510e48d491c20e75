"""Mutations of files: of their bytes, and of the values that they describe.

A mutator is a function ``(content, rng) -> content``. Those that know a format keep what a reader checks first
(checksums, lengths, archives around the content) valid, so that the values behind it are reached.
"""

import copy
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import yaml
from torch import Tensor

Mutator = Callable[[bytes, Random], bytes]

INTEGERS = (0, 1, -1, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64)
STRINGS = (
    "",
    " ",
    "nan",
    "-1",
    "1e999",
    "true",
    "null",
    "../../../etc/passwd",
    "/dev/zero",
    "a\nb",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202etxt.exe",
    "a\x00b",
    "\ud800",
    "<img src=x>",
    "%s%n{0}",
    "x" * 5000,
    "9" * 5000,
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e308, float("nan"), float("inf"), -float("inf"), [], {}, [[]], [None],
    [0], [0, 0], [-1, 1e9], {"": 0}, {"a": {"b": []}}, 10**25, *INTEGERS, *STRINGS,
)  # fmt: skip
TOKENS = (
    b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 400, b"[" * 3000, b'{"a":' * 3000, b"{}", b"[]", b",",  # noqa: E501
    b":", b"\n", b"\r\n", b"\xff", b"\xef\xbb\xbf", b"\x00", b"\\ud800", b"\\u0000", b"&a ", b"*a", b"<<: ", b"!!set ",
    b"!!python/object/apply:os.system [exit]", b"!!timestamp 2026-99-99", b"---\n", b"? ", b"- ", b"\t", b"0x", b"1:2:3",  # noqa: E501
    b"&lol;", b"<!DOCTYPE a [<!ENTITY lol 'lol'>]>", b"<![CDATA[", b"</", b"<a>" * 500, b'"', b"'", b"%",
)  # fmt: skip
NESTING = (5, 50, 2000)  # levels; the last is beyond Python's recursion limit


def mutate_bytes(content: bytes, rng: Random) -> bytes:
    """One to four changes of bytes: flips, integers, ranges that are cut, copied, moved or zeroed, and truncations."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            return bytes(data) or rng.randbytes(rng.randrange(64))
        start = min(rng.randrange(len(data)), rng.choice((len(data), 64, 1024)))  # headers are hit more often
        start = min(start, len(data) - 1)
        length = rng.choice((1, 2, 4, 8, 16, rng.randrange(len(data)) + 1))
        kind = rng.randrange(10)
        if kind == 0:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind in (2, 3):
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((*INTEGERS, len(data), rng.randrange(2**16))) % 256**size
            data[start : start + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 4:
            del data[start:]
        elif kind == 5:
            del data[start : start + length]
        elif kind == 6:
            data[start:start] = data[start : start + length]
        elif kind == 7:
            data[start : start + length] = bytes(length)
        elif kind == 8:
            data[start : start + length] = rng.randbytes(min(length, 64))
        else:
            other = rng.randrange(len(data))
            data[start : start + length] = data[other : other + length]
    return bytes(data)


def mutate_text(content: bytes, rng: Random) -> bytes:
    """Changes of a text: tokens inserted or put in the place of numbers and words, lines cut, repeated or exchanged."""
    data = content
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(6)
        start = rng.randrange(len(data) + 1)
        if kind == 0:
            data = data[:start] + rng.choice(TOKENS) + data[start:]
        elif kind == 1:
            end = start
            while end < len(data) and chr(data[end]).isalnum():
                end += 1
            data = data[:start] + rng.choice(TOKENS) + data[end:]
        elif kind == 2:
            lines = data.split(b"\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i] = rng.choice((b"", lines[j], lines[i] * 2, lines[i][: len(lines[i]) // 2]))
            data = b"\n".join(lines)
        elif kind == 3:
            data = data[:start]
        elif kind == 4:
            text = rng.choice(STRINGS).encode("utf-8", "surrogatepass")
            data = data[:start] + text + data[start:]
        else:
            data = mutate_bytes(data, rng)
    return data


def mutate_tree(tree: Any, rng: Random, count: int | None = None) -> Any:
    """A copy of nested dicts and lists in which one to three values, keys or branches are others."""
    box = [copy.deepcopy(tree)]
    for _ in range(count or rng.choice((1, 1, 1, 2, 3))):
        places = _places(box)
        container, key = rng.choice(places)
        value = container[key]
        kind = rng.randrange(12)
        if kind == 0 and container is not box:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            del container[key]
            container[rng.choice((*STRINGS, 0, None, True, 1.5))] = value
        elif kind == 2:
            other, name = rng.choice(places)
            container[key] = copy.deepcopy(other[name])
        elif kind == 3:
            container[key] = rng.choice(([value], {"a": value}, [value, value], str(value), {str(value)[:20]: 1}))
        elif kind == 4 and isinstance(value, list) and value:
            container[key] = rng.choice((value * 2, value[:-1], value[::-1], value * min(1000, 20_000 // len(value))))
        elif kind == 5 and isinstance(value, (int, float)):
            container[key] = rng.choice((-value, value + 1, value * 1000, value / 2, str(value), [value], 10**7))
        elif kind == 6:
            for _ in range(rng.choice(NESTING)):
                value = [value]
            container[key] = value
        else:
            container[key] = copy.deepcopy(rng.choice(VALUES))
    return box[0]


def _places(box: list[Any]) -> list[tuple[Any, Any]]:
    """(container, key) of every value, the root's first."""
    places: list[tuple[Any, Any]] = []
    pending: list[Any] = [box]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            places.append((container, key))
            if isinstance(container[key], (dict, list)):
                pending.append(container[key])
    return places


def mutate_json(content: bytes, rng: Random) -> bytes:
    """JSON with other values, or another text."""
    if rng.random() < 0.3:
        return mutate_text(content, rng)
    try:
        return json.dumps(mutate_tree(json.loads(content), rng)).encode()
    except RecursionError:
        return b"[" * 100_000


def mutate_json_lines(content: bytes, rng: Random) -> bytes:
    """JSON lines of which one has other values, or another text."""
    if rng.random() < 0.4:
        return mutate_text(content, rng)
    lines = content.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i] = mutate_json(lines[i] or b"{}", rng)
    return b"\n".join(lines)


def mutate_yaml(content: bytes, rng: Random) -> bytes:
    """YAML with other values, aliases that expand, or another text."""
    kind = rng.random()
    if kind < 0.3:
        return mutate_text(content, rng)
    if kind < 0.35:
        depth = rng.choice((3, 9, 30))
        lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth))]
        return content + "\n".join([*lines, f"model_args: *a{depth - 1}", ""]).encode()
    try:
        tree = mutate_tree(yaml.load(content, yaml.CSafeLoader), rng)  # the safe loader in C
        return yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False).encode("utf-8", "surrogatepass")
    except (RecursionError, yaml.YAMLError):
        return content + b"about: " + b"[" * 3000


def mutate_png(content: bytes, rng: Random) -> bytes:
    """A PNG file with a chunk that is changed, with a valid checksum; other files: as :func:`mutate_bytes`."""
    if not content.startswith(b"\x89PNG") or rng.random() < 0.4:
        return mutate_bytes(content, rng)
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    i = rng.randrange(len(chunks))
    kind, body = chunks[i]
    if kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(mutate_bytes(zlib.decompress(body), rng))
    elif rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    else:
        body = mutate_bytes(body, rng)
    chunks[i] = kind, body
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return content[:8] + b"".join(parts)


def mutate_safetensors(content: bytes, rng: Random) -> bytes:
    """A safetensors file with another header, or other JSON in its metadata."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if metadata and rng.random() < 0.6:
        key = rng.choice(sorted(metadata))
        metadata[key] = mutate_json(metadata[key].encode(), rng).decode("utf-8", "replace")
    else:
        header = mutate_tree(header, rng)
    try:
        text = json.dumps(header).encode()
    except RecursionError:
        text = b'{"a":' * 5000
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def mutate_zip(content: bytes, rng: Random) -> bytes:
    """A zip, e.g. of PyTorch, with a member that is changed, dropped, renamed or compressed; the zip itself is valid."""  # noqa: E501
    if rng.random() < 0.2:
        return mutate_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        members = [(name, source.read(name)) for name in source.namelist()]
    described = [i for i, (name, _) in enumerate(members) if name.endswith(".pkl")]
    i = rng.choice(described) if described and rng.random() < 0.7 else rng.randrange(len(members))
    name, data = members[i]
    kind = rng.randrange(8)
    if kind == 0:
        del members[i]
    elif kind == 1:
        members[i] = rng.choice((name + "x", "../" + name, rng.choice(members)[0])), data
    else:
        members[i] = name, mutate_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))) as target:
        for name, data in dict(members).items():
            target.writestr(name, data)
    return out.getvalue()


def mutate_tar(content: bytes, rng: Random) -> bytes:
    """A tar with a header that is changed, with a valid checksum, or with members of other kinds, names and sizes."""
    kind = rng.random()
    if kind < 0.3:
        return mutate_bytes(content, rng)
    if kind < 0.7:
        data = bytearray(content)
        headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.choice(headers)
            start, size = rng.choice(
                ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
            )
            value = rng.choice((b"-1", b"\x80" + b"\0" * 10 + b"\x01", b"\xff" * 12, b"77777777777", b"", b"abc", b"\xc3\x28",  # noqa: E501
                                b"../../x", b"/etc/passwd", b"L", b"x", b"g", b"K", b"1", b"2", b"S", b"5", b"\x1b[31m"))  # fmt: skip  # noqa: E501
            data[at + start : at + start + size] = value[:size].ljust(size, b"\0")
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        return bytes(data)
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source.getmembers():
            stream = source.extractfile(member)
            body = stream.read() if stream else b""
            if rng.random() < 0.15:
                member.name = rng.choice((*STRINGS, "a/" * 200 + "b.png")) or "empty"
            if rng.random() < 0.1:
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE))
                member.linkname = rng.choice((member.name, "../../x", "missing", ""))
            if rng.random() < 0.1:
                member.pax_headers = {rng.choice(("size", "path", "linkpath", "GNU.sparse.major", "mtime")): "-1"}
            if rng.random() < 0.1:
                body = mutate_text(body, rng)
            member.size = len(body) if member.isreg() else 0
            try:
                target.addfile(member, io.BytesIO(body))
            except (UnicodeError, ValueError):
                continue
    return out.getvalue()


def compressed(mutator: Mutator, compress: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> Mutator:
    """A mutator of compressed files: of the file itself, or of its content."""

    def mutate(content: bytes, rng: Random) -> bytes:
        if rng.random() < 0.5:
            return mutate_bytes(content, rng)
        return compress(mutator(unpack(content), rng))

    return mutate


def mutate_state(content: bytes, rng: Random) -> bytes:
    """A PyTorch file with other values, keys or tensors in it."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(rng.choice((1, 1, 2, 3))):
        state = _mutate_tensor(state, rng) if rng.random() < 0.5 else mutate_tree(state, rng, count=1)
    out = io.BytesIO()
    try:
        torch.save(state, out)
    except RecursionError:
        return mutate_bytes(content, rng)
    return out.getvalue()


def _mutate_tensor(state: Any, rng: Random) -> Any:
    box = [state]
    places = [(container, key) for container, key in _places(box) if isinstance(container[key], Tensor)]
    if places:
        container, key = rng.choice(places)
        container[key] = _other_tensor(container[key], rng)
    return box[0]


def _other_tensor(tensor: Tensor, rng: Random) -> Any:
    kind = rng.randrange(18)
    floating = tensor if tensor.is_floating_point() and tensor.layout is torch.strided else torch.rand(4, 4)
    changes: Sequence[Callable[[], Any]] = (
        lambda: tensor[..., :-1] if tensor.ndim else tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor.reshape(1, *tensor.shape),
        lambda: tensor.sum(),
        lambda: torch.empty(0),
        lambda: torch.empty(0, 3, 2**40),
        lambda: torch.zeros(1).expand(2 ** rng.choice((20, 31, 40))),
        lambda: torch.zeros(1).expand(tensor.shape or (3,)),
        lambda: tensor.double() if tensor.dtype != torch.float64 else tensor.half(),
        lambda: tensor.to(rng.choice((torch.int8, torch.int64, torch.bool, torch.bfloat16, torch.complex64))),
        lambda: torch.full_like(floating, rng.choice((float("nan"), float("inf"), 1e38, 0.0))),
        lambda: floating.to_sparse(),
        lambda: torch.quantize_per_tensor(floating.float(), 0.1, 0, torch.qint8),
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: torch.nn.Parameter(floating),
        lambda: tensor.tolist() if tensor.numel() < 1000 else "tensor",
        lambda: rng.choice(VALUES),
        lambda: torch.view_as_complex(torch.zeros(2, 2)).conj(),
    )
    return changes[kind]()
