"""Segmentation results and the files that hold them. Shapes: an image of H x W pixels, K classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...recipe import Input
from ..results import DRAWN, Source, decode_source, result_names, save_drawn, save_image, with_sources
from .config import IGNORE_INDEX, SegmentConfig
from .pictures import draw_label_map

LABELS, MAPS = "labels", "maps"


@dataclass(frozen=True)
class SegmentationResult:
    """Predicted classes of an image's pixels, on the CPU.

    Args:
        source: Image as passed by the caller.
        id: Path of the image, or its index among the passed images.
        size: Height H and width W of the stored image.
        class_ids: Class indices (H, W) int64, 0 to K - 1; ``None`` for a binary segmenter.
        scores: Object probabilities (H, W) float32 in [0, 1]; ``None`` unless the segmenter is binary.
        error: Reason why the image could not be read; ``class_ids`` and ``scores`` are then ``None``.
    """

    source: Source
    id: str
    size: tuple[int, int]
    class_ids: Tensor | None
    scores: Tensor | None
    error: str | None = None


def write_label_maps(
    results: Iterable[SegmentationResult],
    images: Sequence[Source] | None,
    folder: Path,
    *,
    classes: Sequence[str],
    config: SegmentConfig,
    input: Input,
    draw: bool,
) -> list[Path]:
    """See :meth:`smt_vision.tasks.segmentation.predictor.Segmenter.save`."""
    results, images = with_sources(results, images)
    maps = folder / (MAPS if config.is_binary else LABELS)
    for result, name in zip(results, result_names(images), strict=True):
        if result.error is not None:
            continue
        save_image(stored_map(result, config), maps / name)
        if draw:
            save_drawn(lambda: draw_result(result, classes, input), folder / DRAWN / name)  # noqa: B023
    return [maps, *([folder / DRAWN] if draw else [])]


def stored_map(result: SegmentationResult, config: SegmentConfig) -> Image.Image:
    """The label map of a result in the format of the training labels, or the probabilities of a binary segmenter."""
    if result.class_ids is not None:
        stored = result.class_ids.to(torch.uint8) + config.zero_is_ignored
    else:
        assert result.scores is not None
        stored = (255 * result.scores).round().to(torch.uint8)
    return Image.fromarray(stored.numpy())


def draw_result(result: SegmentationResult, classes: Sequence[str], input: Input, legend: bool = True) -> Image.Image:
    """A readable image with its classes drawn over it; of a binary segmenter, the pixels of a score of at least 0.5."""
    label = result.class_ids
    if label is None:
        assert result.scores is not None
        label = torch.where(result.scores >= 0.5, 0, IGNORE_INDEX)
    return draw_label_map(decode_source(result.source, input), label, classes, legend=legend)
