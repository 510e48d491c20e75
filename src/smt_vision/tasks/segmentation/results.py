"""A segmenter's results, and as files. Shapes: an image of H x W pixels, K classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..results import DRAWN, Source, decode_source, result_names, save_image, with_sources
from .config import IGNORE_INDEX, SegmentConfig
from .pictures import draw_label_map

LABELS, MAPS = "labels", "maps"


@dataclass(frozen=True)
class SegmentationResult:
    """The classes of an image's pixels; on the CPU.

    Args:
        source: The image as given.
        id: The image's path, or its index among the images given.
        size: H and W as stored.
        class_ids: (H, W) int64, 0 to K - 1; ``None`` for a binary segmenter.
        scores: For a binary segmenter, (H, W) float32 in [0, 1], the probability of an object.
        error: Why the image could not be read; there is neither then.
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
) -> list[Path]:
    """See :meth:`smt_vision.tasks.segmentation.predictor.Segmenter.save`."""
    results, images = with_sources(results, images)
    maps = folder / (MAPS if config.is_binary else LABELS)
    for result, name in zip(results, result_names(images), strict=True):
        if result.error is not None:
            continue
        if result.class_ids is not None:
            label = result.class_ids
            stored = (label + config.zero_is_ignored).to(torch.uint8)
        else:
            assert result.scores is not None
            label = torch.where(result.scores >= 0.5, 0, IGNORE_INDEX)
            stored = (255 * result.scores).round().to(torch.uint8)
        save_image(Image.fromarray(stored.numpy()), maps / name)
        save_image(draw_label_map(decode_source(result.source), label, classes), folder / DRAWN / name)
    return [maps, folder / DRAWN]
