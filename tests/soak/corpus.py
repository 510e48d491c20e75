"""Inputs that once were a traceback, a hang, a crash or out of memory."""

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import torch

from .targets import Example


def png(width: int, height: int, *, data_length: int | None = None) -> bytes:
    """A gray PNG file of one color; ``data_length`` is what it says of the length of its data."""

    def chunk(kind: bytes, body: bytes, length: int | None = None) -> bytes:
        return (
            struct.pack(">I", len(body) if length is None else length)
            + kind
            + body
            + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = zlib.compress(bytes((width + 1) * height), 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows, data_length) + chunk(b"IEND", b"")


def _edited_json(edit: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def make(content: bytes) -> bytes:
        tree = json.loads(content)
        edit(tree)
        return json.dumps(tree).encode()

    return make


def _edited_state(edit: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def make(content: bytes) -> bytes:
        state = torch.load(io.BytesIO(content), weights_only=True)
        edit(state)
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    return make


def _huge_polygon(content: Any) -> None:
    content["annotations"][0]["segmentation"][0][2] = 10**7


def _reshaped_optimizer_state(state: Any) -> None:
    for values in state["optimizer"]["state"].values():
        values["exp_avg"] = torch.zeros(1)


def _expanded_optimizer_state(state: Any) -> None:
    for values in state["optimizer"]["state"].values():
        values["exp_avg"] = torch.zeros(1).expand(values["exp_avg"].shape)


def _negative_size(content: bytes) -> bytes:
    """CVE-2025-8194 in Python's tarfile: a member of negative size."""
    data = bytearray(content)
    data[124:136] = b"\xff" * 11 + b"\x01"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def _bomb(content: bytes) -> bytes:
    """400 MB of zeros as 0.4 MB of gzip."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 22)
    return b"".join(packer.compress(zeros) for _ in range(100)) + packer.flush()


def _aliases(content: bytes) -> bytes:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return content + "\n".join(["a0: &a0 [x, x]", *lines, "model_args: {a: *a11}", ""]).encode()


def _label(text: str) -> Callable[[bytes], bytes]:
    """A shard with another class in its second sample."""

    def make(content: bytes) -> bytes:
        at = content.index(b"001.cls") + 512
        data = bytearray(content)
        data[at : at + len(text)] = text.encode()
        data[at - 512 + 124 : at - 512 + 136] = b"%011o\0" % len(text)
        data[at - 512 + 148 : at - 512 + 156] = b" " * 8
        data[at - 512 + 148 : at - 512 + 156] = b"%06o\0 " % sum(data[at - 512 : at])
        return bytes(data)

    return make


# Target, what it is, name of the foreign file, and content as a function of that of the example.
MADE: Sequence[tuple[str, str, str, Callable[[bytes], bytes]]] = (
    ("image", "one column of 20,000 pixels", "image.png", lambda _: png(1, 20_000)),
    ("image", "data of 2 GiB", "image.png", lambda _: png(24, 17, data_length=2**31 - 1)),
    ("image", "more pixels than allowed", "image.png", lambda _: png(24, 17).replace(struct.pack(">II", 24, 17), struct.pack(">II", 10**6, 10**6))),  # noqa: E501
    ("label map", "one row of 20,000 pixels", "labels.png", lambda _: png(20_000, 1)),
    ("coco", "a coordinate of 10^7", "instances_train.json", _edited_json(_huge_polygon)),
    ("coco", "polygons that are numbers", "instances_train.json", _edited_json(lambda c: c["annotations"][0].update(segmentation=3))),  # noqa: E501
    ("coco", "nested beyond the recursion limit", "instances_train.json", lambda _: b"[" * 100_000),
    ("tar", "a member of negative size", "set.tar", _negative_size),
    ("tar", "a class index of 2^31", "set-0.tar", _label(str(2**31))),
    ("tar", "a class index of superscripts", "set-0.tar", _label("²")),
    ("compressed tar", "400 MB in 0.4 MB", "set.tar.gz", _bomb),
    ("compressed tar", "a gzip of nothing", "set.tar.gz", lambda _: gzip.compress(b"")),
    ("recipe", "aliases that expand", "recipe.yaml", _aliases),
    ("recipe", "half of the file", "recipe.yaml", lambda content: content[: len(content) // 2]),
    ("recipe", "empty", "recipe.yaml", lambda _: b""),
    ("config", "aliases that expand", "config.yaml", _aliases),
    ("config", "nested beyond the recursion limit", "config.yaml", lambda _: b"model_args: " + b"[" * 5000),
    ("log", "half of the last line", "log.jsonl", lambda content: content[:-20]),
    ("log", "half of a line in the middle", "log.jsonl", lambda content: content[:30] + content[content.index(b"\n") :]),  # noqa: E501
    ("log", "lines that are not objects", "log.jsonl", lambda content: b"[]\n3\nnull\n" + content),
    ("run", "optimizer state of other shapes", "last.pt", _edited_state(_reshaped_optimizer_state)),
    ("run", "optimizer state that is expanded", "last.pt", _edited_state(_expanded_optimizer_state)),
    ("run", "no step", "last.pt", _edited_state(lambda state: state.pop("step"))),
    ("run", "weights that are not finite", "last.pt", _edited_state(lambda state: next(iter(state["model"].values())).fill_(torch.nan))),  # noqa: E501
    ("run", "metrics with a tensor", "last.pt", _edited_state(lambda state: state["metrics"].update(more=torch.zeros(1)))),  # noqa: E501
    ("run", "metrics of another form", "last.pt", _edited_state(lambda state: state.update(metrics={"miou": 1000.0, "per_class": [3]}))),  # noqa: E501
    ("run", "metrics without the primary one", "last.pt", _edited_state(lambda state: state.update(metrics={"loss": 1.0}))),  # noqa: E501
    ("run", "a history of text", "last.pt", _edited_state(lambda state: state.update(history=["best"]))),
    ("run", "a listing that is a tensor", "last.pt", _edited_state(lambda state: state.update(listing=torch.zeros(2)))),
    ("voc", "a line of a million characters", "train.txt", lambda content: content + b"a" * 10**6),
    ("model", "a huge model", "classify.pt", _edited_state(lambda state: state["spec"]["model_args"].update(embed_dims=[8, 8, 10**5, 16]))),  # noqa: E501
    ("model", "a million blocks", "classify.pt", _edited_state(lambda state: state["spec"]["model_args"].update(depths=[1, 1, 10**6, 1]))),  # noqa: E501
    ("state dict", "an expanded tensor", "timm.pth.tar", _edited_state(lambda state: state["state_dict"].update({"head.fc.bias": torch.zeros(1).expand(2**40)}))),  # noqa: E501
    ("state dict", "a scalar", "timm.pth.tar", _edited_state(lambda state: state["state_dict"].update({"stages.0.norm.weight": torch.tensor(1.0)}))),  # noqa: E501
    ("state dict", "an entry that is in itself", "timm.pth.tar", _edited_state(lambda state: state.update(model=state, state_dict=1))),  # noqa: E501
    ("state dict", "a sparse tensor", "timm.pth.tar", _edited_state(lambda state: state["state_dict"].update({"head.fc.bias": torch.ones(9).to_sparse()}))),  # noqa: E501
)  # fmt: skip


def corpus(examples: Mapping[str, Sequence[Example]]) -> list[tuple[str, str, Example]]:
    """Target, name and input of each entry whose target is among those with examples."""
    entries = []
    for target, what, name, make in MADE:
        entries += _entries(examples, target, what, name, make)
    return entries


def _entries(
    examples: Mapping[str, Sequence[Example]], target: str, what: str, name: str, make: Callable[[bytes], bytes]
) -> list[tuple[str, str, Example]]:
    if target not in examples:
        return []
    example = [example for example in examples[target] if PurePosixPath(example.foreign).name == name][-1]
    content = make(example.files[example.foreign])
    return [(target, what, Example({**example.files, example.foreign: content}, example.foreign))]
