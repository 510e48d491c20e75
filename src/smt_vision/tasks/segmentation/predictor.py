"""Prediction with segmenters. Shapes: an image of H x W pixels, K classes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.padding import pad_together
from ..predictor import Predictor, PreparedImage, not_finite
from ..results import Source, save_image
from .data.transforms import segmentation_eval_transform
from .heads.sliding import segment
from .results import LABELS, MAPS, SegmentationResult, draw_result, stored_map, write_label_maps

MAX_CLASSES = 4  # classes per image in a table row


class Segmenter(Predictor[SegmentationResult]):
    """Predicts the class of each pixel of images.

    The model maps (B, C, H, W), H and W multiples of 32, to (B, K, H, W) logits; K is 1 for a binary segmenter.
    """

    kind = "a segmenter"
    columns = ("fraction of pixels",)
    options = frozenset({"draw"})

    @property
    def input_description(self) -> str:
        config = self.config
        sides = f"short side {config.short_side} px, at most {config.long_side}" if config.short_side else "as stored"
        if config.squash:
            sides = f"{config.short_side} x {config.short_side} px"
        windows = "" if config.test == "whole" else f" in windows of {config.crop[0]} x {config.crop[1]}"
        scales = ", ".join(f"{scale:g}" for scale in config.test_scales)
        return f"{sides}, {config.test}{windows}, scales {scales}{', flipped' if config.test_flip else ''}"

    def save(
        self,
        results: Iterable[SegmentationResult],
        folder: str | Path,
        *,
        images: Sequence[Source] | None = None,
        draw: bool = True,
        **options: Any,
    ) -> list[Path]:
        """Write one map per image, and the images with classes drawn over them to ``drawn/``.

        Label maps are written to ``labels/`` in the format of the training labels: with ``zero_is_ignored``, class k is
        stored as k + 1. A binary segmenter writes to ``maps/``, probabilities as gray levels 0 to 255.

        Args:
            results: Results of this segmenter; may be an iterator.
            folder: Output folder; created if necessary.
            images: Images of the results, in order. If given, file names are checked before the first result is
                computed.
            draw: Whether to write images with drawn classes.
            options: Unused.

        Raises:
            ValueError: An image is given twice, or two have the same output path.
        """
        return write_label_maps(
            results, images, Path(folder), classes=self.classes, config=self.config, input=self.input, draw=draw
        )

    @property
    def frame_maps(self) -> str:
        return MAPS if self.config.is_binary else LABELS

    def save_frame(self, result: SegmentationResult, path: Path) -> None:
        save_image(stored_map(result, self.config), path)

    def draw(self, result: SegmentationResult, **options: Any) -> Image.Image:
        return draw_result(result, self.classes, self.input, legend=False)

    def row(self, result: SegmentationResult, **options: Any) -> tuple[str, ...]:
        largest = list(self.class_fractions(result).items())[:MAX_CLASSES]
        return (", ".join(f"{label} {100 * fraction:.1f} %" for label, fraction in largest),)

    def to_dict(self, result: SegmentationResult, **options: Any) -> dict[str, Any]:
        return {"id": result.id, "class_fractions": dict(self.class_fractions(result)), "error": result.error}

    def class_fractions(self, result: SegmentationResult) -> Mapping[str, float]:
        """Fraction of the pixels per class in the image, largest first; for a binary segmenter, of the object."""
        if result.scores is not None:
            return {self.classes[0]: float((result.scores >= 0.5).float().mean())}
        if result.class_ids is None:
            return {}
        counts = np.bincount(result.class_ids.numpy().ravel(), minlength=len(self.classes)) / result.class_ids.numel()
        return {self.classes[k]: float(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k]}

    def _make_transform(self) -> Callable[[Any], Tensor]:
        return segmentation_eval_transform(self.input, self.config)

    @torch.inference_mode()
    def _predict_batch(self, batch: list[PreparedImage], **options: Any) -> Iterator[SegmentationResult]:
        pixels, sizes = pad_together([image.pixels for image in batch])
        maps = segment(self.model, pixels.to(self.device), sizes, [image.size for image in batch], self.config)
        for image, values in zip(batch, maps, strict=True):
            if values is None:
                yield self._unreadable(image.source, image.id, not_finite(image.id))
                continue
            class_ids = None if self.config.is_binary else values.cpu().long()
            scores = values.cpu() if self.config.is_binary else None
            yield SegmentationResult(image.source, image.id, image.size, class_ids, scores)

    def _unreadable(self, source: Source, id: str, error: str) -> SegmentationResult:
        return SegmentationResult(source, id, (0, 0), None, None, error)
