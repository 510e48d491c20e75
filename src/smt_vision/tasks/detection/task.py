"""Object detection and instance segmentation: training and evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...checkpoints import Checkpoint
from ...data.bands import bands_to_picture
from ...data.decode import UnreadableImage, decode_input
from ...data.fingerprint import UsedImages
from ...data.region import Region
from ...data.subset import held_out_in_training
from ...data.transforms import RegionPixels
from ...pictures.drawing import sample_grid
from ...pictures.style import EVAL, TRAIN
from ...recipe import Input
from ...spec import ModelSpec
from ..bootstrap import as_interval
from ..build import build_backbone, initial_weights, load_head_checkpoint, resolve_input, set_grad_checkpointing
from ..class_weights import class_weights
from ..classes import with_classes
from ..distill import Distillation, with_teacher
from ..processes import share_statistics
from ..samples import sample_rows, warn_not_finite
from ..splits import held_out_fold, open_splits
from ..task import Batch, EvalLoader, MetricFormat, Table, TaskType, TrainLoader
from .box_masks import BoxMasks
from .config import DRAWN_SCORE, DetectConfig, DetectionRecipe
from .data.dataset import DetectionDataset, DetectionTarget
from .data.fields import DetectionSplit
from .data.loaders import detection_eval_loader, detection_train_loader
from .data.masks import rasterize_masks
from .data.sources import open_detection
from .data.transforms import check_training_sizes
from .export import DetectorExport
from .heads.class_loss import set_class_weights
from .heads.detectors import build_detector, flops_view, is_finite, run_detector, to_original
from .metrics import DetectionMetrics, encode_rle
from .pictures import draw_detections
from .predictor import Detector
from .tiles import detect_image

SAMPLE_SIDE = 480  # long side of a sample panel in pixels
SIZES = ("small", "medium", "large")  # object sizes of COCO's metrics
COCO_DETECTIONS = 100  # detections per image that COCO's metrics count


class DetectionEvaluation:
    """Evaluation of detectors, during training and after it.

    Args:
        val_set: Validation images.
        input: Interpolation, mean and standard deviation.
        config: Detection head, image sizes and thresholds.
    """

    def __init__(self, val_set: DetectionDataset, input: Input, config: DetectConfig) -> None:
        self.classes = val_set.classes
        self.val_set = val_set
        self.input = input
        self.config = config
        self.pixels = RegionPixels(input)
        self.kinds = ("mask", "box") if config.has_masks else ("box",)
        self.primary_metric = f"{self.kinds[0]}_ap"
        self.metric_formats: Mapping[str, MetricFormat] = {
            f"{kind}_{metric}": MetricFormat(f"{kind} {label}")
            for kind in self.kinds
            for metric, label in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"), ("ar", "AR"))
        }

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Tensor]]:
        """Detections in pixels of the resized images, or with tiles of the stored ones; see
        :class:`smt_vision.tasks.detection.heads.detectors.Detector`."""
        if self.config.tiles:
            device = batch["sizes"].device
            # Tiles are cut on the CPU; tensors, of images with bands, have been moved.
            images = [image.cpu() if isinstance(image, torch.Tensor) else image for image in batch["image"]]
            return [detect_image(model, image, self.pixels, self.config, device) for image in images]
        return run_detector(model, batch["image"], batch["sizes"])

    def metric(self, device: torch.device, resamples: int = 0) -> "DetectionMetric":
        return DetectionMetric(self.val_set, self.config, device, resamples)

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """AP and AR by object size, and AP per class, best first."""
        sizes = [
            (f"{kind} {label}", *(_format_ap(metrics[f"{kind}_{metric}_{size}"]) for size in SIZES))
            for kind in self.kinds
            for metric, label in (("ap", "AP"), ("ar", "AR"))
        ]
        names = [f"{kind}_{metric}" for kind in self.kinds for metric in ("ap", "ap50")]
        ranked = sorted(metrics["per_class"], key=lambda row: -(row[self.primary_metric] or 0.0))
        classes = [(row["class"], row["count"], *(_format_ap(row[name]) for name in names)) for row in ranked]
        return [
            Table("By object size", ("", "below 32 x 32 (%)", "to 96 x 96 (%)", "above (%)"), sizes),
            Table("Classes", ("class", "objects", *(self.metric_formats[name].title for name in names)), classes),
        ]

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """Write ``precision_recall.png``; training saves samples of the best epoch too."""
        from ...pictures.quality import area_curves  # imported late: it imports matplotlib

        if "curves" not in metrics:  # of metrics that an earlier version computed
            return []
        path = folder / "precision_recall.png"
        grid = [i / 100 for i in range(101)]
        lines = []
        for kind, color in zip(self.kinds, (TRAIN, EVAL), strict=False):
            for name, style in (("ap50", "-"), ("ap75", "--")):
                label = self.metric_formats[f"{kind}_{name}"].label
                look = {"color": color, "linestyle": style, "linewidth": 1.8}
                lines.append((label, metrics["curves"][kind][name], metrics[f"{kind}_{name}"], look))
        title = "Precision and recall, mean over classes"
        area_curves(grid, lines, path, title=title, labels=("recall", "precision"), area="AP")
        return [path]


class DetectionTraining(DetectionEvaluation):
    """Training of a detector.

    The constructor opens and checks the data and builds the model, so that invalid settings fail early.

    Args:
        recipe: Recipe of the run.

    Raises:
        ValueError: The data, the backbone or the head cannot be used with this recipe.
    """

    training_modules: tuple[str, ...] = ()
    keeps_latest = False

    def __init__(self, recipe: DetectionRecipe) -> None:
        if recipe.engine.compile:
            raise ValueError(
                "invalid engine.compile=true: detectors cannot be compiled, because the number of regions per image "
                "varies; set it to false"
            )
        self.recipe = recipe
        checkpoint = initial_weights(recipe)
        self.initial_images = UsedImages.of_initial_weights(checkpoint)
        self.train_set, val_set = open_splits(recipe, self._open)
        check_training_sizes(self.train_set, recipe.detect, recipe.augment)
        classes, category_ids = self.train_set.classes, self.train_set.category_ids
        val_set = with_classes(val_set, classes, owner="the training set")
        spec = ModelSpec(
            "detect", recipe.model, classes, recipe.input, dict(recipe.model_args), recipe.detect, category_ids
        )
        self.model, backbone = build_parts(spec, recipe.pretrained, checkpoint)
        counts = np.bincount(self.train_set.objects()["labels"], minlength=len(classes))
        set_class_weights(self.model, class_weights(recipe.loss, classes, counts))
        for stage in getattr(self.model, "stages", ()):  # BatchNorm in a cascade's box heads, as published
            share_statistics(stage.box_head)
        set_grad_checkpointing(backbone.network, recipe)
        super().__init__(val_set, resolve_input(recipe.input, backbone.network, checkpoint), recipe.detect)
        self.spec = replace(spec, input=self.input)
        self.distillation: Distillation | None = None
        if recipe.distill.teacher is not None:
            self.distillation = Distillation(recipe, self.model, self.input)
            self.initial_images = self.distillation.with_initial(self.initial_images)
        self.input_description = (
            f"{recipe.input.channels} channels, short side {self.config.short_side} pixels, "
            f"long side at most {self.config.long_side}"
        )

    def _open(self, split: Literal["train", "val"]) -> DetectionDataset:
        recipe = self.recipe
        val_fraction = recipe.input.val_fraction if recipe.folds is None else 0.0
        dataset = open_detection(recipe.data, split, val_fraction, recipe.seed_of_split, recipe.input.clip_boxes)
        if self.recipe.detect.has_masks:
            dataset.require_masks()
        return dataset

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
            sampling=recipe.sampling,
            epochs=recipe.epochs,
        )

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return detection_eval_loader(
            self.val_set, self.input, self.config, self.recipe.batch_size, rank=rank, world=world
        )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        image = batch["image"]
        losses, _, features = with_teacher(
            self.distillation, lambda: model(image, batch["sizes"], batch["targets"]), image, batch["sizes"]
        )
        return {**losses, **features}

    @torch.inference_mode()
    def samples(self, model: nn.Module, device: torch.device) -> Image.Image | None:
        """Images spread over the validation set, ground truth beside the detections with a score of at least 0.4."""
        panels, names, class_ids = [], [], set[int]()
        for row in sample_rows(len(self.val_set)):
            raw, target, name = self.val_set.read(row)
            try:
                image = decode_input(raw, self.input, name=name)
            except UnreadableImage:  # already reported by the evaluation
                continue
            picture = image if isinstance(image, Image.Image) else bands_to_picture(image)
            if (picture.height, picture.width) != target["size"]:
                continue
            detections = detect_image(model, image, self.pixels, self.config, device)
            keep = detections["scores"] >= DRAWN_SCORE
            found: dict[str, Any] = {key: value[keep].cpu() for key, value in detections.items()}
            if self.config.has_masks:
                found["masks"] = BoxMasks(found["masks"], found["boxes"], target["size"])
            truth = _truth(target, masks=self.config.has_masks)
            panels.append(
                [
                    draw_detections(picture, **objects, classes=self.classes, legend=False, side=SAMPLE_SIDE)
                    for objects in (truth, found)
                ]
            )
            names.append(self.val_set.id(row))
            class_ids |= {*truth["labels"].tolist(), *found["labels"].tolist()}
        if not panels:
            return None
        return sample_grid(panels, ("truth", "prediction"), names, class_ids, self.classes)


class DetectionMetric:
    """Average precision over a dataset, exact on any number of processes.

    Args:
        dataset: Images with ground truth.
        config: Detection head, which decides whether there are masks, and the maximum number of detections per image.
        device: Device on which processes exchange their detections.
        resamples: Resamples for the bootstrap interval of the primary metric; 0 for none.
    """

    def __init__(
        self, dataset: DetectionDataset, config: DetectConfig, device: torch.device, resamples: int = 0
    ) -> None:
        self.resamples = resamples
        self.not_finite = 0  # images of this process whose outputs were not finite
        self.image_ids = dataset.image_ids.tolist()
        self.metrics = DetectionMetrics(
            dataset.ground_truth(),
            dataset.classes,
            dataset.category_ids,
            masks=config.has_masks,
            max_detections=config.eval_detections or max(config.max_detections, COCO_DETECTIONS),
            device=device,
        )

    def update(self, output: list[dict[str, Tensor]], batch: Batch) -> None:
        rows = zip(output, batch["sizes"], batch["original"], batch["index"].tolist(), strict=True)
        for detections, size, original, row in rows:
            if not is_finite(detections):
                self.not_finite += 1
                detections = {name: values[:0] for name, values in detections.items()}
            (detections,) = to_original([detections], size[None], original[None])
            masks: list[bytes] = []
            if self.metrics.masks:
                height, width = original.tolist()
                for chunk in BoxMasks(detections["masks"], detections["boxes"], (height, width)).chunks():
                    masks += encode_rle(chunk)
            self.metrics.update(
                self.image_ids[row],
                detections["boxes"].cpu(),
                detections["scores"].cpu(),
                detections["labels"].cpu(),
                masks,
            )

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        warn_not_finite(self.not_finite, "they count as images without detections")
        self.metrics.reduce(all_gather)

    def compute(self) -> dict[str, Any]:
        out = self.metrics.compute()
        if self.resamples:
            kind = "mask" if self.metrics.masks else "box"
            out["interval"] = as_interval(f"{kind}_ap", self.metrics.interval(kind, self.resamples), self.resamples)
        return out


def _truth(target: DetectionTarget, masks: bool) -> dict[str, Any]:
    """An image's objects as arguments of :func:`draw_detections`, without crowds."""
    keep = np.flatnonzero(~target["crowd"])
    truth: dict[str, Any] = {"boxes": target["boxes"][keep], "labels": target["labels"][keep]}
    if masks:
        stored = target["masks"] or []
        truth["masks"] = _StoredMasks([stored[i] for i in keep], target["size"])
    return truth


@dataclass(frozen=True)
class _StoredMasks(Sequence[Any]):
    """Masks (H, W) of an image's objects, each rasterized when it is read."""

    stored: Sequence[Any]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Any) -> Any:
        height, width = self.size
        region = Region(0, 0, width, height, width, height)
        return rasterize_masks([self.stored[index]], region, height, width)[0]


def _format_ap(percent: float | None) -> str | float:
    return "no objects" if percent is None else percent


def build_parts(spec: ModelSpec, pretrained: bool, checkpoint: Checkpoint | None) -> tuple[nn.Module, Any]:
    """The detector and its backbone."""
    backbone = build_backbone(spec, pretrained, checkpoint)
    model = build_detector(backbone, len(spec.classes), spec.head)
    load_head_checkpoint(model, spec, checkpoint, build_model)
    return model, backbone


def build_model(spec: ModelSpec, pretrained: bool = False, checkpoint: Checkpoint | None = None) -> nn.Module:
    """Build a detector from its model spec, for use in a single process; see :class:`smt_vision.tasks.task.TaskType`.

    Raises:
        ValueError: The model or the head cannot be built, or the checkpoint does not fit.
    """
    if spec.head.norm == "sync":  # a single process has nothing to synchronize
        spec = replace(spec, head=replace(spec.head, norm="train"))
    return build_parts(spec, pretrained, checkpoint)[0]


def open_evaluation(
    model: Detector, data: str, input: Input, batch_size: int, rank: int, world: int, split: DetectionSplit = "val"
) -> tuple[DetectionEvaluation, EvalLoader]:
    """Evaluation of a detector on a dataset that has its classes, and the data loader.

    Of the model's own training set, the images of its fold are used, or without a validation split the images that
    training held out; of any other dataset without one, all.
    """
    clip: bool = getattr(input, "clip_boxes", False)
    dataset = None
    if split == "val":
        dataset = held_out_fold(model, lambda: open_detection(data, "train", 0.0, clip_boxes=clip))
    if dataset is None:
        dataset = open_detection(data, split, 1.0 if split == "val" else None, clip_boxes=clip)
        if model.used_images is not None and split == "val":
            fraction = 1.0 if model.recipe is None else model.recipe.train_fraction
            dataset = held_out_in_training(dataset, model.used_images, fraction)
    dataset = with_classes(dataset, model.classes)
    if model.config.has_masks:
        dataset.require_masks()
    loader = detection_eval_loader(dataset, input, model.config, batch_size, rank=rank, world=world)
    return DetectionEvaluation(dataset, input, model.config), loader


def flops_model(model: nn.Module, spec: ModelSpec) -> tuple[nn.Module, tuple[int, int, int]]:
    """The part of a detector that published GMACs count, and the image shape they are reported for."""
    return flops_view(model, spec.input.channels, spec.head)


TASK = TaskType(build_model, DetectionTraining, open_evaluation, flops_model, Detector, DetectorExport, ("val", "test"))
