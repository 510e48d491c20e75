"""Semantic and binary segmentation: training and evaluation.

Shapes: B images of H x W pixels, K classes.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ... import checkpoints
from ...checkpoints import Checkpoint
from ...data.decode import UnreadableImage, channels_of, decode
from ...pictures.confusion import confusion
from ...pictures.drawing import sample_grid
from ...recipe import Input
from ...spec import ModelSpec
from ..build import build_backbone, load_head_checkpoint, resolve_input
from ..samples import check_classes, sample_rows, top_rows
from ..task import Batch, EvalLoader, MetricFormat, Table, TaskType, TrainLoader
from .config import IGNORE_INDEX, SegmentationRecipe, SegmentConfig
from .data.dataset import SegmentationDataset
from .data.loaders import segmentation_eval_loader, segmentation_train_loader
from .data.sources import open_segmentation
from .data.transforms import SegmentationTransform
from .export import SegmenterExport
from .heads.sliding import label_map, predict_probabilities
from .heads.upernet import UPerNet, resize
from .losses import binary_losses, class_losses
from .metrics import BinaryMetrics, SegmentationMetrics
from .pictures import draw_label_map
from .predictor import Segmenter

WORST = 6  # images in the picture of the worst
SIDE = 256  # pixels of the long side of what is kept of a prediction
PANELS = ("image", "truth", "prediction")


class SegmentationEvaluation:
    """What training and evaluation of segmenters share.

    Args:
        val_set: the images to evaluate on.
        input: how images become tensors.
        config: what is segmented, and how it is tested.
    """

    def __init__(self, val_set: SegmentationDataset, input: Input, config: SegmentConfig) -> None:
        self.classes = val_set.classes
        self.val_set = val_set
        self.input = input
        self.config = config
        self.binary = config.is_binary
        self.primary_metric = "s_measure" if self.binary else "miou"
        self.metric_formats: Mapping[str, MetricFormat] = (
            {
                "s_measure": MetricFormat("S-measure"),
                "weighted_f": MetricFormat("weighted F"),
                "mae": MetricFormat("MAE"),
            }
            if self.binary
            else {
                "miou": MetricFormat("mIoU"),
                "pixel_accuracy": MetricFormat("pixel accuracy"),
                "mean_class_accuracy": MetricFormat("mean class accuracy"),
            }
        )

    def predict(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Of each image, at its label map's size, (H, W): the classes, or the probabilities of an object."""
        found = predict_probabilities(model, batch["image"], batch["sizes"], self.config)
        sizes = [(label.shape[0], label.shape[1]) for label in batch["label"]]
        if self.binary:
            return [resize(p[None], size)[0, 0] for p, size in zip(found, sizes, strict=True)]
        return [label_map(p, size) for p, size in zip(found, sizes, strict=True)]

    def metric(self, device: torch.device) -> "SegmentationMetric":
        return SegmentationMetric(self.classes, self.binary, device)

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
            confusion(np.asarray(metrics["confusion"]), self.classes, drawn[-1], unit="pixels")
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
        for row in sample_rows(len(self.val_set)):
            try:
                raw, truth, name = self.val_set.read(row)
                image = transform(decode(raw, channels_of(self.input), name=name), truth, name)["image"][None]
            except UnreadableImage:  # the evaluation has just named it
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
                panels = [draw_label_map(small, labels, self.classes, legend=False) for labels in maps]
                shown.update(*(np.unique(labels).tolist() for labels in maps))
            rows.append((small, *panels))
        return sample_grid(rows, PANELS, [name for *_, name in items], shown - {IGNORE_INDEX}, self.classes)


class SegmentationTraining(SegmentationEvaluation):
    """Training a segmenter on images with a label for each pixel.

    Args:
        recipe: the run. Its data is opened and checked and its model built at once, so that what cannot work fails
            early.

    Raises:
        ValueError: the data, the backbone or the head cannot be used as the recipe says.
    """

    def __init__(self, recipe: SegmentationRecipe) -> None:
        _check(recipe)
        self.recipe = recipe
        self.train_set = self._open("train")
        val_set = self._open("val")
        spec = ModelSpec(
            "segment", recipe.model, val_set.classes, recipe.input, dict(recipe.model_args), recipe.segment
        )
        checkpoint = None if recipe.checkpoint is None else checkpoints.load(Path(recipe.checkpoint))
        self.model = build_model(spec, recipe.pretrained, checkpoint)
        network: Any = self.model.backbone.network
        if recipe.engine.grad_checkpointing:
            network.set_grad_checkpointing(True)
        super().__init__(val_set, resolve_input(recipe.input, network), recipe.segment)
        self.spec = replace(spec, input=self.input)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_backend() == "nccl":
            self.model.share_statistics()
        height, width = self.config.crop
        self.input_description = f"crops of {self.input.channels} x {height} x {width} pixels"

    def _open(self, split: Literal["train", "val"]) -> SegmentationDataset:
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


class SegmentationMetric:
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
            self.worst = top_rows(torch.cat([self.worst, row]), WORST)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        self.sums.reduce(all_reduce)
        self.worst = top_rows(all_gather(self.worst).reshape(-1, self.worst.shape[1]), WORST)

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


def _check(recipe: SegmentationRecipe) -> None:
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


def build_model(spec: ModelSpec, pretrained: bool = False, checkpoint: Checkpoint | None = None) -> UPerNet:
    """A segmenter from its spec; see :class:`smt_vision.tasks.task.TaskType`.

    Raises:
        ValueError: The model or the head cannot be built, or the checkpoint does not fit.
    """
    backbone = build_backbone(spec, pretrained, checkpoint)
    model = UPerNet(backbone, 1 if spec.head.is_binary else len(spec.classes), spec.head)
    load_head_checkpoint(model, spec, checkpoint)
    return model


def open_evaluation(
    model: Segmenter, data: str, input: Input, batch_size: int, rank: int, world: int
) -> tuple[SegmentationEvaluation, EvalLoader]:
    """The validation images of a dataset with the model's classes."""
    images = open_segmentation(data, "val", model.config)
    check_classes(images, model.classes)
    loader = segmentation_eval_loader(images, input, model.config, batch_size, rank=rank, world=world)
    return SegmentationEvaluation(images, input, model.config), loader


def flops_model(model: nn.Module, spec: ModelSpec) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model, at the size of its training crops."""
    return model, (spec.input.channels, *spec.head.crop)


TASK = TaskType(build_model, SegmentationTraining, open_evaluation, flops_model, Segmenter, SegmenterExport)
