"""Image classification: training and evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from ...checkpoints import Checkpoint
from ...data.dataset import Split
from ...data.decode import decode_picture
from ...data.fingerprint import MAX_TRAIN, UsedImages
from ...pictures.confusion import confusion
from ...spec import ModelSpec
from ...text import Markdown, get_logger
from ..build import create_model, initial_weights, load_pretrained, resolve_input
from ..classes import with_classes
from ..samples import top_rows
from ..splits import held_out_fold, open_splits
from ..task import Batch, EvalLoader, Metric, MetricFormat, Table, TaskType, TrainLoader
from .config import ClassificationAugment, ClassificationInput, ClassificationRecipe
from .data.dataset import ImageDataset
from .data.loaders import classification_eval_loader, classification_train_loader
from .data.sources import open_dataset
from .export import ClassifierExport
from .metrics import ClassificationMetrics
from .pictures import Mistake, mistakes, thumbnail
from .predictor import Classifier
from .published import class_synonyms

log = get_logger(__name__)
WORST = 25  # mistakes in the picture


class ClassificationEvaluation:
    """Evaluation of a classifier.

    Args:
        classes: Class names, in the order of the model's outputs.
        val_set: Dataset to evaluate on.
        multi_label: Whether an image may have any number of classes.
        input: How images become tensors, for pictures of them.
    """

    primary_metric = "top1"
    metric_formats: Mapping[str, MetricFormat] = {
        "top1": MetricFormat("top-1"),
        "top5": MetricFormat("top-5"),
        "mean_class_accuracy": MetricFormat("mean over classes"),
        "loss": MetricFormat("loss", "nats"),
        "ece": MetricFormat("calibration error"),
    }

    def __init__(
        self,
        classes: tuple[str, ...],
        val_set: ImageDataset,
        multi_label: bool = False,
        input: ClassificationInput | None = None,
    ) -> None:
        self.classes = classes
        self.input = input or ClassificationInput()
        self.val_set = val_set
        self.multi_label = multi_label
        if multi_label:
            self.primary_metric, self.metric_formats = "map", {"map": MetricFormat("mAP")}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["image"])

    def metric(self, device: torch.device) -> Metric:
        kind = MultiLabelMetric if self.multi_label else ClassificationMetric
        return kind(self.classes, device)

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """Tables of the best and worst classes and, for up to 1000 classes, of the most frequent confusions."""
        if self.multi_label:
            return []
        tables = [_class_table(metrics["per_class"])]
        if metrics["confusion"] is not None:
            tables.append(_confusion_table(np.asarray(metrics["confusion"]), self.classes))
        return tables

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """Write ``confusion.png`` (up to 1000 classes) and ``mistakes.png``; returns their paths."""
        paths: list[Path] = []
        if self.multi_label:
            return paths
        if metrics["confusion"] is not None:
            paths.append(folder / "confusion.png")
            confusion(np.asarray(metrics["confusion"]), self.classes, paths[-1])
        items = []
        for mistake in metrics["worst"]:
            raw, _, name = self.val_set.read(mistake["index"])
            items.append(
                Mistake(
                    image=thumbnail(decode_picture(raw, self.input, name=name)),
                    target=self.classes[mistake["target"]],
                    prediction=self.classes[mistake["prediction"]],
                    score=mistake["score"],
                    id=name,
                )
            )
        paths.append(folder / "mistakes.png")
        mistakes(items, paths[-1])
        return paths


class ClassificationTraining(ClassificationEvaluation):
    """Training of a classifier.

    Args:
        recipe: Recipe of the run. The dataset is opened and the model built immediately, so that errors show early.
    """

    def __init__(self, recipe: ClassificationRecipe) -> None:
        self.recipe = recipe
        checkpoint = initial_weights(recipe)
        self.initial_images = UsedImages.from_checkpoint(checkpoint)
        self.train_set, val_set = open_splits(recipe, self._open)
        super().__init__(
            self.train_set.classes,
            with_classes(val_set, self.train_set.classes, owner="the training set"),
            recipe.classify.multi_label,
        )
        spec = ModelSpec("classify", recipe.model, self.classes, recipe.input, dict(recipe.model_args), recipe.classify)
        self.model = build_model(spec, recipe.pretrained, checkpoint)
        if recipe.engine.grad_checkpointing:
            self.model.set_grad_checkpointing(True)
        self.input = resolve_input(recipe.input, self.model)
        self.spec = replace(spec, input=self.input)
        self.input_description = f"{self.input.channels} x {self.input.size} x {self.input.size} pixels"
        self.mix = _mix(recipe.augment, len(self.classes))

    def _open(self, split: Split) -> ImageDataset:
        recipe = self.recipe
        return open_dataset(
            recipe.data,
            split,
            val_fraction=recipe.input.val_fraction if recipe.folds is None else 0.0,
            seed=recipe.seed,
            allow_damaged=recipe.input.allow_damaged,
            labels=recipe.labels,
            multi_label=recipe.classify.multi_label,
        )

    def train_loader(self, rank: int, world: int) -> TrainLoader:
        recipe = self.recipe
        return classification_train_loader(
            self.train_set, self.input, recipe.augment, recipe.batch_size, seed=recipe.seed, rank=rank, world=world
        )

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return classification_eval_loader(self.val_set, self.input, self.recipe.batch_size, rank=rank, world=world)

    def samples(self, model: nn.Module, device: torch.device) -> None:
        """Return ``None``: classifiers have no sample pictures."""

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        image, target = batch["image"], batch["target"]
        if self.mix is not None:
            image, target = self.mix(image, target)
        if self.recipe.classify.multi_label:
            return {"loss": F.binary_cross_entropy_with_logits(model(image), target)}
        return {"loss": F.cross_entropy(model(image), target, label_smoothing=self.recipe.augment.label_smoothing)}


class ClassificationMetric:
    """Accuracy, loss and calibration, and the most confident mistakes; exact on any number of processes.

    Args:
        classes: Class names, in the order of class indices.
        device: Device of the accumulated state.
    """

    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        self.classes = classes
        self.sums = ClassificationMetrics(len(classes), device)
        # Rows of (score, image index, target, prediction); unused rows are -1.
        self.worst = torch.full((WORST, 4), -1.0, dtype=torch.float64, device=device)

    def update(self, output: Tensor, batch: Batch) -> None:
        target, logits = batch["target"], output.float()
        self.sums.update(logits, target)
        score, prediction = logits.softmax(-1).max(-1)
        rows = torch.stack([t.double() for t in (score, batch["index"], target, prediction)], dim=-1)
        self.worst = top_rows(torch.cat([self.worst, rows[prediction != target]]), WORST)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        self.sums.reduce(all_reduce)
        self.worst = top_rows(all_gather(self.worst).reshape(-1, 4), WORST)

    def compute(self) -> dict[str, Any]:
        out = self.sums.compute()
        confusion = out["confusion"]
        out["confusion"] = confusion.tolist() if isinstance(confusion, Tensor) else confusion
        for row in out["per_class"]:
            row["class"] = self.classes[int(row["class"])]
        out["worst"] = [
            {"index": int(index), "target": int(target), "prediction": int(prediction), "score": score}
            for score, index, target, prediction in self.worst.tolist()
            if score >= 0
        ]
        return out


class MultiLabelMetric:
    """Mean average precision of a multi-label classifier, exact on any number of processes.

    Args:
        classes: Class names, in the order of class indices.
        device: Device of the accumulated state.
    """

    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        from torchmetrics.classification import MultilabelAveragePrecision

        self.metric: Any = MultilabelAveragePrecision(len(classes), thresholds=200).to(device)
        self.count = torch.zeros(1, device=device)

    def update(self, output: Tensor, batch: Batch) -> None:
        self.metric.update(output.float().sigmoid(), batch["target"].long())
        self.count += len(output)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        self.metric.confmat, self.count = all_reduce(self.metric.confmat.clone()), all_reduce(self.count)

    def compute(self) -> dict[str, Any]:
        return {"map": 100 * float(self.metric.compute()), "count": int(self.count)}


def _class_table(per_class: list[dict[str, Any]]) -> Table:
    ranked = sorted((row for row in per_class if row["count"]), key=lambda row: -row["accuracy"])
    length = min(5, len(ranked) // 2) or len(ranked)  # so that no class is both among the best and the worst
    rows: list[tuple[str | int | float, ...]] = []
    for title, group in (("best", ranked[:length]), ("worst", ranked[::-1][:length])):
        rows.append((Markdown(f"**{title} {len(group)}**"), "", ""))
        rows += [(row["class"], row["count"], row["accuracy"]) for row in group]
    return Table("Classes", ("class", "images", "accuracy (%)"), rows)


def _confusion_table(matrix: np.ndarray, classes: tuple[str, ...]) -> Table:
    images = matrix.sum(axis=1)
    errors = matrix - np.diag(matrix.diagonal())
    largest = [np.unravel_index(cell, errors.shape) for cell in np.argsort(-errors, axis=None, kind="stable")[:5]]
    rows: list[tuple[str | int | float, ...]] = [
        (classes[true], classes[predicted], int(errors[true, predicted]), 100 * errors[true, predicted] / images[true])
        for true, predicted in largest
        if errors[true, predicted]
    ]
    return Table("Most frequent confusions", ("true class", "predicted class", "images", "share (%)"), rows)


def _mix(augment: ClassificationAugment, num_classes: int) -> v2.Transform | None:
    """Mixup and CutMix of a batch and its targets; random numbers come from PyTorch's global generator."""
    mixup, cutmix = augment.mixup > 0, augment.cutmix > 0
    if not (mixup or cutmix) or augment.mix_prob == 0 or num_classes < 2:
        return None
    transforms: list[v2.Transform] = []
    probabilities = []
    if mixup:
        transforms.append(v2.MixUp(alpha=augment.mixup, num_classes=num_classes))
        probabilities.append(1 - augment.switch_prob if cutmix else 1.0)
    if cutmix:
        transforms.append(v2.CutMix(alpha=augment.cutmix, num_classes=num_classes))
        probabilities.append(augment.switch_prob if mixup else 1.0)
    return v2.RandomApply([v2.RandomChoice(transforms, p=probabilities)], p=augment.mix_prob)


def build_model(spec: ModelSpec, pretrained: bool = False, checkpoint: Checkpoint | None = None) -> Any:
    """Build a classifier from its spec; see :class:`smt_vision.tasks.task.TaskType`.

    Raises:
        ValueError: If timm does not know the model, the model does not accept the spec's arguments, or the checkpoint
            does not match it.
    """
    model = create_model(
        spec.model,
        pretrained=pretrained and checkpoint is None,
        num_classes=len(spec.classes),
        in_chans=spec.input.channels,
        **spec.model_args,
    )
    if checkpoint is not None:
        load_pretrained(model, checkpoint, spec.classes)
    return model


def open_evaluation(
    model: Classifier, data: str, input: ClassificationInput, batch_size: int, rank: int, world: int
) -> tuple[ClassificationEvaluation, EvalLoader]:
    """Open the validation split of a dataset; for the model's training dataset, the images held out in training."""
    recipe, fraction, seed = model.recipe, 1.0, 0
    if model.used_images is None and isinstance(recipe, ClassificationRecipe):
        if _same_source(data, recipe.data):
            fraction, seed = recipe.input.val_fraction, recipe.seed
        else:
            log.warning(
                "%s: the model does not say which images it was trained on, only their source, %s; if some of them are "
                "here too, the metrics are too high", data, recipe.data,
            )  # fmt: skip

    def open_split(split: Split, val_fraction: float) -> ImageDataset:
        return open_dataset(
            data,
            split,
            val_fraction=val_fraction,
            seed=seed,
            allow_damaged=input.allow_damaged,
            labels=recipe.labels if isinstance(recipe, ClassificationRecipe) else None,
            multi_label=model.config.multi_label,
        )

    images = held_out_fold(model, lambda: open_split("train", 0.0))
    if images is None:
        images = open_split("val", fraction)
        if model.used_images is not None:
            images = _held_out(images, model.used_images, 1.0 if recipe is None else recipe.train_fraction)
    images = with_classes(images, model.classes, class_synonyms(len(model.classes)))
    loader = classification_eval_loader(images, input, batch_size, rank=rank, world=world)
    return ClassificationEvaluation(model.classes, images, model.config.multi_label, input), loader


def _same_source(data: str, trained_on: str) -> bool:
    """Whether two datasets are the same, e.g. one folder by a relative and an absolute path."""
    paths = Path(data).expanduser(), Path(trained_on).expanduser()
    return data == trained_on or (all(path.exists() for path in paths) and paths[0].samefile(paths[1]))


def _held_out(images: ImageDataset, used: UsedImages, train_fraction: float) -> ImageDataset:
    """The images that training held out of a dataset, if it is the one that the model was trained on.

    It is if at least half of the held-out images are among its images, and at least half as many of the others as
    training uses of them were trained on, of which at most ``MAX_TRAIN`` are known. Any other dataset is returned as it
    is.
    """
    validated = np.isin(images.identities(), used.val)
    trained = np.isin(images.fingerprints(), used.train) & ~validated
    found, expected = int(validated.sum()), len(used.val)
    others = min(round(train_fraction * (len(images) - found)), MAX_TRAIN)
    if 2 * found < max(expected, 1) or 2 * trained.sum() < max(others, 1):
        return images
    log.info("%s: evaluating the %d images of %d that training held out", images.where, found, len(images))
    if found < expected:
        log.warning("%s: %d of the %d images that training held out are missing", images.where, expected - found,
                    expected)  # fmt: skip
    return images.select(np.flatnonzero(validated))


def flops_model(model: nn.Module, spec: ModelSpec) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the model itself, and its input shape (C, H, W)."""
    size = spec.input.size  # type: ignore[attr-defined]
    return model, (spec.input.channels, size, size)


TASK = TaskType(build_model, ClassificationTraining, open_evaluation, flops_model, Classifier, ClassifierExport)
