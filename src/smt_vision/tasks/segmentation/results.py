"""A segmenter's results as files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..results import DRAWN, decode_source, result_names, save_image, with_sources
from .config import IGNORE_INDEX, SegmentConfig
from .pictures import draw_label_map

if TYPE_CHECKING:
    from .predictor import SegmentationResult

LABELS, MAPS = "labels", "maps"


def write_label_maps(
    results: Iterable["SegmentationResult"],
    images: Sequence[str | Path | Image.Image] | None,
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
