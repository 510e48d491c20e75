"""Prediction with detectors. Shapes: N detections of an image of H x W pixels, K classes."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...bounds import Fraction, checked
from ...data.decode import decoded
from ...data.padding import pad_together
from ...data.transforms import RegionPixels
from ..predictor import Predictor, PreparedImage, not_finite
from ..results import Source
from .box_masks import BoxMasks
from .config import DRAWN_SCORE
from .data.transforms import detection_eval_transform
from .heads.detectors import is_finite, run_detector, to_original
from .results import Detections, draw_result, segmentations, write_detections
from .tiles import detect_image


class Detector(Predictor[Detections]):
    """Detects objects in images. The model is a :class:`smt_vision.tasks.detection.heads.detectors.Detector`."""

    kind = "a detector"
    columns = ("objects",)
    options = frozenset({"score", "annotations", "draw"})

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category ids, by class index; 1 to K if the model spec has none."""
        return tuple(self.spec.category_ids or range(1, len(self.classes) + 1))

    @property
    def input_description(self) -> str:
        side, longest, tiles = self.config.short_side, self.config.long_side, self.config.tiles
        text = f"short side {side} px, at most {longest}, {self.input.interpolation}"
        return f"{text}, tiles of {tiles} px overlapping by {self.config.tile_overlap:g}" if tiles else text

    @checked
    def save(
        self,
        results: Iterable[Detections],
        folder: str | Path,
        *,
        images: Sequence[Source] | None = None,
        score: Fraction = DRAWN_SCORE,
        annotations: str | Path | None = None,
        draw: bool = True,
        **options: Any,
    ) -> list[Path]:
        """Write detections as files, and images with drawn detections to ``drawn/``.

        ``detections.json`` has all detections in COCO's results format; ``annotations.json`` is a COCO dataset of those
        of at least ``score``, e.g. to correct them in a labeling tool.

        Args:
            results: Detections of this detector; may be an iterator.
            folder: Output folder; created if necessary.
            images: Images of the results, in order. If given, file names are checked before the first result is
                computed.
            score: Detections with a lower score are not drawn.
            annotations: COCO annotation file with the ids of the images and categories, see
                :func:`smt_vision.tasks.detection.results.coco_ids`; by default images are numbered from 1.
            draw: Whether to write images with drawn detections.
            options: Unused.

        Raises:
            ValueError: An image is given twice, two have the same output path, or one is missing from the annotations
                or ambiguous in them.
        """
        return write_detections(
            results, images, Path(folder), classes=self.classes, category_ids=self.category_ids, score=score,
            input=self.input, draw=draw,
            annotations=None if annotations is None else Path(annotations),
        )  # fmt: skip

    def check_options(self, score: float = DRAWN_SCORE, **options: Any) -> None:
        """Raise a ValueError for a score below ``detect.score_threshold``; 0 means all detections."""
        if 0 < score < self.config.score_threshold:
            raise ValueError(
                f"score={score:g} is below detect.score_threshold={self.config.score_threshold:g}, the lowest score of "
                f"this detector's results; set that to {score:g}, too (--detect.score_threshold {score:g})"
            )

    def draw(self, result: Detections, score: float = DRAWN_SCORE, **options: Any) -> Image.Image:
        return draw_result(result, score, self.classes, self.input, legend=False)

    def row(self, result: Detections, score: float = DRAWN_SCORE, **options: Any) -> tuple[str, ...]:
        counts = Counter(result.above(score).labels)
        return (", ".join(f"{n} {label}" for label, n in counts.most_common()) or "none",)

    def to_dict(self, result: Detections, score: float = DRAWN_SCORE, **options: Any) -> dict[str, Any]:
        kept = result.above(score)
        objects = [
            {"label": label, "class_id": class_id, "score": value, "box": box, **segmentation}
            for label, class_id, value, box, segmentation in zip(
                kept.labels, kept.class_ids.tolist(), kept.scores.tolist(), kept.boxes.tolist(),
                segmentations(kept), strict=True,
            )
        ]  # fmt: skip
        return {"id": result.id, "objects": objects, "error": result.error}

    def _make_transform(self) -> Callable[[Any], Tensor]:
        return detection_eval_transform(self.input, self.config)

    def _pixels(self, image: Any) -> Tensor:
        # The tiles of an image are made when they are needed: they may need much more memory than the image.
        if not self.config.tiles:
            return super()._pixels(image)
        image = decoded(image)
        return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))

    def _picture(self, image: PreparedImage) -> Image.Image | Tensor:
        return image.pixels if self.input.has_bands else Image.fromarray(image.pixels.numpy())

    @torch.inference_mode()
    def _predict_batch(
        self, batch: list[PreparedImage], score: float | None = None, **options: Any
    ) -> Sequence[Detections]:
        originals = torch.tensor([image.size for image in batch])
        if self.config.tiles:
            pixels, sizes = RegionPixels(self.input), originals
            outputs = [
                detect_image(self.model, self._picture(image), pixels, self.config, self.device) for image in batch
            ]
        else:
            images, sizes = pad_together([image.pixels for image in batch])
            outputs = run_detector(self.model, images.to(self.device), sizes)
        outputs = [{name: value.cpu() for name, value in output.items()} for output in outputs]
        outputs = to_original(outputs, sizes, originals)
        found = [
            self._unreadable(image.source, image.id, not_finite(image.id))
            if not is_finite(output)
            else Detections(
                image.source,
                image.id,
                image.size,
                output["boxes"],
                output["scores"],
                output["labels"],
                BoxMasks(output["masks"], output["boxes"], image.size) if "masks" in output else None,
                tuple(self.classes[k] for k in output["labels"].tolist()),
            )
            for image, output in zip(batch, outputs, strict=True)
        ]
        return found if score is None else [each.above(score) for each in found]

    def _unreadable(self, source: Source, id: str, error: str) -> Detections:
        return Detections(
            source, id, (0, 0), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), None, (), error
        )
