"""A model as a program of another runtime: ONNX, OpenVINO (8-bit too), or torch.export's own format.

Every export is checked against the model it was made of before it gets its name: one that disagrees is not left behind.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from PIL.Image import Image
from torch import Tensor, nn

from .._version import __version__
from ..data import detection_eval_transform, eval_transform, padded
from ..extras import require
from ..heads.whole import Whole
from ..recipes import Detect, Input, from_plain
from .exported import FILES, MANIFEST, ExportedModel, Manifest, Program, open_program, sha256
from .parity import parity, parity_of_detections
from .programs import trace, write, write_detector
from .samples import as_tensor, crops_of_a_photograph, spread

PARITY_IMAGES = 8
# The largest difference of a logit, as a share of the largest (or of 1, where all are smaller), or of a detection.
TOLERANCE = 1e-4
SAME = 0.99  # share of detections that both must have found; where two overlap by the threshold, rounding chooses
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}
CARD = ("task", "segment", "detect", "category_ids")  # what the manifest has of a checkpoint's card


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
    """Export a classifier, a segmenter or a detector into a folder: whole and checked, or not at all.

    The parts of an SMT are fused first. Every batch size works, and every height and width that the model itself
    takes; for a classifier of one size, that size. A detector's program takes one image, of any size, and gives what
    :class:`smt_vision.heads.whole.Whole` does, by the card's thresholds.

    Args:
        model: an SMT, or any other; on the CPU. It is put into evaluation mode.
        card: as a checkpoint has it: ``task``, ``classes``, ``input``, and of a segmenter ``segment``, of a detector
            ``detect`` and ``category_ids``.
        folder: where to; it must not exist yet.
        name: what the model is called.
        format: ``onnx``, ``openvino`` or, but for detectors, ``torch``.
        images: to check the export with; otherwise those of ``calibrate``, or crops of a photograph that is at hand.
        calibrate: quantise to 8 bits, with the ranges that these images give. OpenVINO only, and of the detectors
            RetinaNet alone.
        replace: put the new export in the place of one that is in the folder.
        tell: called with what is being done.

    Raises:
        ValueError: the model is not one of the card, the format cannot be, an image is broken, or there is nothing to
            be found in them.
        FileExistsError: the folder exists, and ``replace`` is false or what is in it is no export.
        ImportError: what writes or runs this format is not installed.
        RuntimeError: the export does not compute what the model does.
    """
    task = card["task"]
    _refuse_request(model, card, name, format, bool(calibrate))
    packages = (*PACKAGES[format], "nncf") if calibrate else PACKAGES[format]
    for package in packages:
        require(package, "export")
    at_hand: Sequence[Path | Image] = images or calibrate or crops_of_a_photograph()
    samples = spread(at_hand, PARITY_IMAGES)
    model.eval()
    with _new_folder(folder, replace) as new, torch.no_grad():
        tell("tracing the model")
        traced = (_Detections if task == "detect" else _Logits)(model, card, samples, name)
        tell(f"writing {', '.join(FILES[format])}")
        more_versions = traced.write(new, format, calibrate)
        tell("comparing with the model")
        result = traced.compare(open_program(new, format))
        if not calibrate:
            _refuse_others(result, TOLERANCE, task, name)
        manifest = Manifest(
            name=name,
            architecture=getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__,
            format=format,
            precision="int8" if calibrate else "float32",
            parameters=sum(p.numel() for p in model.parameters()),
            classes=tuple(card["classes"]),
            card={key: card[key] for key in CARD if key in card},
            input=from_plain(Input, card["input"]),
            free_sides=traced.free_sides,
            parity={**result, "tolerance": None if calibrate else TOLERANCE, "images": _told(samples)},
            versions={"smt-vision": __version__, **{p: version(p) for p in ("torch", *packages)}, **more_versions},
            files={file: sha256(new / file) for file in FILES[format]},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        manifest.write(new)
    return manifest


def _refuse_request(model: nn.Module, card: Mapping[str, Any], name: str, format: str, int8: bool) -> None:
    """Raise a ValueError for what no exporter can do."""
    task = card["task"]
    if format not in FILES:
        raise ValueError(f"format {format!r} cannot be exported; choose one of {', '.join(FILES)}")
    if task == "detect" and format == "torch":
        raise ValueError(
            "a detector cannot be exported to the format 'torch': torch.export does not get through torchvision's "
            "choice among regions; take 'onnx' or 'openvino'"
        )
    if int8 and format != "openvino":
        raise ValueError(f"8 bits are for the format 'openvino', not {format!r}; leave --int8 out, or change --format")
    if int8 and task == "detect" and card["detect"]["head"] != "retinanet":
        raise ValueError(
            f"detect.head={card['detect']['head']} cannot be quantised: NNCF does not read the branches that a program "
            "of several stages has; leave --int8 out, or train a retinanet"
        )
    for part in model.modules():
        if isinstance(part, ExportedModel):
            raise ValueError(f"{name} is an export already; export what it was made of: {part.manifest.name}")


class _Logits:
    """A classifier's or a segmenter's export: traced and compared with squares of one size, and with others."""

    def __init__(self, model: nn.Module, card: Mapping[str, Any], samples: Sequence[Path | Image], name: str) -> None:
        input = from_plain(Input, card["input"])
        if card["task"] == "segment":
            input = replace_fields(input, size=padded(min(card["segment"]["crop"])), crop_mode="center", crop_pct=1.0)
        self.see = partial(as_tensor, input=input, transform=eval_transform(input))
        self.batch = torch.stack([self.see(image) for image in samples])
        _check(model, self.batch[:1], card)
        self.model = model
        self.program, self.free_sides = trace(model, input)
        if not (self.free_sides or card["task"] == "classify"):
            raise ValueError(f"{name} takes images of one size, and {card['task']} needs any; take another backbone")

    def write(self, folder: Path, format: str, calibrate: Sequence[Path]) -> dict[str, str]:
        return write(self.program, folder, format, calibrate, self.see)

    def compare(self, program: Program) -> dict[str, Any]:
        return parity(self.model, program, self.batch, self.free_sides)


class _Detections:
    """A detector's: traced with the image that most is found in, and compared with each, as detection sees them."""

    free_sides = True

    def __init__(self, model: nn.Module, card: Mapping[str, Any], samples: Sequence[Path | Image], name: str) -> None:
        input = from_plain(Input, card["input"])
        transform = detection_eval_transform(input, from_plain(Detect, card["detect"]))
        self.see = partial(as_tensor, input=input, transform=transform)
        self.images = [self.see(image) for image in samples]
        self.model = Whole(model).eval()
        found = [len(self.model(image[None])[0]) for image in self.images]
        if not any(found):
            raise ValueError(
                f"{name} finds nothing in {', '.join(_told(samples))}, so that its export could not be compared with "
                "it; name images with objects (--images), or lower detect.score_threshold"
            )
        self.example = self.images[found.index(max(found))][None]

    def write(self, folder: Path, format: str, calibrate: Sequence[Path]) -> dict[str, str]:
        return write_detector(self.model, self.example, folder, format, calibrate, self.see)

    def compare(self, program: Program) -> dict[str, Any]:
        return parity_of_detections(self.model, program, self.images)


def _refuse_others(result: Mapping[str, Any], tolerance: float, task: str, name: str) -> None:
    """Refuse a program that does not compute what its model does; nan is refused too."""
    if task == "detect":
        same, of, what, unit = SAME, "detections", "the detections are the same", ""
    else:
        same, of, what, unit = 0.0, "logits", "the class is the same", " of the largest"
    if not (result["max_difference"] <= tolerance and result["agreement"] >= same):
        difference = f"{result['max_difference']:.1e}{unit} (tolerance: {tolerance})"
        raise RuntimeError(
            f"the export of {name} computes something else: its {of} differ by up to {difference}, and {what} for "
            f"{100 * result['agreement']:.1f} % of them. Nothing was written; try another --format"
        )


def _check(model: nn.Module, image: Tensor, card: Mapping[str, Any]) -> None:
    logits, count = model(image), len(card["classes"])
    binary = card["task"] == "segment" and card["segment"]["kind"] == "binary"
    expected = (1, count) if card["task"] == "classify" else (1, 1 if binary else count, *image.shape[2:])
    if not isinstance(logits, Tensor) or logits.shape != expected:
        given = f"a {type(logits).__name__}" if not isinstance(logits, Tensor) else f"a tensor {tuple(logits.shape)}"
        raise ValueError(
            f"of an image, the model makes {given}, and {expected} logits are expected of a model that does "
            f"{card['task']}; create it with num_classes={count}, without features_only"
        )


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
