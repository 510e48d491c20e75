"""A model as a program of another runtime: ONNX, OpenVINO (8-bit too), or torch.export's own format.

Every export is checked against the model it was made of before it gets its name: one that disagrees is not left behind.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from .._version import __version__
from ..data import padded
from ..extras import require
from ..heads.retinanet import Dense, RetinaNet
from ..model.smt import SMT
from ..recipes import Input, from_plain
from .exported import FILES, MANIFEST, ExportedModel, Manifest, Program, open_program, sha256
from .fuse import fuse
from .quantise import quantise
from .samples import as_tensor, crops_of_a_photograph, spread

PARITY_IMAGES = 8
SMALLEST_SIDE = 32
# The largest difference of a logit, as a share of the largest logit (or of 1, where all are smaller).
TOLERANCE = 1e-4
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}


def export_model(
    model: nn.Module,
    card: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    format: str,
    images: Sequence[Path] = (),
    calibrate: Sequence[Path] = (),
    replace: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Export a classifier, a segmenter or a RetinaNet into a folder: whole and checked, or not at all.

    The parts of an SMT are fused first. Every batch size works, and every height and width that the model itself
    takes; for a classifier of one size, that size. Of RetinaNet all is exported but what follows its heads (anchors,
    thresholds, non-maximum suppression), which stays in Python. Of the other detectors nothing is: what they look at
    depends on the image, which torch.export cannot trace through torchvision's code.

    Args:
        model: an SMT, or any other; on the CPU. It is put into evaluation mode.
        card: as a checkpoint has it: ``task``, ``classes``, ``input``, and of a segmenter ``segment``, of a detector
            ``detect`` and ``category_ids``.
        folder: where to; it must not exist yet.
        name: what the model is called.
        format: ``onnx``, ``openvino`` or ``torch``.
        images: to check the export with; otherwise those of ``calibrate``, or crops of a photograph that is at hand.
        calibrate: quantise to 8 bits, with the ranges that these images give. OpenVINO only.
        replace: put the new export in the place of one that is in the folder.
        tell: called with what is being done.

    Raises:
        ValueError: the model is not one of the card, the format cannot be, or an image is broken.
        FileExistsError: the folder exists, and ``replace`` is false or what is in it is no export.
        ImportError: what writes or runs this format is not installed.
        RuntimeError: the export does not compute what the model does.
    """
    if format not in FILES:
        raise ValueError(f"format {format!r} cannot be exported; choose one of {', '.join(FILES)}")
    if calibrate and format != "openvino":
        raise ValueError(f"8 bits are for the format 'openvino', not {format!r}; leave --int8 out, or change --format")
    for part in model.modules():
        if isinstance(part, ExportedModel):
            raise ValueError(f"{name} is an export already; export what it was made of: {part.manifest.name}")
    network, own, seen = _network(model, card)
    packages = (*PACKAGES[format], "nncf") if calibrate else PACKAGES[format]
    for package in packages:
        require(package, "export")
    at_hand: Sequence[Path | Image] = images or calibrate or crops_of_a_photograph()
    samples = spread(at_hand, PARITY_IMAGES)
    network.eval()
    with _new_folder(folder, replace) as new, torch.no_grad():
        batch = torch.stack([as_tensor(image, seen) for image in samples])
        _check(network, batch[:1], card)
        tell("tracing the model")
        program, free_sides = trace(network, seen)
        tell(f"writing {', '.join(FILES[format])}")
        if not (free_sides or card["task"] == "classify"):
            raise ValueError(f"{name} takes images of one size, and {card['task']} needs any; take another backbone")
        more_versions = _write(program, new, format, calibrate, seen)
        tell("comparing with the model")
        result = parity(network, open_program(new, format), batch, free_sides, len(card["classes"]))
        tolerance = None if calibrate else TOLERANCE
        if not result["max_difference"] <= (tolerance or math.inf):  # so that nan is refused too
            raise RuntimeError(
                f"the export of {name} computes something else: its logits differ by up to "
                f"{result['max_difference']:.1e} of the largest (tolerance: {tolerance}), and the class is the "
                f"same for {100 * result['agreement']:.0f} % of them. Nothing was written; try another --format"
            )
        manifest = Manifest(
            name=name,
            architecture=getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__,
            format=format,
            precision="int8" if calibrate else "float32",
            parameters=sum(p.numel() for p in model.parameters()),
            classes=tuple(card["classes"]),
            card=own,
            input=from_plain(Input, card["input"]),
            free_sides=free_sides,
            parity={**result, "tolerance": tolerance, "images": _told(samples)},
            versions={"smt-vision": __version__, **{p: version(p) for p in ("torch", *packages)}, **more_versions},
            files={file: sha256(new / file) for file in FILES[format]},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        manifest.write(new)
    return manifest


def trace(model: nn.Module, input: Input) -> tuple[ExportedProgram, bool]:
    """The graph of a model in its form for inference, for any batch size, and whether any height and width may come.

    Tracing follows the layout of every tensor in memory, which is another where a side of a map is 1; so it notes that
    no map may have such a side. Of an SMT that would leave out images with a side of 32 to 34. What is computed does
    not depend on the layout: the notes are dropped, and :func:`parity` looks at the smallest images too.
    """
    fused = fuse(model) if any(isinstance(part, SMT) for part in model.modules()) else model
    for parameter in fused.parameters() if fused is not model else ():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)  # .pt2 warns of channels-last
    side = max(input.size, 2 * SMALLEST_SIDE)
    free_sides = _takes(model, (1, input.channels, side + 1, side + SMALLEST_SIDE + 1))
    sides = (side, side + SMALLEST_SIDE) if free_sides else (input.size, input.size)
    shape = (2, input.channels, *sides)  # sizes that are equal, or 1, would be taken for constants
    dynamic = dict.fromkeys((0, 2, 3) if free_sides else (0,), Dim.DYNAMIC)
    program = torch.export.export(fused, (torch.zeros(shape),), dynamic_shapes=(dynamic,))
    for symbol in program.range_constraints:
        program.range_constraints[symbol] = ValueRanges(1, int_oo)
    return program, free_sides


def parity(
    model: nn.Module, program: Program, images: Tensor, free_sides: bool, classes: int | None = None
) -> dict[str, Any]:
    """How near a program comes to its model, in batches of several sizes, of images of several heights and widths.

    Args:
        model: what the program was made of.
        program: gives logits, as the model does; classes are along the second axis.
        images: ``(B, C, size, size)``; other heights and widths are resized from them.
        free_sides: whether to look at others.
        classes: of the second axis the first so many are classes; ``None`` for all.

    Returns:
        ``max_difference``, of a logit, as a share of the largest (or of 1); ``agreement``, the share of images, or
        pixels, or anchors, with the same class; ``cases``, by shape, with how many there are and agree.
    """
    size = images.shape[-1]
    shapes = [(len(images), size, size), (1, size, size)]
    if free_sides:
        long, short = size + size // 4 + 1, max(size - size // 4 - 1, SMALLEST_SIDE + 1)
        shapes += [(3, long, short), (1, short, long), (2, SMALLEST_SIDE, SMALLEST_SIDE)]
    cases: list[dict[str, Any]] = []
    for count, height, width in shapes:
        batch = images[:count]
        if (height, width) != (size, size):
            batch = F.interpolate(batch, (height, width), mode="bicubic", antialias=True)
        expected = model(batch)
        # Twice: a runtime may have one program for a shape that is new to it and another for one that it knows.
        actual = [program(batch) for _ in range(2)]
        difference = (torch.stack(actual) - expected).abs().max() / expected.abs().max().clamp(min=1)
        same = _class(actual[-1][:, :classes]) == _class(expected[:, :classes])
        case = {"max_difference": float(difference), "agree": int(same.sum()), "of": same.numel()}
        cases.append({"shape": list(batch.shape), **case})
    return {
        "max_difference": float(np.max([case["max_difference"] for case in cases])),  # nan, if one is
        "agreement": sum(case["agree"] for case in cases) / sum(case["of"] for case in cases),
        "cases": cases,
    }


def _takes(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        model(torch.zeros(shape))
    except Exception:  # each model of one size says so in a way of its own
        return False
    return True


def _class(logits: Tensor) -> Tensor:
    """The class that logits are largest for; where there is one map of them, whether they say yes."""
    return logits.argmax(1) if logits.shape[1] > 1 else logits > 0


def _network(model: nn.Module, card: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any], Input]:
    """What is exported of a model, what the manifest tells of its head, and the squares it is traced and checked with.

    Raises:
        ValueError: it is a detector that cannot be exported.
    """
    task, input = card["task"], from_plain(Input, card["input"])
    own = {key: card[key] for key in ("task", "segment", "detect", "category_ids") if key in card}
    if task == "classify":
        return model, own, input
    if task == "segment":
        return model, own, _square(input, min(card["segment"]["crop"]))
    if not isinstance(model, RetinaNet):
        raise ValueError(
            f"detect.head={card['detect']['head']} cannot be exported: how many regions it looks at depends on the "
            "image, and torch.export does not get through torchvision's selection of them; of the detectors, "
            "retinanet can"
        )
    return Dense(model), own | {"strides": list(model.strides)}, _square(input, card["detect"]["short_side"])


def _square(input: Input, side: int) -> Input:
    return replace_fields(input, size=padded(side), crop_mode="center", crop_pct=1.0)


def _check(model: nn.Module, image: Tensor, card: Mapping[str, Any]) -> None:
    logits, count = model(image), len(card["classes"])
    if card["task"] == "detect":
        return  # the detector has been built for its classes
    binary = card["task"] == "segment" and card["segment"]["kind"] == "binary"
    expected = (1, count) if card["task"] == "classify" else (1, 1 if binary else count, *image.shape[2:])
    if not isinstance(logits, Tensor) or logits.shape != expected:
        given = f"a {type(logits).__name__}" if not isinstance(logits, Tensor) else f"a tensor {tuple(logits.shape)}"
        raise ValueError(
            f"of an image, the model makes {given}, and {expected} logits are expected of a model that does "
            f"{card['task']}; create it with num_classes={count}, without features_only"
        )


def _write(
    program: ExportedProgram, folder: Path, format: str, calibrate: Sequence[Path], input: Input
) -> dict[str, str]:
    """Write the files of a format; returns versions of what is in them, beside the packages'."""
    path = folder / FILES[format][0]
    if format == "torch":
        torch.export.save(program, path)
        return {}
    if format == "onnx":
        graph = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"])
        assert graph is not None
        axes: Any = graph.model.graph.inputs[0].shape
        names = zip(axes, ("batch", "channels", "height", "width"), strict=True)
        graph.rename_axes({axis: name for axis, name in names if not isinstance(axis, int)})
        graph.save(path, external_data=False)
        return {"opset": str(graph.model.opset_imports[""])}
    openvino = require("openvino", "export")
    whole = openvino.convert_model(program)
    for port, name in ((whole.input(0), "images"), (whole.output(0), "logits")):
        port.get_tensor().set_names({name})
    if calibrate:
        whole = quantise(whole, calibrate, input)
    openvino.save_model(whole, path, compress_to_fp16=False)
    return {}


def _told(images: Sequence[Path | Image]) -> list[str]:
    """The names of image files (their place does not concern whom the export is given to), or what else they are."""
    names = [image.name for image in images if isinstance(image, Path)]
    return names or [f"{len(images)} crops of matplotlib's grace_hopper.jpg"]


@contextmanager
def _new_folder(folder: Path, replace: bool) -> Iterator[Path]:
    """A folder to fill. It gets its name when all is done; after an error nothing is left of it.

    Raises:
        FileExistsError: the name is taken, and not by an export that may be replaced.
    """
    if folder.exists() and not replace:
        raise FileExistsError(
            f"{folder} exists already; name another folder (--out), or replace an export with --force"
        )
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise FileExistsError(f"{folder} is no export (there is no {MANIFEST} in it) and is not replaced")
    new = folder.with_name(f".{folder.name}.{uuid4().hex}")
    new.mkdir(parents=True)
    try:
        yield new
        old = new.with_suffix(".old")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
