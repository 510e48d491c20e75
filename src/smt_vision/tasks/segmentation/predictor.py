"""Segmenters in use. Shapes: an image of H x W pixels, K classes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.padding import pad_together
from ..predictor import Predictor, PreparedImage
from ..results import Source
from .data.transforms import segmentation_eval_transform
from .heads.sliding import label_map, predict_probabilities
from .heads.upernet import resize
from .results import SegmentationResult, write_label_maps

LISTED = 4  # classes of a label map that a table lists


class Segmenter(Predictor[SegmentationResult]):
    """A segmenter, ready for use.

    Its model maps (B, C, H, W), multiples of 32, to (B, K, H, W) logits; K is 1 for a binary segmenter.
    """

    kind = "a segmenter"
    columns = ("fraction of pixels",)

    @property
    def input_description(self) -> str:
        config = self.config
        sides = f"short side {config.short_side} px, at most {config.long_side}" if config.short_side else "as stored"
        windows = "" if config.test == "whole" else f" in windows of {config.crop[0]} x {config.crop[1]}"
        scales = ", ".join(f"{scale:g}" for scale in config.test_scales)
        return f"{sides}, {config.test}{windows}, scales {scales}{', flipped too' if config.test_flip else ''}"

    def save(
        self,
        results: Iterable[SegmentationResult],
        folder: str | Path,
        *,
        images: Sequence[Source] | None = None,
        **options: Any,
    ) -> list[Path]:
        """Write a map per image, and drawn copies into ``drawn/``.

        Label maps go into ``labels/``, stored as the training labels are (of ADE20K's kind, one more than the class);
        maps of binary segmenters go into ``maps/``, probabilities as gray levels 0 to 255.

        Args:
            results: What the segmenter returned, or an iterator over it.
            folder: Created if necessary.
            images: The images that ``results`` belong to, in order, for an iterator: names are then checked first.
            options: No other option matters here.

        Raises:
            ValueError: Two images share a name.
        """
        return write_label_maps(results, images, Path(folder), classes=self.classes, config=self.config)

    def row(self, result: SegmentationResult, **options: Any) -> tuple[str, ...]:
        parts = list(self.class_fractions(result).items())[:LISTED]
        return (", ".join(f"{label} {100 * part:.1f} %" for label, part in parts),)

    def to_dict(self, result: SegmentationResult, **options: Any) -> dict[str, Any]:
        return {"id": result.id, "class_fractions": dict(self.class_fractions(result)), "error": result.error}

    def class_fractions(self, result: SegmentationResult) -> Mapping[str, float]:
        """Fraction of the pixels per class that occurs, largest first; for a binary segmenter, of the object."""
        if result.scores is not None:
            return {self.classes[0]: float((result.scores >= 0.5).float().mean())}
        if result.class_ids is None:
            return {}
        counts = np.bincount(result.class_ids.numpy().ravel(), minlength=len(self.classes)) / result.class_ids.numel()
        return {self.classes[k]: float(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k]}

    def _make_transform(self) -> Callable[[Image.Image], Tensor]:
        return segmentation_eval_transform(self.input, self.config)

    @torch.inference_mode()
    def _predict_batch(self, batch: list[PreparedImage], **options: Any) -> Sequence[SegmentationResult]:
        pixels, sizes = pad_together([image.pixels for image in batch])
        probabilities = predict_probabilities(self.model, pixels.to(self.device), sizes, self.config)
        out = []
        for image, own in zip(batch, probabilities, strict=True):
            class_ids = scores = None
            if self.config.is_binary:
                scores = resize(own[None], image.size)[0, 0].cpu()
            else:
                class_ids = label_map(own, image.size).cpu()
            out.append(SegmentationResult(image.source, image.id, image.size, class_ids, scores))
        return out

    def _unreadable(self, source: Source, id: str, error: str) -> SegmentationResult:
        return SegmentationResult(source, id, (0, 0), None, None, error)
