"""Networks traced and written in the format of another runtime.

Classifiers and segmenters go through torch.export. It does not get through torchvision's choice among regions
(``batched_nms``), so detectors take torch's older tracer, which does; both of the runtimes' own formats have all that
a detector computes, torch.export's does not.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from ..extras import require
from ..forms.inference import fuse
from ..model.smt import SMT
from .exported import FILES
from .parity import SMALLEST_SIDE
from .quantize import quantize

OPSET = 18  # of ONNX, for detectors: torch's older tracer writes none much later
Preprocess = Callable[[Path], Tensor]  # an image file to (C, H, W)


def trace(model: nn.Module, channels: int, size: int) -> tuple[ExportedProgram, bool]:
    """The graph of a model in its form for inference, for any batch size, and whether any height and width may come.

    Tracing follows the layout of every tensor in memory, which is another where a side of a map is 1; so it notes that
    no map may have such a side. Of an SMT that would leave out images with a side of 32 to 34. What is computed does
    not depend on the layout: the notes are dropped, and parity is looked at for the smallest images too.
    """
    fused = fused_if_smt(model)
    for parameter in fused.parameters() if fused is not model else ():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)  # .pt2 warns of channels-last
    side = max(size, 2 * SMALLEST_SIDE)
    dynamic_image_size = _takes(model, (1, channels, side + 1, side + SMALLEST_SIDE + 1))
    sides = (side, side + SMALLEST_SIDE) if dynamic_image_size else (size, size)
    shape = (2, channels, *sides)  # sizes that are equal, or 1, would be taken for constants
    dynamic = dict.fromkeys((0, 2, 3) if dynamic_image_size else (0,), Dim.DYNAMIC)
    program = torch.export.export(fused, (torch.zeros(shape),), dynamic_shapes=(dynamic,))
    for symbol in program.range_constraints:
        program.range_constraints[symbol] = ValueRanges(1, int_oo)
    return program, dynamic_image_size


def write(
    program: ExportedProgram, folder: Path, format: str, calibrate: Sequence[Path], preprocess: Preprocess
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
    _save_openvino(require("openvino", "export").convert_model(program), path, ["logits"], calibrate, preprocess)
    return {}


def write_traced(
    model: nn.Module,
    example: Tensor,
    outputs: Sequence[str],
    folder: Path,
    format: str,
    calibrate: Sequence[Path],
    preprocess: Preprocess,
    ignored: Sequence[str] = (),
) -> dict[str, str]:
    """Trace a model of one image with TorchScript, and write the files of a format.

    Args:
        model: One image ``(1, C, H, W)`` to a tuple of tensors.
        example: Image that the model is traced with.
        outputs: Names of the outputs.
        folder: Output folder.
        format: ``onnx`` or ``openvino``.
        calibrate: Images to quantize with; none for float32.
        preprocess: Image file to ``(C, H, W)``.
        ignored: Regular expressions for names of operations that stay in float32 when quantized.

    Returns:
        Further versions for the manifest.
    """
    fused, path = fused_if_smt(model), folder / FILES[format][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constants, which parity checks at several sizes, and deprecation
        if format == "onnx":
            axes = {"images": {2: "height", 3: "width"}} | {name: {0: "detections"} for name in outputs}
            torch.onnx.export(
                fused, (example,), path, dynamo=False, opset_version=OPSET, input_names=["images"],
                output_names=list(outputs), dynamic_axes=axes,
            )  # fmt: skip
            return {"opset": str(OPSET)}
        openvino = require("openvino", "export")
        converted = openvino.convert_model(fused, example_input=(example,), input=[1, example.shape[1], -1, -1])
    _save_openvino(converted, path, outputs, calibrate, preprocess, ignored)
    return {}


def fused_if_smt(model: nn.Module) -> nn.Module:
    """The model with its SMT's parts fused; another model as it is."""
    return fuse(model) if any(isinstance(part, SMT) for part in model.modules()) else model


def _save_openvino(
    model: Any,
    path: Path,
    outputs: Sequence[str],
    calibrate: Sequence[Path],
    preprocess: Preprocess,
    ignored: Sequence[str] = (),
) -> None:
    model.input(0).get_tensor().set_names({"images"})
    for i, name in enumerate(outputs):
        model.output(i).get_tensor().set_names({name})
    if calibrate:
        model = quantize(model, calibrate, preprocess, ignored)
    require("openvino", "export").save_model(model, path, compress_to_fp16=False)


def _takes(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        model(torch.zeros(shape))
    except Exception:  # each model of one size says so in a way of its own
        return False
    return True
