"""Semantic segmentation, and binary: salient or camouflaged objects.

Shapes: B images of H x W pixels, K classes.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .. import pictures
from ..data import (
    BrokenImage,
    SegmentationSet,
    decode,
    open_segmentation,
    segmentation_eval_loader,
    segmentation_train_loader,
)
from ..data.loaders import channels_of
from ..data.segmentation.transforms import SegmentationTransform
from ..heads.sliding import label_map, segment
from ..heads.upernet import UPerNet, resize
from ..metrics import BinaryMetrics, SegmentationMetrics
from ..recipes import IGNORED, Input, Recipe
from ..recipes import Segment as Config
from .build import build_features, resolve_input, start_whole
from .shown import samples, worst
from .task import Batch, EvalLoader, Measure, Table, TrainLoader

WORST = 6  # images in the picture of the worst
SIDE = 256  # pixels of the long side of what is kept of a prediction
PANELS = ("image", "truth", "prediction")


class Segmentation:
    """What training and evaluation of segmenters share.

    Args:
        val_set: the images to evaluate on.
        input: how images become tensors.
        config: what is segmented, and how it is tested.
    """

    def __init__(self, val_set: SegmentationSet, input: Input, config: Config) -> None:
        self.classes = val_set.classes
        self.val_set = val_set
        self.input = input
        self.config = config
        self.binary = config.kind == "binary"
        self.headline = "s_measure" if self.binary else "miou"
        self.measures: Mapping[str, Measure] = (
            {"s_measure": Measure("S-measure"), "weighted_f": Measure("weighted F"), "mae": Measure("MAE")}
            if self.binary
            else {
                "miou": Measure("mIoU"),
                "pixel_accuracy": Measure("pixel accuracy"),
                "mean_class_accuracy": Measure("mean class accuracy"),
            }
        )

    def predict(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Of each image, at its label map's size, (H, W): the classes, or the probabilities of an object."""
        found = segment(model, batch["image"], batch["sizes"], self.config)
        sizes = [(label.shape[0], label.shape[1]) for label in batch["label"]]
        if self.binary:
            return [resize(p[None], size)[0, 0] for p, size in zip(found, sizes, strict=True)]
        return [label_map(p, size) for p, size in zip(found, sizes, strict=True)]

    def metric(self, device: torch.device) -> "SegmentMetric":
        return SegmentMetric(self.classes, self.binary, device)

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """The classes, the best first."""
        if self.binary:
            return []
        total = sum(row["pixels"] for row in metrics["per_class"])
        ranked = sorted(metrics["per_class"], key=lambda row: -1.0 if row["iou"] is None else row["iou"], reverse=True)
        rows: list[tuple[str | int | float, ...]] = [
            (row["class"], 100 * row["pixels"] / total, _told(row["iou"]), _told(row["accuracy"])) for row in ranked
        ]
        return [Table("Classes", ("class", "share of the pixels (%)", "IoU (%)", "accuracy (%)"), rows)]

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """``confusion.png``, where there are classes, and ``worst.png``: the images with most errors."""
        drawn = []
        if not self.binary:
            drawn.append(folder / "confusion.png")
            pictures.confusion(np.asarray(metrics["confusion"]), self.classes, drawn[-1], unit="pixels")
        items = []
        for mistake in metrics["worst"]:
            raw, truth, name = self.val_set.read(mistake["index"])
            caption = f"{mistake['error']:.1f} % wrong: {self.val_set.id(mistake['index'])}"
            items.append((decode(raw, 3, name=name), truth, _unpacked(mistake["prediction"]), caption))
        if items:
            drawn.append(folder / "worst.png")
            self._drawn(items).save(drawn[-1])
        return drawn

    def samples(self, model: nn.Module, device: torch.device) -> Image.Image | None:
        """Images from all over the validation set, beside the truth and the prediction."""
        transform = SegmentationTransform(self.input, self.config, None)
        items = []
        for row in samples(len(self.val_set)):
            try:
                raw, truth, name = self.val_set.read(row)
                image = transform(decode(raw, channels_of(self.input), name=name), truth, name)["image"][None]
            except BrokenImage:  # the evaluation has just named it
                continue
            batch = {"image": image.to(device), "sizes": torch.tensor([image.shape[-2:]]), "label": [truth]}
            (prediction,) = self.predict(model, batch)
            items.append((decode(raw, 3, name=name), truth, _thumbnail(prediction), self.val_set.id(row)))
        return self._drawn(items) if items else None

    def _drawn(self, items: Sequence[tuple[Image.Image, np.ndarray, np.ndarray, str]]) -> Image.Image:
        """Rows of image, truth and (small) prediction."""
        rows = []
        shown: set[int] = set()
        for image, truth, prediction, _ in items:
            height, width = prediction.shape
            small = image.convert("RGB").resize((width, height))
            maps = (_nearest(truth, (width, height)), prediction)
            if self.binary:
                # A mask holds 0 and 1, a prediction 256 levels.
                panels = [Image.fromarray(255 * (maps[0] == 1).astype(np.uint8)), Image.fromarray(prediction)]
            else:
                panels = [pictures.draw_label_map(small, labels, self.classes, legend=False) for labels in maps]
                shown.update(*(np.unique(labels).tolist() for labels in maps))
            rows.append((small, *panels))
        return pictures.sample_grid(rows, PANELS, [name for *_, name in items], shown - {IGNORED}, self.classes)


class Segment(Segmentation):
    """Training a segmenter on images with a label for each pixel.

    Args:
        recipe: the run. Its data is opened and checked and its model built at once, so that what cannot work fails
            early.

    Raises:
        ValueError: the data, the backbone or the head cannot be used as the recipe says.
    """

    def __init__(self, recipe: Recipe) -> None:
        _check(recipe)
        self.recipe = recipe
        self.train_set = self._open("train")
        val_set = self._open("val")
        backbone = build_features(recipe)
        super().__init__(val_set, resolve_input(recipe.input, backbone.network), recipe.segment)
        self.model = UPerNet(backbone, 1 if self.binary else len(self.classes), self.config)
        start_whole(self.model, recipe, self.classes)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_backend() == "nccl":
            self.model.share_statistics()
        height, width = self.config.crop
        self.images = f"crops of {self.input.channels} x {height} x {width} pixels"
        self.card = {
            "task": "segment",
            "model": recipe.model,
            "model_args": dict(recipe.model_args),
            "classes": list(self.classes),
            "input": asdict(self.input),
            "segment": asdict(self.config),
        }

    def _open(self, split: Literal["train", "val"]) -> SegmentationSet:
        return open_segmentation(self.recipe.data, split, self.recipe.segment)

    def train_loader(self, rank: int, world: int) -> TrainLoader:
        recipe = self.recipe
        return segmentation_train_loader(
            self.train_set,
            self.input,
            recipe.augment,
            self.config,
            recipe.batch_size,
            seed=recipe.seed,
            rank=rank,
            world=world,
        )

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return segmentation_eval_loader(
            self.val_set, self.input, self.config, self.recipe.batch_size, rank=rank, world=world
        )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """At the labels' size: ``cross_entropy``, or ``bce`` and ``iou``; and ``auxiliary``, that head's, weighted."""
        compute = binary_losses if self.binary else class_losses
        logits, auxiliary = model(batch["image"])
        losses = compute(logits, batch["label"])
        if auxiliary is not None:
            theirs = compute(auxiliary, batch["label"]).values()
            losses["auxiliary"] = self.config.aux_weight * torch.stack(list(theirs)).sum()
        return losses

    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        return self.model, (self.input.channels, *self.config.crop)


class SegmentMetric:
    """The numbers of a set, exact on any number of processes, and the images with most errors.

    Args:
        classes: names, by label.
        binary: whether predictions are probabilities of an object.
        device: where the sums live.
    """

    def __init__(self, classes: tuple[str, ...], binary: bool, device: torch.device) -> None:
        self.classes = classes
        self.binary = binary
        self.sums = BinaryMetrics(device) if binary else SegmentationMetrics(len(classes), device)
        # Rows of error, index, height, width, and a thumbnail of the prediction; an error of -1 where there is none.
        self.worst = torch.full((WORST, 4 + SIDE * SIDE), -1.0, device=device)

    def update(self, output: list[Tensor], batch: Batch) -> None:
        for prediction, label, index in zip(output, batch["label"], batch["index"].tolist(), strict=True):
            error = self.sums.update(prediction, label)
            if error <= self.worst[-1, 0]:
                continue
            thumbnail = torch.from_numpy(_thumbnail(prediction))
            row = torch.zeros_like(self.worst[:1])
            row[0, :4] = torch.tensor([error, index, *thumbnail.shape])
            row[0, 4 : 4 + thumbnail.numel()] = thumbnail.flatten()
            self.worst = worst(torch.cat([self.worst, row]), WORST)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        self.sums.reduce(all_reduce)
        self.worst = worst(all_gather(self.worst).reshape(-1, self.worst.shape[1]), WORST)

    def compute(self) -> dict[str, Any]:
        """The sums' numbers, and ``worst``: index, error in percent and the prediction as a small PNG, in base64."""
        out = self.sums.compute()
        if not self.binary:
            out["confusion"] = out["confusion"].tolist()
            for row in out["per_class"]:
                row["class"] = self.classes[row["class"]]
        out["worst"] = []
        for row in self.worst.cpu():
            error, index, height, width = row[:4].tolist()
            if error > 0:
                thumbnail = row[4 : 4 + int(height * width)].view(int(height), int(width))
                out["worst"].append(
                    {"index": int(index), "error": 100 * error, "prediction": _packed(thumbnail.byte().numpy())}
                )
        return out


def class_losses(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Mean cross-entropy of the pixels that have a class; 0 where none has.

    Args:
        logits: (B, K, h, w), resized to the labels.
        label: (B, H, W), 0 to K - 1, or 255.
    """
    logits = resize(logits.float(), label.shape[-2:])
    total = F.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum")
    return {"cross_entropy": total / (label != IGNORED).sum().clamp(min=1)}


def binary_losses(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Binary cross-entropy of the pixels, and of each image 1 - IoU of the probabilities; both means.

    The pair is the common one for salient objects since BASNet (Qin et al., CVPR 2019). An image that is all
    background has an IoU of 1 once nothing is predicted: 1 pixel is added to intersection and union.

    Args:
        logits: (B, 1, h, w), resized to the labels.
        label: (B, H, W), 1 on objects, 0 off them, or 255, which does not count.
    """
    logits = resize(logits.float(), label.shape[-2:])[:, 0]
    known = (label != IGNORED).float()
    target = (label == 1).float()
    bce = F.binary_cross_entropy_with_logits(logits, target, weight=known, reduction="sum")
    probability = logits.sigmoid() * known
    both = (probability * target).sum(dim=(1, 2))
    either = (probability + target - probability * target).sum(dim=(1, 2))
    return {"bce": bce / known.sum().clamp(min=1), "iou": (1 - (both + 1) / (either + 1)).mean()}


def _check(recipe: Recipe) -> None:
    """Raises ValueError where the recipe's numbers cannot work."""
    config = recipe.segment
    if recipe.batch_size < 2:
        raise ValueError(
            f"batch_size={recipe.batch_size}: UPerNet trains on two images a batch or more, since its coarsest pool "
            "leaves BatchNorm one value an image"
        )
    covered = all(0 < step <= side for step, side in zip(config.stride, config.crop, strict=True))
    if config.test == "slide" and not covered:
        raise ValueError(
            f"segment.stride={config.stride} must be from 1 to segment.crop={config.crop}, down and across: windows "
            "further apart would leave pixels out"
        )
    if not config.test_scales or min(config.test_scales) <= 0:
        raise ValueError(f"segment.test_scales={config.test_scales} must be one number above 0, or several, as 1.0")


def _thumbnail(prediction: Tensor) -> np.ndarray:
    """Of classes or probabilities (H, W), uint8 with a long side of 256 at most: the classes, or 255 times p."""
    values = prediction if not prediction.is_floating_point() else (255 * prediction.float()).round()
    small = values.to("cpu", torch.uint8).numpy()
    height, width = small.shape
    scale = min(1.0, SIDE / max(height, width))
    return _nearest(small, (max(1, round(scale * width)), max(1, round(scale * height))))


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map (H, W) resized to (width, height)."""
    return np.array(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _packed(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def _told(percent: float | None) -> str | float:
    return "none" if percent is None else percent
