"""Engines that run the candidates of a benchmark: PyTorch, eager or compiled, ONNX Runtime and OpenVINO."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..deploy.exported import OpenVINOProgram, Program, Provider, open_onnx
from ..deploy.programs import converting, quiet, trace_one_shape
from ..deploy.quantize import quantize
from ..extras import require
from ..forms.inference import is_fused
from .model_spec import ENGINES, RUNTIMES, TRAINING_ENGINES

CALIBRATION_SAMPLES = 8


def run_by(
    model: nn.Module, engine: str, precision: str, train: bool = False, providers: Sequence[Provider] = ()
) -> nn.Module:
    """A candidate as an engine runs it.

    Args:
        model: Model in evaluation mode, on its device.
        engine: One of :data:`ENGINES`.
        precision: ``fp32``; ``bf16``, except for ONNX Runtime; or ``int8`` for OpenVINO.
        train: Whether the model is to be trained, which only PyTorch does.
        providers: Execution providers of ONNX Runtime.

    Returns:
        The model itself, with its weights in the precision, or a :class:`ProgramModel`.

    Raises:
        ValueError: The engine does not have the precision, or does not train.
    """
    if train and engine not in TRAINING_ENGINES:
        raise ValueError(f"invalid engine={engine!r}: models are trained by {' or '.join(TRAINING_ENGINES)}")
    if precision not in ENGINES[engine]:
        raise ValueError(f"invalid precision={precision!r}: engine {engine!r} has {' and '.join(ENGINES[engine])}")
    if engine in RUNTIMES:
        return ProgramModel(model, cast(Any, engine), precision, providers)
    if precision == "bf16":
        model = model if is_fused(model) else model.to(torch.bfloat16)
    return compiled(model) if engine == "compiled" else model


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled without graph breaks and dynamic shapes: the compiled model is timed, or compiling fails."""
    return cast(nn.Module, torch.compile(model, fullgraph=True, dynamic=False))


class ProgramModel(nn.Module):
    """A model that ONNX Runtime or OpenVINO runs; its program is built at the first call with images of a shape.

    Args:
        model: Model on the CPU; an SMT is fused.
        engine: ``onnxruntime`` or ``openvino``.
        precision: ``fp32``, ``bf16`` or ``int8``. Of 8 bits, ranges are calibrated on random images, and what remains
            is in bfloat16 where the CPU has instructions for it.
        providers: Execution providers of ONNX Runtime.

    Shape: that of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: Literal["onnxruntime", "openvino"],
        precision: str,
        providers: Sequence[Provider] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.engine = engine
        self.precision = precision
        self.providers = providers
        self.programs: dict[torch.Size, Program] = {}

    def forward(self, images: Tensor) -> Any:
        if images.shape not in self.programs:
            with TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad(), quiet():
                self.programs[images.shape] = self._build(images, Path(folder))
        return self.programs[images.shape](images)

    def _build(self, images: Tensor, folder: Path) -> Program:
        program = trace_one_shape(self.model, images.clone(), self.engine)
        if self.engine == "onnxruntime":
            with converting("onnx"):
                graph = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"])
                assert graph is not None
                graph.save(folder / "model.onnx", external_data=False)
            return open_onnx(folder / "model.onnx", self.providers)
        openvino = require("openvino", "export")
        with converting("openvino"):
            converted = openvino.convert_model(program)
        if self.precision == "int8":
            samples = range(CALIBRATION_SAMPLES)
            converted = quantize(converted, samples, lambda _: torch.randn(images.shape).numpy())
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
        return OpenVINOProgram(folder / "model.xml", bf16=self.precision != "fp32", static=True)
