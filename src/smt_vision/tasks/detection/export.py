"""Export of detectors, and inference with exported detectors.

Shapes: B images of H x W pixels, N detections; D is ``max_detections``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...data.padding import padded
from ...deploy.exported import ExportedModel, Program
from ...deploy.form import ExportForm
from ...deploy.parity import BOX_TOLERANCE, ROUNDED_BOX_TOLERANCE, batches_of_one_size, detection_parity
from ...deploy.programs import program_metadata, write_traced
from ...deploy.quantize import AccuracyControl
from ...deploy.samples import image_to_tensor, sample_names
from ...spec import ModelSpec
from .config import DetectConfig
from .data.transforms import detection_eval_transform

OUTPUTS = ("boxes", "scores", "labels", "masks")  # order of the exported outputs; masks only for heads with masks
# OpenVINO operations that compute coordinates: 8 bits are too few for pixel coordinates.
COORDINATES = (r"aten::(?!pad/).*", r".*anchor_generator/.*", r".*\.rpn/.*", r".*_roi_pool/.*")


class DetectorForExport(nn.Module):
    """A detector for a fixed number of images of any one size, in operators that exporters support.

    Args:
        detector: A detector.
        batch_size: Number of images B.
        max_detections: Largest number of detections per image D.

    Shape: ``(B, C, H, W)``, normalized and not padded. With B = 1 to ``boxes`` (N, 4) in pixels of that image,
        ``scores`` (N,) and ``labels`` (N,), best first, and with masks ``masks`` (N, 28, 28), probabilities inside the
        box. With more images to (B, D, 4), (B, D), (B, D) and (B, D, 28, 28), in which a score of 0 marks padding.
    """

    def __init__(self, detector: nn.Module, batch_size: int, max_detections: int) -> None:
        super().__init__()
        self.detector: Any = detector
        self.batch_size = batch_size
        self.max_detections = max_detections

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, padded(width) - width, 0, padded(height) - height))
        detections = self.detector.detect(image, [(height, width)] * self.batch_size)
        names = [name for name in OUTPUTS if name in detections[0]]
        if self.batch_size == 1:
            return tuple(detections[0][name] for name in names)
        return tuple(torch.stack([self._filled(found[name]) for found in detections]) for name in names)

    def _filled(self, values: Tensor) -> Tensor:
        """Values (N, ...) and zeros (D, ...)."""
        return torch.cat([values, values.new_zeros(self.max_detections, *values.shape[1:])])[: self.max_detections]


def split_batch(outputs: Sequence[Tensor], batch_size: int) -> list[tuple[Tensor, ...]]:
    """The detections of each image, from the outputs of a :class:`DetectorForExport`."""
    if batch_size == 1:
        return [tuple(outputs)]
    found = outputs[1] > 0
    return [tuple(values[i][found[i]] for values in outputs) for i in range(batch_size)]


class ExportedDetector(nn.Module):
    """A :class:`~smt_vision.tasks.detection.heads.detectors.Detector` that another runtime executes; evaluation only.

    Args:
        program: Computes :class:`DetectorForExport`.
        config: Its thresholds are at least as strict as those that were exported.
        batch_size: Number of images that the program takes; where there are fewer of a size, it gets zeros too.
    """

    def __init__(
        self, program: Callable[[Tensor], tuple[Tensor, ...]], config: DetectConfig, batch_size: int = 1
    ) -> None:
        super().__init__()
        self.program = program
        self.config = config
        self.batch_size = batch_size

    def forward(self, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        places: dict[tuple[int, int], list[int]] = {}  # the program takes images of one size
        for i, (h, w) in enumerate(sizes.tolist()):
            places.setdefault((h, w), []).append(i)
        results: list[dict[str, Tensor]] = [{}] * len(sizes)
        for (h, w), group in places.items():
            for start in range(0, len(group), self.batch_size):
                part = group[start : start + self.batch_size]
                images = image[part, :, :h, :w]
                images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self.batch_size - len(part)))
                for i, found in zip(part, split_batch(self.program(images), self.batch_size), strict=False):
                    results[i] = self._select(found)
        return results

    def _select(self, outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        detections = dict(zip(OUTPUTS, outputs, strict=False))
        keep = (detections["scores"] > self.config.score_threshold).nonzero()[: self.config.max_detections, 0]
        return {name: values[keep] for name, values in detections.items()}


class DetectorExport(ExportForm):
    """Export of a detector, traced with the image that has the most detections and compared on all images."""

    outputs = "detections"
    has_fixed_batch = True
    can_control_accuracy = False  # layers are ranked by outputs, and here their number differs from program to program
    min_agreement = 0.99  # where two detections overlap by the NMS threshold, rounding decides
    min_case_agreement = 0.9  # so that one size at which the program is wrong is not outweighed by the others
    dynamic_image_size = True

    def __init__(self, model: nn.Module, spec: ModelSpec, name: str, batch_size: int | None = None) -> None:
        self.count = batch_size or 1
        super().__init__(model, spec, name, self.count)
        # DINO's queries have learned content by rank: of two proposals with nearly equal scores, rounding decides.
        self.tolerance = 1e-2 if spec.head.head == "dino" else self.tolerance

    def check(self, format: str, int8: bool) -> None:
        if format not in ("onnx", "openvino"):
            raise ValueError(
                f"a detector cannot be exported to format {format!r}: torch.export, which traces for it, does not "
                "support torchvision's batched_nms; use 'onnx' or 'openvino'"
            )
        if int8 and self.count != 1:
            raise ValueError(f"batch_size={self.count} needs float32: omit --int8, or the batch size")
        if int8 and self.spec.head.head == "dino":
            raise ValueError(
                "detect.head='dino' cannot be quantized: its attention computes with coordinates in every layer, for "
                "which 8 bits are too few; omit --int8, or train another head"
            )

    def trace(self, samples: Sequence[Path | Image.Image], format: str) -> None:
        transform = detection_eval_transform(self.spec.input, self.spec.head)
        self.preprocess = partial(image_to_tensor, input=self.spec.input, transform=transform)
        self.images = [self.preprocess(image) for image in samples]
        config = self.spec.head
        single = DetectorForExport(self.model, 1, config.max_detections).eval()
        counts = [len(single(image[None])[0]) for image in self.images]
        if not any(counts):
            raise ValueError(
                f"{self.name} detects nothing in {', '.join(sample_names(samples))}, so its export could not be "
                "compared with it; pass images with objects (--images), or lower detect.score_threshold"
            )
        best_first = sorted(range(len(counts)), key=lambda i: -counts[i])
        self.detector = DetectorForExport(self.model, self.count, config.max_detections).eval()
        self.example = next(batches_of_one_size([self.images[i] for i in best_first], self.count))

    def write(
        self, folder: Path, format: str, calibrate: Sequence[Path], control: AccuracyControl | None = None
    ) -> dict[str, str]:
        outputs = OUTPUTS[: len(self.detector(self.example))]
        return write_traced(
            self.detector, self.example, outputs, folder, format, calibrate, self.preprocess, ignored=COORDINATES,
            metadata=program_metadata(self.spec),
        )  # fmt: skip

    def compare(self, program: Program, exact: bool = True) -> Mapping[str, Any]:
        tolerance = BOX_TOLERANCE if exact else ROUNDED_BOX_TOLERANCE
        return detection_parity(self.detector, program, self.images, self.count, split_batch, tolerance)

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
        return ExportedDetector(program, new, program.manifest.batch_size or 1)
