"""Export of detectors, and inference with exported detectors.

Shapes: an image of H x W pixels, N detections.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...data.padding import padded
from ...deploy.exported import ExportedModel, Program
from ...deploy.form import ExportForm
from ...deploy.parity import detection_parity
from ...deploy.programs import write_traced
from ...deploy.samples import image_to_tensor, sample_names
from ...spec import ModelSpec
from .config import DetectConfig
from .data.transforms import detection_eval_transform

OUTPUTS = ("boxes", "scores", "labels", "masks")  # order of the exported outputs; masks only for heads with masks
QUANTIZED = ("retinanet", "fcos")  # heads that NNCF can quantize; it does not support the branches of multi-stage ones
# OpenVINO operations of these that compute coordinates: 8 bits are too few for pixel coordinates.
COORDINATES = (r"aten::(?!pad/).*", r".*anchor_generator/.*")


class DetectorForExport(nn.Module):
    """A detector for a single image of any size, in operators that exporters support.

    Shape: ``(1, C, H, W)``, normalized and not padded, to ``boxes`` (N, 4) in pixels of that image, ``scores`` (N,) and
        ``labels`` (N,), best first, and with masks ``masks`` (N, 28, 28), probabilities inside the box.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, padded(width) - width, 0, padded(height) - height))
        (detections,) = self.detector.detect(image, [(height, width)])
        return tuple(detections[name] for name in OUTPUTS if name in detections)


class ExportedDetector(nn.Module):
    """A :class:`~smt_vision.tasks.detection.heads.detectors.Detector` that another runtime executes; evaluation only.

    Args:
        program: Computes :class:`DetectorForExport`.
        config: Its thresholds are at least as strict as those that were exported.
    """

    def __init__(self, program: Callable[[Tensor], tuple[Tensor, ...]], config: DetectConfig) -> None:
        super().__init__()
        self.program = program
        self.config = config

    def forward(self, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        return [self._detect(image[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(sizes.tolist())]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        detections = dict(zip(OUTPUTS, self.program(image), strict=False))
        keep = (detections["scores"] > self.config.score_threshold).nonzero()[: self.config.max_detections, 0]
        return {name: values[keep] for name, values in detections.items()}


class DetectorExport(ExportForm):
    """Export of a detector, traced with the image that has the most detections and compared on all images."""

    outputs = "detections"
    min_agreement = 0.99  # where two detections overlap by the NMS threshold, rounding decides
    dynamic_image_size = True

    def __init__(self, model: nn.Module, spec: ModelSpec, name: str) -> None:
        super().__init__(model, spec, name)
        # DINO's queries have learned content by rank: of two proposals with nearly equal scores, rounding decides.
        self.tolerance = 1e-2 if spec.head.head == "dino" else self.tolerance

    def check(self, format: str, int8: bool) -> None:
        if format not in ("onnx", "openvino"):
            raise ValueError(
                f"a detector cannot be exported to format {format!r}: torch.export, which traces for it, does not "
                "support torchvision's batched_nms; use 'onnx' or 'openvino'"
            )
        if int8 and self.spec.head.head not in QUANTIZED:
            raise ValueError(
                f"detect.head={self.spec.head.head!r} cannot be quantized: expected {' or '.join(QUANTIZED)}, whose "
                "arithmetic of coordinates can be kept in float32; omit --int8, or train one of these"
            )

    def trace(self, samples: Sequence[Path | Image.Image]) -> None:
        transform = detection_eval_transform(self.spec.input, self.spec.head)
        self.preprocess = partial(image_to_tensor, input=self.spec.input, transform=transform)
        self.images = [self.preprocess(image) for image in samples]
        self.detector = DetectorForExport(self.model).eval()
        counts = [len(self.detector(image[None])[0]) for image in self.images]
        if not any(counts):
            raise ValueError(
                f"{self.name} detects nothing in {', '.join(sample_names(samples))}, so its export could not be "
                "compared with it; pass images with objects (--images), or lower detect.score_threshold"
            )
        self.example = self.images[counts.index(max(counts))][None]

    def write(self, folder: Path, format: str, calibrate: Sequence[Path]) -> dict[str, str]:
        outputs = OUTPUTS[: len(self.detector(self.example))]
        return write_traced(
            self.detector, self.example, outputs, folder, format, calibrate, self.preprocess, ignored=COORDINATES
        )

    def compare(self, program: Program) -> Mapping[str, Any]:
        return detection_parity(self.detector, program, self.images)

    @classmethod
    def as_model(cls, program: ExportedModel, exported: ModelSpec, spec: ModelSpec, folder: Path) -> nn.Module:
        old, new = exported.head, spec.head
        for name, possible in (
            ("score_threshold", new.score_threshold >= old.score_threshold),
            ("nms_threshold", new.nms_threshold == old.nms_threshold),
            ("max_detections", new.max_detections <= old.max_detections),
        ):
            if not possible:
                raise ValueError(
                    f"{folder} was exported with detect.{name}={getattr(old, name)} and cannot be used with "
                    f"{getattr(new, name)}: export the model again with --detect.{name} {getattr(new, name)}"
                )
        return ExportedDetector(program, new)
