"""Exported models in use, on the CPU.

An export is a folder, written by :mod:`smt_vision.deploy.export`, with ``manifest.json`` and the files of a program:
:data:`FILES` lists them by format.
"""

import hashlib
import json
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.fingerprint import UsedImages
from ..extras import require
from ..legacy import upgrade
from ..precision import Precision, has_bf16, resolve_dtype
from .errors import ProgramError, program_errors
from .openvino_core import openvino_core

MANIFEST = "manifest.json"
VERSION = 4  # version of the manifest format
_COREML = "model.mlpackage/Data/com.apple.CoreML"
FILES = {
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "torch": ("model.pt2",),
    "executorch": ("model.pte",),
    "coreml": ("model.mlpackage/Manifest.json", f"{_COREML}/model.mlmodel", f"{_COREML}/weights/weight.bin"),
}
RUNTIME_PACKAGES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "torch": None,
    "executorch": "executorch",
    "coreml": "coremltools",
}
IMAGES = "images.safetensors"  # fingerprints of the images that the model was trained and calibrated on
MAX_STATIC_SHAPES = 8  # OpenVINO programs that are compiled for one shape
CACHED_SHAPES = 100  # per operator of a program for any shape

CPU_PROVIDER = "CPUExecutionProvider"
Provider = str | tuple[str, Mapping[str, Any]]  # an execution provider of ONNX Runtime, with its options
Program = Callable[[Tensor], Any]  # images to the output tensor, or to a tuple of several


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Args:
        name: Name of the source model: of its run or file, without the folders above, or a timm model name.
        format: A key of :data:`FILES`, e.g. ``onnx``.
        precision: ``float32``, ``bfloat16`` or ``int8``.
        parameters: Number of parameters of the source model.
        spec: Model spec, as plain data.
        dynamic_image_size: Whether the program takes images of any height and width.
        batch_size: Number of images that the program takes; ``None`` for any number.
        parity: Result of the comparison with the source model, and the images that it was made on; ``agreement`` is
            ``None`` if the program could not be run. For bfloat16 and int8, ``floating_point`` is the type in which it
            ran what is not in 8 bits: float32 on a CPU without instructions for bfloat16.
        versions: Versions of the packages that wrote the export.
        files: SHA-256 of each file, by file name.
        created: Creation time in UTC.
        version: Version of the manifest format.
    """

    name: str
    format: str
    precision: str
    parameters: int
    spec: Mapping[str, Any]
    dynamic_image_size: bool
    batch_size: int | None
    parity: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    created: str
    version: int = VERSION

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest in an export's folder.

        Raises:
            FileNotFoundError: The folder has no manifest.
            ValueError: The file is not the manifest of an export, or has a later version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not an export: there is no {MANIFEST} in it")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}); export the model again") from error
        if not isinstance(values, dict) or not isinstance(values.get("version"), int):
            raise ValueError(f"{path} is not the manifest of an export: it has no version")
        if values["version"] > VERSION:
            raise ValueError(
                f"{path}: manifest version {values['version']}, but this version of smt-vision reads up to {VERSION}; "
                "update smt-vision"
            )
        known = {field.name for field in fields(cls)}
        try:
            values = upgrade(values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is not the manifest of an export, or was changed: {error!r}; export the model again"
            ) from error
        damaged = [name for name in ("spec", "parity", "versions", "files") if not isinstance(values.get(name), dict)]
        if values.keys() != known or values["format"] not in list(FILES) or damaged:
            wrong = ", ".join(sorted(values.keys() ^ known) or damaged) or f"format {values['format']!r}"
            raise ValueError(f"{path} is not the manifest of an export, or was edited: {wrong}; export the model again")
        return cls(**values)


class ProgramModule(nn.Module):
    """A program as a module, in evaluation mode."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.eval()

    def forward(self, images: Tensor) -> Any:
        return self.program(images.detach().contiguous())


class ExportedModel(nn.Module):
    """An exported program as a module that is called like its source model.

    Shape: ``(B, C, H, W)`` float32 images on the CPU -> float32 logits, ``(B, K)`` for a classifier, ``(B, K, H, W)``
    for a segmenter. A detector takes as many images as it was exported for, and returns what
    :class:`~smt_vision.tasks.detection.export.DetectorForExport` returns.

    Args:
        program: Function that runs the program.
        manifest: Manifest of the export.
        bf16: Whether the program runs in bfloat16, except for what is in 8 bits.
    """

    def __init__(self, program: Program, manifest: Manifest, bf16: bool = False) -> None:
        super().__init__()
        self.program = program
        self.manifest = manifest
        self.bf16 = bf16

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``int8``."""
        return "int8" if self.manifest.precision == "int8" else "bf16" if self.bf16 else "fp32"

    def forward(self, images: Tensor) -> Any:
        channels = self.manifest.spec["input"]["channels"]
        size = None if self.manifest.dynamic_image_size else self.manifest.spec["input"].get("size")
        if images.device.type != "cpu" or images.dtype != torch.float32:
            raise ValueError(f"an export takes float32 images on the CPU, not {images.dtype} on {images.device}")
        if images.ndim != 4 or images.shape[1] != channels or (size and images.shape[2:] != (size, size)):
            expected = f"(B, {channels}, {size}, {size})" if size else f"(B, {channels}, H, W)"
            raise ValueError(f"this export takes images {expected}, not {tuple(images.shape)}")
        return self.program(images.detach().contiguous())

    def extra_repr(self) -> str:
        return f"{self.manifest.name}, {self.manifest.format}, {self.manifest.precision}"


def is_export(path: str | Path) -> bool:
    """Whether a path is an export's folder."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def load_exported(
    folder: str | Path, providers: Sequence[Provider] = (), precision: Precision | None = None
) -> ExportedModel:
    """Load an export from its folder.

    The program runs with as many threads as torch is set to at load time (``torch.get_num_threads()``).

    Args:
        folder: Folder of the export.
        providers: ONNX Runtime's execution providers for an ONNX export, the preferred one first, e.g.
            ``("TensorrtExecutionProvider", "CUDAExecutionProvider")``, or names with options, as ONNX Runtime takes
            them, e.g. ``[("CUDAExecutionProvider", {"device_id": 1})]``; operators that none of them has run on the
            CPU.
        precision: Precision of an OpenVINO program: ``fp32``, ``bf16`` or ``auto``; ``None`` for the one that it was
            exported for. What is in 8 bits stays so, and by default the rest of such a program is in bfloat16. On a CPU
            without instructions for bfloat16, programs run in float32.

    Raises:
        FileNotFoundError: The folder is not an export, or one of its files is missing.
        ValueError: The manifest is invalid, a file differs from the one that was exported, the format does not run on
            this computer, a provider is not available, or the format does not run in bfloat16.
        ImportError: The package that runs this format is not installed.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    for name in {**dict.fromkeys(FILES[manifest.format]), **manifest.files}:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing although {MANIFEST} lists it; export the model again")
        if sha256(folder / name) != manifest.files.get(name):
            raise ValueError(
                f"{folder / name} is not the file that was exported: its SHA-256 differs from the one in {MANIFEST}. "
                "It is truncated or was modified; copy it again, or export the model again"
            )
    if providers and manifest.format != "onnx":
        raise ValueError(f"{folder}: providers are for ONNX exports, and this one is {manifest.format}; omit them")
    if precision == "bf16" and manifest.format != "openvino":
        raise ValueError(
            f"{folder}: an export in format {manifest.format!r} runs in float32 only; omit the precision, or export to "
            "'openvino'"
        )
    bf16 = manifest.precision != "float32" if precision is None else resolve_dtype(precision) == torch.bfloat16
    bf16 = bf16 and manifest.format == "openvino" and has_bf16()
    if reason := why_not_here(manifest.format):
        raise ValueError(
            f"{folder} cannot be used on this computer: {reason}; here, export to another format, e.g. onnx"
        )
    with program_errors(f"{folder}: the {manifest.format} program cannot be loaded", "export the model again"):
        program = (
            open_onnx(folder / FILES["onnx"][0], providers)
            if providers
            else open_program(folder, manifest.format, bf16=bf16)
        )
    return ExportedModel(program, manifest, bf16)


def load_used_images(folder: Path) -> UsedImages | None:
    """The images that an exported model was trained and calibrated on; ``None`` if they are not known.

    Raises:
        ValueError: The file with them is damaged.
    """
    path = folder / IMAGES
    try:
        return UsedImages.from_tensors(load_file(path)) if path.is_file() else None
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); export the model again") from error


def why_not_here(format: str) -> str:
    """Why programs of a format do not run on this computer; empty if they do."""
    return "Core ML runs on macOS only" if format == "coreml" and sys.platform != "darwin" else ""


def open_program(folder: Path, format: str, *, bf16: bool = False) -> Program:
    """Load the program in a folder, without checking the manifest; ``bf16`` is for OpenVINO programs."""
    path = folder / FILES[format][0]
    return OpenVINOProgram(path, bf16) if format == "openvino" else OPENERS[format](path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _running(format: str, images: Tensor) -> AbstractContextManager[None]:
    shape = " x ".join(map(str, images.shape))
    return program_errors(f"the {format} program failed for {shape} images", "export the model again for such images")


class UnavailableProvider(ProgramError):
    """An execution provider that ONNX Runtime does not have, or cannot start."""


def open_onnx(path: Path, providers: Sequence[Provider] = ()) -> Program:
    """Load an ONNX program; see :func:`load_exported`.

    Raises:
        UnavailableProvider: This installation of ONNX Runtime does not have a provider, or it does not start.
    """
    runtime = require("onnxruntime", "export")
    available = runtime.get_available_providers()
    if isinstance(providers, str):
        raise UnavailableProvider(f"invalid providers={providers!r}: expected a list, e.g. [{providers!r}]")
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    if missing := [name for name in names if name not in available]:
        raise UnavailableProvider(
            f"invalid providers={list(providers)}: this ONNX Runtime has {', '.join(available)}, not {missing[0]}; the "
            "package onnxruntime-gpu has those of NVIDIA's GPUs"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Otherwise ONNX Runtime plans and keeps memory for each shape of images: 0.3 GB after 240 shapes up to 224 pixels.
    options.enable_mem_pattern = False
    used = [*providers, *([] if CPU_PROVIDER in names else [CPU_PROVIDER])]
    session = runtime.InferenceSession(path, options, providers=used)
    if idle := [name for name in names if name not in session.get_providers()]:
        raise UnavailableProvider(
            f"ONNX Runtime cannot start {idle[0]}, e.g. since a library is missing; its log on standard error has the "
            "reason"
        )
    (image_input,) = session.get_inputs()

    def run(images: Tensor) -> Any:
        with _running("onnx", images):
            return _tensors(session.run(None, {image_input.name: images.numpy()}))

    return run


class OpenVINOProgram:
    """An OpenVINO model as a function.

    A model compiled for one static shape is much faster than one for any shape, but compiling takes longer than running
    it once. A shape is therefore compiled when it occurs for the second time, and at most ``MAX_STATIC_SHAPES`` are:
    shapes that occur once are common, e.g. the last batch of a dataset, or photographs of many sizes. The program for
    any shape keeps what it has prepared for the last ``CACHED_SHAPES`` per operator; by OpenVINO's default, memory
    grows by megabytes with every new shape.

    It may be called from several threads, which take turns: calls use every core anyway, and a compiled model has one
    set of buffers for its inputs and outputs.

    Args:
        path: The ``.xml`` file.
        bf16: Compute in bfloat16, on a CPU with instructions for it; on others in float32.
        static: Compile for a shape when it occurs for the first time.
    """

    def __init__(self, path: Path, bf16: bool = False, static: bool = False) -> None:
        self.static = static
        self.model = openvino_core().read_model(path)
        self.settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # The default is bfloat16 on CPUs that support it.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 and has_bf16() else "f32",
            "NUM_STREAMS": 1,
            "CPU_RUNTIME_CACHE_CAPACITY": CACHED_SHAPES,
        }
        self._turn = threading.Lock()
        self.past_shapes: set[tuple[int, ...]] = set()
        self.programs: dict[tuple[int, ...] | None, Any] = {}  # by static shape; None: any shape

    def _compiled(self, shape: tuple[int, ...] | None) -> Any:
        if shape not in self.programs:
            model = self.model
            if shape is not None:
                model = model.clone()
                model.reshape(list(shape))
            self.programs[shape] = openvino_core().compile_model(model, "CPU", self.settings)
        return self.programs[shape]

    def __call__(self, images: Tensor) -> Any:
        shape = tuple(images.shape)
        with self._turn, _running("openvino", images):
            again = self.static or shape in self.past_shapes
            static = shape in self.programs or (again and len(self.programs) <= MAX_STATIC_SHAPES)
            program = self._compiled(shape if static else None)
            self.past_shapes.add(shape)
            return _tensors(program(images.numpy(), share_inputs=True).to_tuple())


def _tensors(arrays: Sequence[Any]) -> Any:
    tensors = tuple(torch.from_numpy(array) for array in arrays)
    return tensors if len(tensors) > 1 else tensors[0]


def _open_torch(path: Path) -> Program:
    # The guards are on memory layouts, which do not affect the result; see trace() in programs.py.
    program = torch.export.load(path).module(check_guards=False)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(), _running("torch", images):
            return program(images)

    return run


def _open_executorch(path: Path) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the API is experimental
        runtime = require("executorch.runtime", "executorch").Runtime.get()
    method = runtime.load_program(path).load_method("forward")
    turn = threading.Lock()

    def run(images: Tensor) -> Tensor:  # the program takes one image, and reuses the memory of its output
        with turn, torch.inference_mode(), _running("executorch", images):
            return torch.cat([method.execute((image[None].contiguous(),))[0].clone() for image in images])

    return run


def _open_coreml(path: Path) -> Program:
    tools = require("coremltools", "coreml")
    model = tools.models.MLModel(str(path.parent), compute_units=tools.ComputeUnit.CPU_ONLY)

    def run(images: Tensor) -> Tensor:  # the program takes one image
        with _running("coreml", images):
            return torch.cat([torch.from_numpy(model.predict({"images": i[None].numpy()})["logits"]) for i in images])

    return run


OPENERS: dict[str, Callable[[Path], Program]] = {
    "onnx": open_onnx,
    "torch": _open_torch,
    "executorch": _open_executorch,
    "coreml": _open_coreml,
}
