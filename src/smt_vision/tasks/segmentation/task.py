"""Semantic and binary segmentation: training and evaluation.

Shapes: B images of H x W pixels, K classes.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...checkpoints import Checkpoint
from ...data.decode import UnreadableImage, decode_for_resize, decode_picture
from ...data.fingerprint import UsedImages
from ...data.subset import held_out_in_training
from ...files import write_atomic
from ...pictures.drawing import sample_grid
from ...pictures.style import EVAL, TRAIN
from ...recipe import Input
from ...spec import ModelSpec
from ...text import get_logger
from ..bootstrap import as_interval, percentile_interval, resampled_counts
from ..build import build_backbone, initial_weights, load_head_checkpoint, resolve_input, set_grad_checkpointing
from ..class_weights import class_weights
from ..classes import with_classes
from ..distill import Distillation, with_teacher
from ..processes import share_statistics
from ..samples import gather_rows, sample_rows, top_rows, warn_not_finite, with_float64
from ..splits import held_out_fold, open_splits
from ..task import Batch, EvalLoader, MetricFormat, Table, TaskType, TrainLoader
from .config import IGNORE_INDEX, SegmentationRecipe, SegmentConfig
from .data.dataset import SegmentationDataset
from .data.loaders import segmentation_eval_loader, segmentation_train_loader
from .data.sources import SegmentationSplit, open_segmentation
from .data.transforms import SegmentationTransform
from .export import SegmenterExport
from .heads.network import SegmentationNetwork
from .heads.sliding import segment
from .losses import binary_losses, class_losses, dice_loss
from .metrics import BINARY_METRICS, BinaryMetrics, SegmentationMetrics
from .pictures import draw_label_map
from .predictor import Segmenter

log = get_logger(__name__)
WORST = 6  # images in worst.png
THUMBNAIL_SIDE = 256  # maximum long side of the stored predictions in pixels
PANELS = ("image", "truth", "prediction")


class SegmentationEvaluation:
    """Evaluation of segmenters, during training and after it.

    Args:
        val_set: Validation images.
        input: Interpolation, mean and standard deviation.
        config: Segmentation kind and test-time options.
    """

    def __init__(self, val_set: SegmentationDataset, input: Input, config: SegmentConfig) -> None:
        self.classes = val_set.classes
        self.val_set = val_set
        self.input = input
        self.config = config
        self.binary = config.is_binary
        self.primary_metric = "s_measure" if self.binary else "miou"
        self.metric_formats: Mapping[str, MetricFormat] = (
            {name: MetricFormat(label) for name, label in BINARY_METRICS.items()}
            if self.binary
            else {
                "miou": MetricFormat("mIoU"),
                "pixel_accuracy": MetricFormat("pixel accuracy"),
                "mean_class_accuracy": MetricFormat("mean class accuracy"),
            }
        )

    def predict(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """Class indices or object probabilities ``(H, W)`` per image, at the size of its label map; ``None`` if they
        are not finite."""
        originals = [(label.shape[0], label.shape[1]) for label in batch["label"]]
        return segment(model, batch["image"], batch["sizes"], originals, self.config)

    def metric(self, device: torch.device, resamples: int = 0) -> "SegmentationMetric":
        return SegmentationMetric(self.classes, self.binary, device, resamples)

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """A table of the classes, sorted by IoU from high to low."""
        if self.binary:
            return []
        total = sum(row["pixels"] for row in metrics["per_class"])
        ranked = sorted(metrics["per_class"], key=lambda row: -1.0 if row["iou"] is None else row["iou"], reverse=True)
        rows: list[tuple[str | int | float, ...]] = [
            (row["class"], 100 * row["pixels"] / total, _table_value(row["iou"]), _table_value(row["accuracy"]))
            for row in ranked
        ]
        return [Table("Classes", ("class", "pixels (%)", "IoU (%)", "accuracy (%)"), rows)]

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """``confusion.png``, or of binary segmentation ``thresholds.png``: precision, recall, F- and E-measure; and
        ``worst.png``: the images with the largest errors."""
        from ...pictures.confusion import confusion  # imported late: it imports matplotlib

        files = []
        if not self.binary:
            files.append(folder / "confusion.png")
            confusion(np.asarray(metrics["confusion"]), self.classes, files[-1], unit="pixels")
        elif "curves" in metrics:  # not of metrics that an earlier version computed
            files.append(folder / "thresholds.png")
            _draw_thresholds(metrics["curves"], files[-1])
        items = []
        for entry in metrics["worst"]:
            caption = f"{entry['error']:.1f} % wrong: {self.val_set.id(entry['index'])}"
            try:
                raw, truth, name = self.val_set.read(entry["index"])
                picture = decode_picture(raw, self.input, name=name)
            except (UnreadableImage, OSError) as error:  # it could be read in the evaluation
                log.warning("left out of %s: %s", folder / "worst.png", error)
                continue
            items.append(_sample(picture, truth, _decode_png(entry["prediction"]), caption))
        if items:
            files.append(folder / "worst.png")
            write_atomic(files[-1], lambda part: self._grid(items).save(part))
        return files

    def samples(self, model: nn.Module, device: torch.device) -> Image.Image | None:
        """A few validation images with ground truth and prediction, evenly spaced over the dataset."""
        transform = SegmentationTransform(self.input, self.config, None)
        items = []
        for row in sample_rows(len(self.val_set)):
            try:
                raw, truth, name = self.val_set.read(row)
                image = transform(decode_for_resize(raw, self.input, name=name), truth, name)["image"][None]
            except UnreadableImage:  # already reported by the evaluation
                continue
            batch = {"image": image.to(device), "sizes": torch.tensor([image.shape[-2:]]), "label": [truth]}
            (prediction,) = self.predict(model, batch)
            if prediction is None:
                continue
            picture = decode_picture(raw, self.input, name=name)
            items.append(_sample(picture, truth, _thumbnail(prediction), self.val_set.id(row)))
        return self._grid(items) if items else None

    def _grid(self, items: Sequence["_Sample"]) -> Image.Image:
        """A row per sample."""
        rows = []
        legend: set[int] = set()
        for small, truth, prediction, _ in items:
            maps = (truth, prediction)
            if self.binary:
                # The mask has values 0 and 1, the prediction 256 levels.
                panels = [Image.fromarray(255 * (maps[0] == 1).astype(np.uint8)), Image.fromarray(prediction)]
            else:
                panels = [draw_label_map(small, labels, self.classes, legend=False) for labels in maps]
                legend.update(*(np.unique(labels).tolist() for labels in maps))
            rows.append((small, *panels))
        captions = [item.caption for item in items]
        return sample_grid(rows, PANELS, captions, legend - {IGNORE_INDEX}, self.classes)


class SegmentationTraining(SegmentationEvaluation):
    """Training of a segmenter.

    The constructor opens and checks the data and builds the model, so that invalid settings fail early.

    Args:
        recipe: Recipe of the run.

    Raises:
        ValueError: The data, the backbone or the head cannot be used with this recipe.
    """

    training_modules: tuple[str, ...] = ()
    keeps_latest = False

    def __init__(self, recipe: SegmentationRecipe) -> None:
        _check(recipe)
        self.recipe = recipe
        checkpoint = initial_weights(recipe)
        self.initial_images = UsedImages.of_initial_weights(checkpoint)
        self.train_set, val_set = open_splits(recipe, self._open)
        spec = ModelSpec(
            "segment", recipe.model, val_set.classes, recipe.input, dict(recipe.model_args), recipe.segment
        )
        self.model = build_model(spec, recipe.pretrained, checkpoint)
        network: Any = self.model.backbone.network
        set_grad_checkpointing(network, recipe)
        super().__init__(val_set, resolve_input(recipe.input, network, checkpoint), recipe.segment)
        self.spec = replace(spec, input=self.input)
        self.distillation: Distillation | None = None
        if recipe.distill.teacher is not None:
            self.distillation = Distillation(recipe, self.model, self.input)
            self.initial_images = self.distillation.with_initial(self.initial_images)
        for part in (self.model.head, self.model.auxiliary):  # as published
            if part is not None:
                share_statistics(part)
        self.dice = dice_loss(self.binary) if recipe.loss.dice > 0 else None
        self.class_weights = self._class_weights()
        height, width = self.config.crop
        self.input_description = f"crops of {self.input.channels} x {height} x {width} pixels"

    def _open(self, split: Literal["train", "val"]) -> SegmentationDataset:
        recipe = self.recipe
        val_fraction = recipe.input.val_fraction if recipe.folds is None else 0.0
        return open_segmentation(recipe.data, split, recipe.segment, val_fraction, recipe.seed_of_split)

    def _class_weights(self) -> Tensor | None:
        loss = self.recipe.loss
        classes = ("background", "object") if self.binary else self.classes
        computed = isinstance(loss.class_weights, str) and loss.class_weights != "none"
        # Reads all label maps.
        pixels = self.train_set.count_pixels() if computed else np.zeros((0, len(classes)), dtype=np.int64)
        return class_weights(loss, classes, pixels.sum(axis=0), samples=(pixels > 0).sum(axis=0))

    def train_loader(self, rank: int, world: int) -> TrainLoader:
        recipe = self.recipe
        if self.config.head == "upernet" and len(self.train_set) // world < 2:
            raise ValueError(
                f"{self.train_set.where}: {len(self.train_set)} training images for {world} processes, but UPerNet "
                "needs at least two images per process; add images, use fewer processes (--engine.devices), or another "
                "head (--segment.head)"
            )
        return segmentation_train_loader(
            self.train_set,
            self.input,
            recipe.augment,
            self.config,
            recipe.batch_size,
            seed=recipe.seed,
            rank=rank,
            world=world,
            sampling=recipe.sampling,
        )

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return segmentation_eval_loader(
            self.val_set, self.input, self.config, self.recipe.batch_size, rank=rank, world=world
        )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``cross_entropy`` or ``focal``, or for binary segmentation ``bce`` or ``focal``, and ``iou``; ``dice``; and
        ``auxiliary``, the weighted loss of the auxiliary head."""
        image = batch["image"]
        (logits, auxiliary), _, features = with_teacher(self.distillation, lambda: model(image), image, batch["sizes"])
        losses = self._losses(logits, batch["label"])
        if auxiliary is not None:
            terms = self._losses(auxiliary, batch["label"]).values()
            losses["auxiliary"] = self.config.aux_weight * torch.stack(list(terms)).sum()
        return {**losses, **features}

    def _losses(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The losses of one head by name."""
        loss = self.recipe.loss
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        compute = binary_losses if self.binary else class_losses
        losses = compute(logits, label, loss.gamma if loss.name == "focal" else None, weight)
        if self.dice is not None:
            losses["dice"] = loss.dice * self.dice(logits, label)
        return losses


class SegmentationMetric:
    """Metrics of a dataset, exact for any number of processes, and the images with the largest errors.

    Args:
        classes: Class names by class index.
        binary: Whether predictions are object probabilities.
        device: Device of the sums.
        resamples: Resamples for the bootstrap interval of the primary metric; 0 for none.
    """

    def __init__(self, classes: tuple[str, ...], binary: bool, device: torch.device, resamples: int = 0) -> None:
        self.classes, self.resamples, self.device = classes, resamples, with_float64(device)
        self.binary = binary
        self.sums = BinaryMetrics(device) if binary else SegmentationMetrics(len(classes), device)
        # Each row: error, image index, height, width, and a thumbnail of the prediction. Unused rows have error -1.
        self.worst = torch.full((WORST, 4 + THUMBNAIL_SIDE**2), -1.0, device=device)
        # For the interval, of each image: its index, and what the primary metric is computed from.
        self.images = [torch.zeros(0, 1 + (1 if binary else 2 * len(classes)), dtype=torch.float64)]
        self.not_finite = 0  # images of this process without a prediction, of which all pixels count as class 0

    def update(self, output: list[Tensor | None], batch: Batch) -> None:
        for prediction, label, index in zip(output, batch["label"], batch["index"].tolist(), strict=True):
            if prediction is None:
                self.not_finite += 1
                dtype = torch.float32 if self.binary else torch.int16
                prediction = torch.zeros(label.shape, dtype=dtype, device=self.worst.device)
            error = self.sums.update(prediction, label)
            if self.resamples:
                self.images.append(torch.cat([torch.tensor([float(index)]), self.sums.image_values])[None])
            if error <= self.worst[-1, 0]:
                continue
            thumbnail = torch.from_numpy(_thumbnail(prediction))
            row = torch.zeros_like(self.worst[:1])
            row[0, :4] = torch.tensor([error, index, *thumbnail.shape])
            row[0, 4 : 4 + thumbnail.numel()] = thumbnail.flatten()
            self.worst = top_rows(torch.cat([self.worst, row]), WORST)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        warn_not_finite(self.not_finite, "all of their pixels count as class 0")
        self.sums.reduce(all_reduce)
        self.worst = top_rows(all_gather(self.worst).reshape(-1, self.worst.shape[1]), WORST)
        if self.resamples:
            self.images = [gather_rows(torch.cat(self.images).to(self.device), all_gather)]

    def compute(self) -> dict[str, Any]:
        """The metrics, and ``worst``: image index, error in percent, and prediction thumbnail as base64 PNG."""
        out = self.sums.compute()
        if not self.binary:
            out["confusion"] = out["confusion"].tolist()
            for row in out["per_class"]:
                row["class"] = self.classes[row["class"]]
        if self.resamples:
            out["interval"] = self._interval()
        out["worst"] = []
        for row in self.worst.cpu():
            error, index, height, width = row[:4].tolist()
            if error > 0:
                thumbnail = row[4 : 4 + int(height * width)].view(int(height), int(width))
                out["worst"].append(
                    {"index": int(index), "error": 100 * error, "prediction": _encode_png(thumbnail.byte().numpy())}
                )
        return out

    def _interval(self) -> dict[str, Any]:
        images = torch.cat(self.images).cpu()
        values = images[images[:, 0].argsort(), 1:].numpy()
        found = [
            self.sums.primary_metric(counts @ values, len(values))
            for counts in resampled_counts(len(values), self.resamples)
        ]
        name = "s_measure" if self.binary else "miou"
        return as_interval(name, percentile_interval(np.concatenate(found)), self.resamples)


def _draw_thresholds(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    from ...pictures.quality import area_curves  # imported late: it imports matplotlib

    styles = {
        "f": ("F-measure", TRAIN, "-"),
        "e": ("E-measure", EVAL, "-"),
        "precision": ("precision", TRAIN, "--"),
        "recall": ("recall", TRAIN, ":"),
    }
    lines = [
        (label, curves[name], 100 * float(np.mean(curves[name])), {"color": color, "linestyle": style})
        for name, (label, color, style) in styles.items()
    ]
    grid = np.linspace(0, 1, len(curves["f"])).tolist()
    title = "Metrics by threshold, mean over images"
    area_curves(grid, lines, path, title=title, labels=("threshold", "metric"), area="mean")


def _check(recipe: SegmentationRecipe) -> None:
    """Raise a ValueError for a recipe that cannot be trained."""
    if recipe.segment.head == "upernet" and recipe.batch_size < 2:
        raise ValueError(
            f"invalid batch_size={recipe.batch_size}: UPerNet needs at least two images per batch in training, because "
            "its coarsest pooling leaves BatchNorm one value per image and channel"
        )


def _thumbnail(prediction: Tensor) -> np.ndarray:
    """Class indices or probabilities ``(H, W)`` as a uint8 map with a long side of at most 256 pixels.

    Class indices are kept; probabilities are multiplied by 255.
    """
    values = prediction if not prediction.is_floating_point() else (255 * prediction.float()).round()
    small = values.to("cpu", torch.uint8).numpy()
    height, width = small.shape
    scale = min(1.0, THUMBNAIL_SIDE / max(height, width))
    return _resize_nearest(small, (max(1, round(scale * width)), max(1, round(scale * height))))


class _Sample(NamedTuple):
    """An image with ground truth and prediction, at the size of a thumbnail, and its caption."""

    image: Image.Image
    truth: np.ndarray
    prediction: np.ndarray
    caption: str


def _sample(image: Image.Image, truth: np.ndarray, prediction: np.ndarray, caption: str) -> _Sample:
    """Reduce an image and its ground truth ``(H, W)`` to the size of the prediction's thumbnail."""
    height, width = prediction.shape
    small = image.convert("RGB").resize((width, height))
    return _Sample(small, _resize_nearest(truth, (width, height)), prediction, caption)


def _resize_nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map ``(H, W)`` resized to (width, height)."""
    return np.array(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _encode_png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")


def _decode_png(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]))


def _table_value(percent: float | None) -> str | float:
    return "none" if percent is None else percent


def build_model(spec: ModelSpec, pretrained: bool = False, checkpoint: Checkpoint | None = None) -> SegmentationNetwork:
    """Build a segmenter from its model spec; see :class:`smt_vision.tasks.task.TaskType`.

    Raises:
        ValueError: The model or the head cannot be built, or the checkpoint does not fit.
    """
    backbone = build_backbone(spec, pretrained, checkpoint)
    model = SegmentationNetwork(backbone, 1 if spec.head.is_binary else len(spec.classes), spec.head)
    load_head_checkpoint(model, spec, checkpoint, build_model)
    return model


def open_evaluation(
    model: Segmenter, data: str, input: Input, batch_size: int, rank: int, world: int, split: SegmentationSplit = "val"
) -> tuple[SegmentationEvaluation, EvalLoader]:
    """Evaluation of a segmenter on a dataset that has its classes, and the data loader.

    Of the model's own training set, the images of its fold are used, or without a validation split the images that
    training held out; of any other dataset without one, all.
    """
    images = None
    if split == "val":
        images = held_out_fold(model, lambda: open_segmentation(data, "train", model.config, 0.0))
    if images is None:
        images = open_segmentation(data, split, model.config, val_fraction=1.0)
        if model.used_images is not None and split == "val":
            fraction = 1.0 if model.recipe is None else model.recipe.train_fraction
            images = held_out_in_training(images, model.used_images, fraction)
    images = with_classes(images, model.classes)
    loader = segmentation_eval_loader(images, input, model.config, batch_size, rank=rank, world=world)
    return SegmentationEvaluation(images, input, model.config), loader


def flops_model(model: nn.Module, spec: ModelSpec) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model, and the size of its training crops."""
    return model, (spec.input.channels, *spec.head.crop)


TASK = TaskType(
    build_model, SegmentationTraining, open_evaluation, flops_model, Segmenter, SegmenterExport, ("val", "test")
)
