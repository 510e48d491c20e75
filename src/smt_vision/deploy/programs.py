"""Tracing a model, and writing it in the format of another runtime.

Classifiers and segmenters are traced with torch.export. It does not support torchvision's ``batched_nms``, so detectors
are traced with TorchScript, which does, and are written to ONNX and OpenVINO only.
"""

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from .._version import __version__
from ..data.transforms import resize_filter
from ..extras import require
from ..forms.inference import fuse, is_fused
from ..model.smt import SMT
from ..spec import ModelSpec
from .errors import program_errors
from .exported import FILES
from .openvino_form import for_openvino
from .parity import SMALLEST_SIDE
from .quantize import AccuracyControl, errors_only, quantize

ONE_SHAPE = ("executorch", "coreml")  # formats whose programs are for one shape of images
OPSET = 18  # ONNX opset of detectors; the TorchScript exporter supports few later ones
Preprocess = Callable[[Path], Tensor]  # image file to (C, H, W)


def trace(model: nn.Module, channels: int, size: int, format: str = "") -> tuple[ExportedProgram, bool]:
    """Trace a model, fused if it is an SMT, for any batch size and, if the model supports it, any height and width.

    torch.export also traces memory layouts, which differ where a feature map has a side of 1, and therefore restricts
    the image size to exclude such maps: for an SMT, images with a side of 32 to 34 pixels. The result does not depend
    on the layout. The restrictions are removed, and parity is checked for the smallest images too.

    Args:
        model: Model that returns logits.
        channels: Number of image channels.
        size: Side of the model's square input in pixels.
        format: Format that the program is written in.

    Returns:
        The program, and whether it takes images of any height and width.
    """
    fused = fused_if_smt(model, format)
    for parameter in fused.parameters() if fused is not model else ():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)  # .pt2 warns of channels-last
    side = max(size, 2 * SMALLEST_SIDE)
    dynamic_image_size = _takes(model, (1, channels, side + 1, side + SMALLEST_SIDE + 1))
    sides = (side, side + SMALLEST_SIDE) if dynamic_image_size else (size, size)
    shape = (2, channels, *sides)  # torch.export specializes dimensions that are 1, or equal to another
    dynamic = dict.fromkeys((0, 2, 3) if dynamic_image_size else (0,), Dim.DYNAMIC)
    with _tracing():
        program = torch.export.export(fused, (torch.zeros(shape),), dynamic_shapes=(dynamic,))
    for symbol in program.range_constraints:
        program.range_constraints[symbol] = ValueRanges(1, int_oo)
    return _without_traces(program), dynamic_image_size


def trace_one_shape(model: nn.Module, example: Tensor, format: str = "") -> ExportedProgram:
    """Trace a model, fused if it is an SMT, for images of the example's shape only; the input is called ``images``."""
    fused = copy.deepcopy(fused_if_smt(model, format))
    for parameter in fused.parameters():
        parameter.data = parameter.data.contiguous()
    with _tracing():
        return _without_traces(torch.export.export(_NamedInput(fused), (example,)))


def _without_traces(program: ExportedProgram) -> ExportedProgram:
    """Drop the stack traces of a program: they would be written to the files, with paths of this machine."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


class _NamedInput(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.model(images)
        return out


def write(
    program: ExportedProgram,
    folder: Path,
    format: str,
    calibrate: Sequence[Path],
    preprocess: Preprocess,
    control: AccuracyControl | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write the files of a format; returns additional entries for the manifest's versions.

    ``control`` is that of :func:`~smt_vision.deploy.quantize.quantize`. ONNX and OpenVINO files hold the metadata.

    Raises:
        ProgramError: The converter fails.
    """
    path = folder / FILES[format][0]
    with converting(format):
        if format == "torch":
            torch.export.save(program, path)
            return {}
        if format == "onnx":
            return _write_onnx(program, path, metadata or {})
        if format in ONE_SHAPE:
            return _write_executorch(program, path) if format == "executorch" else _write_coreml(program, path.parent)
        # OpenVINO 2026.4 does not convert powers of sizes, as MAnet's attention over positions has them.
        power = require("openvino.frontend.pytorch", "export").ConversionExtension("<built-in function pow>", _power)
        model = require("openvino", "export").convert_model(program, extension=[power])
    _save_openvino(model, path, ["logits"], calibrate, preprocess, control=control, metadata=metadata)
    return {}


def program_metadata(spec: ModelSpec) -> dict[str, str]:
    """What a program's file says of its model, as text and JSON: the task, the classes, and the preprocessing."""
    plain = spec.to_dict()
    plain["input"]["interpolation"] = resize_filter(spec.input)
    names = "classes", "category_ids", "input", "head"
    about = {name: json.dumps(plain[name]) for name in names if plain[name] is not None}
    return {"task": spec.task, "smt_vision": __version__, **about}


def _set_onnx_metadata(model: Any, metadata: Mapping[str, str]) -> None:
    """Replace the metadata of an ONNX model, which are the exporter's notes on each operator."""
    graph, nodes = model.graph, list(model.graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in nodes for output in node.outputs)]
    for part in (model, graph, *nodes, *values):
        part.metadata_props.clear()
    model.metadata_props.update(metadata)


def _power(node: Any) -> Any:
    operators = require("openvino.opset14", "export")
    return operators.power(node.get_input(0), node.get_input(1)).outputs()


def _write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    graph = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"])
    assert graph is not None
    axes: Any = graph.model.graph.inputs[0].shape
    names = zip(axes, ("batch", "channels", "height", "width"), strict=True)
    graph.rename_axes({axis: name for axis, name in names if not isinstance(axis, int)})
    _set_onnx_metadata(graph.model, metadata)
    graph.save(path, external_data=False)
    return {"opset": str(graph.model.opset_imports[""])}


def _write_executorch(program: ExportedProgram, path: Path) -> dict[str, str]:
    with quiet():
        exir = require("executorch.exir", "executorch")
        backend = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[backend.XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
    return {"backend": "xnnpack"}


def _write_coreml(program: ExportedProgram, path: Path) -> dict[str, str]:
    """Write an ML program in float32.

    Raises:
        RuntimeError: It does not have the shapes of the traced program.
    """
    with quiet():
        tools = require("coremltools", "coreml")
        converted = tools.convert(
            program.run_decompositions({}),
            outputs=[tools.TensorType(name="logits")],
            convert_to="mlprogram",
            compute_precision=tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS16,
        )
        converted.save(str(path))
        description = converted.get_spec().description
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    expected = [
        ("images", tuple(values[signature.user_inputs[0]].shape)),
        ("logits", tuple(values[signature.user_outputs[0]].shape)),
    ]
    features = (*description.input, *description.output)
    found = [(feature.name, tuple(feature.type.multiArrayType.shape)) for feature in features]
    if found != expected:
        raise RuntimeError(f"the Core ML program has the inputs and outputs {found}; expected {expected}")
    return {"deployment_target": "iOS 16, macOS 13"}


def converting(format: str) -> contextlib.AbstractContextManager[None]:
    """What a converter raises, as one :class:`~smt_vision.deploy.errors.ProgramError`."""
    remedy = "it may not support an operator of this model: use another format or another backbone"
    return program_errors(f"the converter of format {format!r} failed", remedy)


def _tracing() -> contextlib.AbstractContextManager[None]:
    remedy = "it may not support this model: use another backbone"
    return program_errors("torch.export, which traces the model, failed", remedy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings, progress bars and log messages below errors, of which converters have many."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        errors_only("coremltools"),
    ):
        warnings.simplefilter("ignore")
        yield


def write_traced(
    model: nn.Module,
    example: Tensor,
    outputs: Sequence[str],
    folder: Path,
    format: str,
    calibrate: Sequence[Path],
    preprocess: Preprocess,
    ignored: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Trace a model of a fixed number of images with TorchScript, and write the files of a format.

    Args:
        model: Model from images ``(B, C, H, W)`` to a tuple of tensors.
        example: Images to trace the model with.
        outputs: Names of the outputs.
        folder: Output folder.
        format: ``onnx`` or ``openvino``.
        calibrate: Images to calibrate quantization on; empty for float32.
        preprocess: Function from an image file to ``(C, H, W)``.
        ignored: Regular expressions for names of operations that stay in float32 when quantized.
        metadata: What the file says of the model, by name.

    Returns:
        Additional entries for the manifest's versions.
    """
    fused, path = fused_if_smt(model, format), folder / FILES[format][0]
    with warnings.catch_warnings(), converting(format):
        # TracerWarnings about constants, which the parity check at several sizes covers, and deprecation warnings.
        warnings.simplefilter("ignore")
        if format == "onnx":
            axes = {"images": {2: "height", 3: "width"}}
            if len(example) == 1:
                axes |= {name: {0: "detections"} for name in outputs}
            torch.onnx.export(
                fused, (example,), path, dynamo=False, opset_version=OPSET, input_names=["images"],
                output_names=list(outputs), dynamic_axes=axes,
            )  # fmt: skip
            onnx = require("onnx", "export")
            program = onnx.load(path)
            onnx.helper.set_model_props(program, dict(metadata or {}))
            onnx.save(program, path)
            return {"opset": str(OPSET)}
        openvino = require("openvino", "export")
        converted = openvino.convert_model(fused, example_input=(example,), input=[*example.shape[:2], -1, -1])
    _save_openvino(converted, path, outputs, calibrate, preprocess, ignored, metadata=metadata)
    return {}


def fused_if_smt(model: nn.Module, format: str = "") -> nn.Module:
    """The model, with its SMT fused, if it contains one that is not yet, in the form for a format."""
    contains_smt = any(isinstance(part, SMT) for part in model.modules())
    model = fuse(model) if contains_smt and not is_fused(model) else model
    return for_openvino(model) if format == "openvino" else model


def _save_openvino(
    model: Any,
    path: Path,
    outputs: Sequence[str],
    calibrate: Sequence[Path],
    preprocess: Preprocess,
    ignored: Sequence[str] = (),
    control: AccuracyControl | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    model.input(0).get_tensor().set_names({"images"})
    for i, name in enumerate(outputs):
        model.output(i).get_tensor().set_names({name})
    if calibrate:
        model = quantize(model, calibrate, lambda path: preprocess(path)[None].numpy(), ignored, control)
    for name, value in (metadata or {}).items():
        model.set_rt_info(value, ["smt_vision", name])
    with converting("openvino"):
        require("openvino", "export").save_model(model, path, compress_to_fp16=False)


def _takes(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        model(torch.zeros(shape))
    except Exception:  # models of a fixed size raise different types
        return False
    return True
