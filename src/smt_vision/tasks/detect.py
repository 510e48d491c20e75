"""Detection and instance segmentation."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import pictures
from ..data import (
    BrokenImage,
    DetectionSet,
    DetectionTarget,
    channels_of,
    decode,
    detection_eval_loader,
    detection_eval_transform,
    detection_train_loader,
    draw_masks,
    open_detection,
    pad_together,
)
from ..data.view import View
from ..heads.detectors import build_detector, counted, detect, to_original
from ..metrics.detection import DetectionMetrics, run_lengths
from ..recipes import Detect as Config
from ..recipes import Input, Recipe
from .build import build_features, resolve_input, start_whole
from .shown import samples
from .task import Batch, EvalLoader, Measure, Table, TrainLoader

SAMPLE_SIDE = 480  # pixels of the long side of each
SAMPLE_SCORE = 0.4  # detections below it are not drawn
COCO_DETECTIONS = 100  # of an image, that COCO's numbers look at
MASKS_AT_ONCE = 64  # of an image's size, in memory


class Detection:
    """What training and evaluation of detectors share.

    Args:
        val_set: the images to evaluate on.
        input: how images become tensors.
        config: the head, sizes and thresholds.
    """

    def __init__(self, val_set: DetectionSet, input: Input, config: Config) -> None:
        self.classes = val_set.classes
        self.val_set = val_set
        self.input = input
        self.config = config
        self.kinds = ("mask", "box") if config.has_masks else ("box",)
        self.headline = f"{self.kinds[0]}_ap"
        self.measures: Mapping[str, Measure] = {
            f"{kind}_{number}": Measure(f"{kind} {label}")
            for kind in self.kinds
            for number, label in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"), ("ar", "AR"))
        }

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Tensor]]:
        """Detections in pixels of the images that the model saw; see :class:`smt_vision.heads.detectors.Detector`."""
        return detect(model, batch["image"], batch["sizes"])

    def metric(self, device: torch.device) -> "DetectMetric":
        return DetectMetric(self.val_set, self.config, device)

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """AP and AR by the size of objects, and AP of each class, best first."""
        sizes = [
            (f"{kind} {label}", *(_told(metrics[f"{kind}_{number}_{size}"]) for size in ("small", "medium", "large")))
            for kind in self.kinds
            for number, label in (("ap", "AP"), ("ar", "AR"))
        ]
        numbers = [f"{kind}_{number}" for kind in self.kinds for number in ("ap", "ap50")]
        ranked = sorted(metrics["per_class"], key=lambda row: -(row[self.headline] or 0.0))
        classes = [(row["class"], row["count"], *(_told(row[number]) for number in numbers)) for row in ranked]
        return [
            Table("By size of object", ("", "below 32 x 32 (%)", "to 96 x 96 (%)", "above (%)"), sizes),
            Table("Classes", ("class", "objects", *(self.measures[number].title for number in numbers)), classes),
        ]

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """None: the samples of the best epoch show what there is to see."""
        return []


class Detect(Detection):
    """Training a detector on images of objects.

    Args:
        recipe: the run. Its data is opened and checked and its model built at once, so that what cannot work fails
            early.

    Raises:
        ValueError: the data, the backbone or the head cannot be used as the recipe says.
    """

    def __init__(self, recipe: Recipe) -> None:
        if recipe.engine.compile:
            raise ValueError(
                "engine.compile=true does not work with detectors: the number of regions differs from image to image, "
                "and each would be compiled anew; set it to false"
            )
        self.recipe = recipe
        self.train_set = self._open("train")
        val_set = self._open("val")
        if self.train_set.classes != val_set.classes:
            raise ValueError(
                f"{recipe.data}: the training images have the classes {', '.join(self.train_set.classes)}, the "
                f"validation images {', '.join(val_set.classes)}; give both the same categories, ids included"
            )
        backbone = build_features(recipe)
        super().__init__(val_set, resolve_input(recipe.input, backbone.network), recipe.detect)
        self.model = build_detector(backbone, len(self.classes), recipe.detect)
        start_whole(self.model, recipe, self.classes)
        self.images = (
            f"{recipe.input.channels} channels, short side {self.config.short_side} pixels, "
            f"long side at most {self.config.long_side}"
        )
        self.card = {
            "task": "detect",
            "model": recipe.model,
            "model_args": dict(recipe.model_args),
            "classes": list(self.classes),
            "category_ids": list(self.val_set.category_ids),
            "input": asdict(self.input),
            "detect": asdict(self.config),
        }

    def _open(self, split: Literal["train", "val"]) -> DetectionSet:
        images = open_detection(self.recipe.data, split)
        if self.recipe.detect.has_masks:
            images.require_masks()
        return images

    def train_loader(self, rank: int, world: int) -> TrainLoader:
        recipe = self.recipe
        return detection_train_loader(
            self.train_set,
            self.input,
            recipe.augment,
            recipe.detect,
            recipe.batch_size,
            seed=recipe.seed,
            rank=rank,
            world=world,
        )

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return detection_eval_loader(
            self.val_set, self.input, self.config, self.recipe.batch_size, rank=rank, world=world
        )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return model(batch["image"], batch["sizes"], batch["targets"])

    @torch.inference_mode()
    def samples(self, model: nn.Module, device: torch.device) -> Image.Image | None:
        """Images from all over the validation set, the truth beside the detections of a score of 0.4 or more."""
        transform = detection_eval_transform(self.input, self.config)
        panels, names, shown = [], [], set[int]()
        for row in samples(len(self.val_set)):
            raw, target, name = self.val_set.read(row)
            try:
                picture = decode(raw, channels_of(self.input), name=name)
            except BrokenImage:  # the evaluation has just named it, as it has an image of another size than is said
                continue
            if (picture.height, picture.width) != target["size"]:
                continue
            image, sizes = pad_together([transform(picture)])
            (found,) = detect(model, image.to(device), sizes)
            certain = found["scores"] >= SAMPLE_SCORE
            own = {key: value[certain] for key, value in found.items()}
            (own,) = to_original([own], sizes, torch.tensor([target["size"]]))
            own = {key: value.cpu() for key, value in own.items()}
            truth = _truth(target, masks=self.config.has_masks)
            panels.append(
                [
                    pictures.draw_detections(picture, **objects, classes=self.classes, legend=False, side=SAMPLE_SIDE)
                    for objects in (truth, own)
                ]
            )
            names.append(self.val_set.id(row))
            shown |= {*truth["labels"].tolist(), *own["labels"].tolist()}
        if not panels:
            return None
        return pictures.sample_grid(panels, ("truth", "prediction"), names, shown, self.classes)

    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        return counted(self.model, self.input.channels, self.config)


class DetectMetric:
    """Average precision over a set, exact on any number of processes.

    Args:
        images: the set, with the truth.
        config: whether there are masks, and how many detections an image may have.
        device: where processes exchange what they found.
    """

    def __init__(self, images: DetectionSet, config: Config, device: torch.device) -> None:
        self.image_ids = images.image_ids.tolist()
        self.found = DetectionMetrics(
            images.ground_truth(),
            images.classes,
            images.category_ids,
            masks=config.has_masks,
            max_detections=max(config.max_detections, COCO_DETECTIONS),
            device=device,
        )

    def update(self, output: list[dict[str, Tensor]], batch: Batch) -> None:
        rows = zip(output, batch["sizes"], batch["original"], batch["index"].tolist(), strict=True)
        for detections, size, original, row in rows:
            masks: list[bytes] = []
            boxes: list[Tensor] = []
            for start in range(0, max(len(detections["boxes"]), 1), MASKS_AT_ONCE):
                some = {key: value[start : start + MASKS_AT_ONCE] for key, value in detections.items()}
                (whole,) = to_original([some], size[None], original[None])
                boxes.append(whole["boxes"])
                masks += run_lengths(whole["masks"]) if self.found.masks else []
            self.found.update(
                self.image_ids[row],
                torch.cat(boxes).cpu(),
                detections["scores"].cpu(),
                detections["labels"].cpu(),
                masks,
            )

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        self.found.reduce(all_gather)

    def compute(self) -> dict[str, Any]:
        return self.found.compute()


def _truth(target: DetectionTarget, masks: bool) -> dict[str, Any]:
    """An image's objects as :func:`smt_vision.pictures.draw_detections` takes them, crowds left out."""
    keep = np.flatnonzero(~target["crowd"])
    truth: dict[str, Any] = {"boxes": target["boxes"][keep], "labels": target["labels"][keep]}
    if masks:
        stored, (height, width) = target["masks"] or [], target["size"]
        truth["masks"] = draw_masks([stored[i] for i in keep], View(0, 0, width, height, width, height), height, width)
    return truth


def _told(percent: float | None) -> str | float:
    return "no objects" if percent is None else percent
