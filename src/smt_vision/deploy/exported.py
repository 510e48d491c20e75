"""An export in use: a folder with a manifest and the files of a program, which runs on the CPU.

``manifest.json`` says what the program is; beside it lie ``model.onnx``, or ``model.xml`` and ``model.bin``, or
``model.pt2``. An export is made by :mod:`smt_vision.deploy.export`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import require
from ..legacy import upgrade

MANIFEST = "manifest.json"
VERSION = 3  # of the manifest's layout
FILES = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin"), "torch": ("model.pt2",)}
SHAPES_KEPT = 8

Program = Callable[[Tensor], Any]  # images to a tensor, or a tuple where there are several outputs


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Args:
        name: Display name of the source model.
        format: ``onnx``, ``openvino`` or ``torch``.
        precision: ``float32`` or ``int8``.
        parameters: Parameters of the source model.
        spec: Model spec, as plain data.
        dynamic_image_size: Whether the program takes images of any height and width.
        parity: How closely it matches its source model, and on which images.
        versions: Versions of the packages that made it.
        files: SHA-256 of each file, by name.
        created: Creation time, in UTC.
        version: Version of this layout.
    """

    name: str
    format: str
    precision: str
    parameters: int
    spec: Mapping[str, Any]
    dynamic_image_size: bool
    parity: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    created: str
    version: int = VERSION

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of an export's folder.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is not a manifest of an export, or of a later version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not an export: there is no {MANIFEST} in it")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); export the model again") from error
        if not isinstance(values, dict) or not isinstance(values.get("version"), int):
            raise ValueError(f"{path} is not the manifest of an export: it has no version")
        if values["version"] > VERSION:
            raise ValueError(
                f"{path}: manifest version {values['version']}, and this version of smt-vision reads up to {VERSION}; "
                "update smt-vision"
            )
        known = {field.name for field in fields(cls)}
        try:
            values = upgrade(values)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not the manifest of an export, or was changed: {error!r}; export the model again"
            ) from error
        if values.keys() != known or values["format"] not in FILES:
            odd = ", ".join(sorted(values.keys() ^ known)) or f"format {values['format']!r}"
            raise ValueError(f"{path} is not the manifest of an export, or was changed: {odd}; export the model again")
        return cls(**values)


class ExportedModel(nn.Module):
    """A program, used like the network it was made of.

    Shape: ``(B, C, H, W)`` float32 images on the CPU -> float32 logits: of a classifier ``(B, K)``, of a segmenter
    ``(B, K, H, W)``. Of a detector, one image to the detections that :class:`smt_vision.heads.whole.Whole` gives.

    Args:
        program: what computes that.
        manifest: what is known of it.
    """

    def __init__(self, program: Program, manifest: Manifest) -> None:
        super().__init__()
        self.program = program
        self.manifest = manifest

    def forward(self, images: Tensor) -> Any:
        channels, size = self.manifest.spec["input"]["channels"], self.manifest.spec["input"].get("size")
        side = None if self.manifest.dynamic_image_size else size
        if images.device.type != "cpu" or images.dtype != torch.float32:
            raise ValueError(f"an export takes float32 images on the CPU; these are {images.dtype} on {images.device}")
        if images.ndim != 4 or images.shape[1] != channels or (side and images.shape[2:] != (side, side)):
            sides = f"{side}, {side}" if side else "H, W"
            raise ValueError(f"this export takes images (B, {channels}, {sides}), not {tuple(images.shape)}")
        return self.program(images.detach().contiguous())

    def extra_repr(self) -> str:
        return f"{self.manifest.name}, {self.manifest.format}, {self.manifest.precision}"


def load_exported(folder: str | Path) -> ExportedModel:
    """Load an export's folder. It computes with as many threads as torch does now (``torch.get_num_threads()``).

    Raises:
        FileNotFoundError: the folder holds no export, or one of its files is gone.
        ValueError: the manifest is not one, or a file is not the one that was exported.
        ImportError: what runs this format is not installed.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    for name in FILES[manifest.format]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, which {MANIFEST} names; export the model again")
        if sha256(folder / name) != manifest.files.get(name):
            raise ValueError(
                f"{folder / name} is not the file that was exported: its SHA-256 is another than {MANIFEST} says; it "
                "is cut short or was changed: copy it again, or export the model again"
            )
    return ExportedModel(open_program(folder, manifest.format), manifest)


def open_program(folder: Path, format: str) -> Program:
    """The program in a folder, whatever its manifest says."""
    return OPENERS[format](folder / FILES[format][0])


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_onnx(path: Path) -> Program:
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    return lambda x: _tensors(session.run(None, {images.name: x.numpy()}))


class _OpenVINO:
    """A model of OpenVINO's as a function.

    Compiled for any shape it is much slower than for one. So a shape gets a program of its own, but only when it comes
    a second time, and only the first few that do: to compile takes longer than to run, and the last batch of many is
    often of a size of its own, as are photographs.
    """

    def __init__(self, path: Path) -> None:
        self.core = require("openvino", "export").Core()
        self.model = self.core.read_model(path)
        self.settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 where the CPU has it
            "NUM_STREAMS": 1,
        }
        self.seen: set[tuple[int, ...]] = set()
        self.programs: dict[tuple[int, ...] | None, Any] = {}  # by shape; None is for any

    def _program(self, shape: tuple[int, ...] | None) -> Any:
        if shape not in self.programs:
            model = self.model
            if shape is not None:
                model = model.clone()
                model.reshape(list(shape))
            self.programs[shape] = self.core.compile_model(model, "CPU", self.settings)
        return self.programs[shape]

    def __call__(self, images: Tensor) -> Any:
        shape = tuple(images.shape)
        own = shape in self.programs or (shape in self.seen and len(self.programs) <= SHAPES_KEPT)
        program = self._program(shape if own else None)
        self.seen.add(shape)
        return _tensors(program(images.numpy(), share_inputs=True).to_tuple())


def _tensors(arrays: Sequence[Any]) -> Any:
    tensors = tuple(torch.from_numpy(array) for array in arrays)
    return tensors if len(tensors) > 1 else tensors[0]


def _open_torch(path: Path) -> Program:
    # The guards are on how tensors lie in memory, not on what is computed; see trace() in export.py.
    program = torch.export.load(path).module(check_guards=False)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return program(images)

    return run


OPENERS: dict[str, Callable[[Path], Program]] = {"onnx": _open_onnx, "openvino": _OpenVINO, "torch": _open_torch}
