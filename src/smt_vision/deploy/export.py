"""Export of a model to another runtime: ONNX, OpenVINO (8-bit too), torch.export's own format, ExecuTorch or Core ML.

Every export is compared with its source model, and is kept only if the outputs agree. Core ML runs on macOS only:
elsewhere the shapes of the program are checked instead.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from .._version import __version__
from ..data.decode import decode_input
from ..data.fingerprint import UsedImages, hash_files
from ..extras import require, version_of
from ..files import write_atomic
from ..precision import has_bf16
from .errors import program_errors
from .exported import (
    FILES,
    IMAGES,
    MANIFEST,
    ExportedModel,
    Manifest,
    ProgramModule,
    open_program,
    sha256,
    why_not_here,
)
from .form import ExportForm
from .programs import ONE_SHAPE, quiet
from .quantize import CALIBRATION_IMAGES, AccuracyControl
from .samples import evenly_spaced, sample_names, sample_photo_crops, source_name

PARITY_IMAGES = 8
# Of a program in bfloat16 or 8 bits, whose outputs differ from the model's: with less, it computes something else.
MIN_ROUNDED_AGREEMENT = 0.1
PACKAGES = {  # the extra that brings them, and the packages that write and run a format
    "onnx": ("export", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": ("export", ("openvino",)),
    "torch": ("export", ()),
    "executorch": ("executorch", ("executorch",)),
    "coreml": ("coreml", ("coremltools",)),
}


def export_model(
    form: ExportForm,
    folder: Path,
    *,
    format: str,
    images: Sequence[Path] = (),
    calibrate: Sequence[Path] = (),
    replace: bool = False,
    precision: str = "fp32",
    control: AccuracyControl | None = None,
    used_images: UsedImages | None = None,
    on_status: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Export a model into a folder, atomically, and compare the export with the source model.

    The parts of an SMT are fused first. The exported program takes any batch size, and any height and width that the
    model itself takes; a detector's program takes one image of any size, or a fixed number of images of one size, and
    contains the spec's thresholds. In the formats ``executorch`` and ``coreml``, it takes one image of the model's
    size.

    Args:
        form: Model, in the export form of its task.
        folder: Output folder; must not exist, unless ``replace`` is set.
        format: ``onnx``, ``openvino`` or, except for detectors, ``torch``, ``executorch`` or ``coreml``.
        images: Images to compare on; default: those of ``calibrate``, otherwise crops of a sample photograph.
        calibrate: Images to calibrate 8-bit quantization on; empty for float32. OpenVINO only, and not for DINO.
        replace: Whether to replace an existing export in the folder.
        precision: ``fp32``, or ``bf16`` for a program that OpenVINO runs in bfloat16 on CPUs with instructions for it.
            The parity is that of this precision if this CPU has them, otherwise that of float32, as it says.
        control: Limits the accuracy loss by 8-bit quantization; ``None``: all layers are quantized. Not for detectors.
        used_images: Images that the model was trained on, if known; kept with the export.
        on_status: Called with a description of each step.

    Returns:
        The manifest, as written to the folder.

    Raises:
        ValueError: The model does not match its spec, the format is not supported, an image is unreadable, nothing is
            detected in the images, or the converter or runtime fails (:class:`~smt_vision.deploy.errors.ProgramError`).
        FileExistsError: The folder exists, and either ``replace`` is false or the folder is not an export.
        ImportError: A package that writes or runs this format is not installed.
        RuntimeError: The outputs of the export differ from the model's; in bfloat16 and 8 bits, if they are not finite
            or less than ``MIN_ROUNDED_AGREEMENT`` of the results agree. Or the accuracy does by more than ``control``
            allows.
    """
    _check_request(form, format, bool(calibrate), precision)
    _check_control(form, bool(calibrate), control)
    extra, packages = PACKAGES[format]
    packages = (*packages, "nncf") if calibrate else packages
    for package in packages:
        with quiet():
            require(package, extra)
    candidates: Sequence[Path | Image.Image] = images or calibrate or sample_photo_crops()
    samples = evenly_spaced(candidates, PARITY_IMAGES)
    # Before what takes minutes.
    for image in [*samples, *evenly_spaced(calibrate, CALIBRATION_IMAGES)]:
        if isinstance(image, Path):
            decode_input(image, form.spec.input, name=str(image))
    with _new_folder(folder, replace) as new, torch.no_grad():
        on_status("tracing the model")
        form.trace(samples, format)
        on_status(f"writing {', '.join(FILES[format])}")
        if control is not None:
            on_status(f"measuring {control.metric}")
            control = dataclasses.replace(control, baseline=control.measure(form.model))
            on_status(f"quantizing with a loss of at most {control.max_drop} points of {control.metric}")
        format_versions = form.write(new, format, calibrate, control)
        exact = not calibrate and precision == "fp32"
        parity = _compared(form, new, format, exact, control, on_status)
        files = [*FILES[format], *_write_used_images(new, used_images, calibrate)]
        manifest = Manifest(
            name=source_name(form.name),
            format=format,
            precision="int8" if calibrate else "bfloat16" if precision == "bf16" else "float32",
            parameters=sum(p.numel() for p in form.model.parameters()),
            spec=form.spec.to_dict(),
            dynamic_image_size=form.dynamic_image_size,
            batch_size=1 if format in ONE_SHAPE else form.batch_size,
            parity={**parity, "tolerance": form.tolerance if exact else None, "images": sample_names(samples)},
            versions={"smt-vision": __version__, **{p: version_of(p) for p in ("torch", *packages)}, **format_versions},
            files={file: sha256(new / file) for file in files},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        manifest.write(new)
    return manifest


def _compared(
    form: ExportForm,
    folder: Path,
    format: str,
    exact: bool,
    control: AccuracyControl | None,
    on_status: Callable[[str], None],
) -> Mapping[str, Any]:
    """How the program in a folder compares with the model.

    Raises:
        RuntimeError: They differ by more than they may.
    """
    if reason := why_not_here(format):
        return {"agreement": None, "reason": reason}
    on_status("comparing with the model")
    bf16 = not exact and has_bf16()
    with program_errors(f"the exported {form.name} cannot be loaded", "try another --format"):
        program = open_program(folder, format, bf16=bf16)
    parity = form.compare(program, exact)
    _check_parity(form, parity, exact)
    if not exact:
        parity = {**parity, "floating_point": "bfloat16" if bf16 else "float32"}
    if control is not None:
        on_status(f"measuring {control.metric}")
        # Compiled for other shapes than in quantization, which can change single predictions.
        after = control.measure(ProgramModule(program))
        control.check(after)
        accuracy = {"metric": control.metric, "before": control.baseline, "after": after}
        parity = {**parity, "accuracy": {**accuracy, "max_drop": control.max_drop}}
    return parity


def _write_used_images(folder: Path, used_images: UsedImages | None, calibrate: Sequence[Path]) -> list[str]:
    """Write the hashes of the images that a model was trained and calibrated on; return the names of the files."""
    if calibrate:
        calibration = hash_files(evenly_spaced(calibrate, CALIBRATION_IMAGES))
        used_images = used_images or UsedImages()
        calibration = np.union1d(used_images.calibration, calibration)  # with those of a temperature
        used_images = dataclasses.replace(used_images, calibration=calibration)
    if used_images is None:
        return []
    tensors = used_images.to_tensors()
    write_atomic(folder / IMAGES, lambda part: save_file(tensors, part))
    return [IMAGES]


def _check_request(form: ExportForm, format: str, int8: bool, precision: str) -> None:
    """Raise a ValueError if the request cannot be fulfilled for any model or task."""
    if format not in FILES:
        raise ValueError(f"invalid format {format!r}: expected one of {', '.join(FILES)}")
    for module in form.model.modules():
        if isinstance(module, ExportedModel):
            raise ValueError(f"{form.name} is an export already; export its source model: {module.manifest.name}")
    form.check(format, int8)
    if int8 and format != "openvino":
        raise ValueError(f"8 bits need format 'openvino', not {format!r}; omit --int8, or change --format")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"invalid precision={precision!r}: expected fp32 or bf16")
    if precision == "bf16" and format != "openvino":
        raise ValueError(f"bf16 needs format 'openvino', not {format!r}; omit --precision, or change --format")


def _check_control(form: ExportForm, int8: bool, control: AccuracyControl | None) -> None:
    if control is None:
        return
    if not int8:
        raise ValueError("max_drop is the accuracy that 8 bits may cost: pass images to calibrate on, or omit it")
    if not form.can_control_accuracy:
        raise ValueError(
            f"max_drop={control.max_drop} is not for detectors: NNCF ranks layers by outputs of one shape, and the "
            "number of detections varies; omit it, and measure the accuracy with smt eval"
        )


def _check_parity(form: ExportForm, parity: Mapping[str, Any], exact: bool) -> None:
    """Raise a RuntimeError if the program's outputs differ from the model's by more than they may, or are NaN."""
    difference, agreement = parity["max_difference"], parity["agreement"]
    found = f"{form.outputs} by up to {difference:.1e}, with {100 * agreement:.1f} % agreement"
    if exact:
        worst = min(parity["cases"], key=lambda case: case["agree"] / case["of"] if case["of"] else 1.0)
        passed = difference <= form.tolerance and agreement >= form.min_agreement
        if not (passed and worst["agree"] >= form.min_case_agreement * worst["of"]):
            raise RuntimeError(
                f"the outputs of the exported {form.name} differ from the original model's: {found}, {worst['agree']} "
                f"of {worst['of']} for {' x '.join(map(str, worst['shape']))} (tolerance: {form.tolerance}); nothing "
                "was written. Try another --format"
            )
    elif not (math.isfinite(difference) and agreement >= MIN_ROUNDED_AGREEMENT):
        raise RuntimeError(
            f"the outputs of the exported {form.name} are not those of the original model in a lower precision: they "
            f"differ, {found}, expected finite ones and at least {100 * MIN_ROUNDED_AGREEMENT:.0f} %; nothing was "
            "written. Export it in float32, or calibrate 8 bits on images like those in use"
        )


@contextmanager
def _new_folder(folder: Path, replace: bool) -> Iterator[Path]:
    """Yield a temporary folder to write to; it is renamed to ``folder`` on success and deleted on error.

    If the folder is a symbolic link, it stays, and the folder that it points to is replaced.

    Raises:
        FileExistsError: The folder exists and may not be replaced, is not an export, or has other files in it.
    """
    folder = folder.resolve()
    if folder.exists():
        if not replace:
            raise FileExistsError(f"{folder} exists already; choose another --out, or replace an export with --force")
        _check_replaceable(folder)
    new = folder.with_name(f".{folder.name}.{uuid4().hex}")
    new.mkdir(parents=True)
    old = new.with_name(f"{new.name}.old")
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """Raise a FileExistsError if a folder has anything but an export in it."""
    try:
        manifest = Manifest.read(folder)
    except (ValueError, OSError) as error:
        raise FileExistsError(
            f"{folder} is not an export ({error}) and is not replaced; remove it, or choose another --out"
        ) from error
    own = {MANIFEST, *FILES[manifest.format], *manifest.files}
    others = sorted(
        name
        for path in folder.rglob("*")
        if not path.is_dir() and (name := path.relative_to(folder).as_posix()) not in own
    )
    if others:
        raise FileExistsError(
            f"{folder} has files beside the export, e.g. {others[0]}, and is not replaced; move them, or choose "
            "another --out"
        )
