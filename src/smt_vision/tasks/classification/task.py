"""Image classification: training and evaluation."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ...checkpoints import Checkpoint
from ...data.dataset import Split
from ...data.decode import UnreadableImage, decode_picture
from ...data.fingerprint import UsedImages
from ...data.subset import held_out_in_training
from ...recipe import Recipe
from ...spec import ModelSpec
from ...text import Markdown, get_logger
from ..build import (
    check_image_size,
    create_model,
    create_pretrained,
    initial_weights,
    load_pretrained,
    resolve_input,
    set_grad_checkpointing,
)
from ..classes import with_classes
from ..distill import Distillation, with_teacher
from ..image_size import arguments_for_size
from ..splits import held_out_fold, open_splits
from ..task import Batch, EvalLoader, MetricFormat, Table, TaskType, TrainLoader
from .config import ClassificationAugment, ClassificationInput, ClassificationRecipe, ClassifyConfig, LabelsConfig
from .data.dataset import ImageDataset
from .data.loaders import classification_eval_loader, classification_train_loader
from .data.sources import open_dataset
from .distill import SoftTargets
from .evaluation import ClassificationMetric
from .export import ClassifierExport
from .losses import classification_loss
from .predictor import Classifier
from .published import class_synonyms, describe

log = get_logger(__name__)
CLASS_COLUMNS = {  # by name: as displayed
    "accuracy": "accuracy (%)",
    "precision": "precision (%)",
    "recall": "recall (%)",
    "f1": "F1 (%)",
    "ap": "AP (%)",
    "auroc": "AUROC (%)",
}


class ClassificationEvaluation:
    """Evaluation of a classifier.

    Args:
        classes: Class names, in the order of the model's outputs.
        val_set: Dataset to evaluate on.
        config: What the outputs mean. With ``multi_label``, the target of a batch is 0 or 1 for each class.
        input: How images become tensors, for pictures of them.
    """

    primary_metric = "top1"
    metric_formats: Mapping[str, MetricFormat] = {
        "top1": MetricFormat("top-1"),
        "top5": MetricFormat("top-5"),
        "mean_class_accuracy": MetricFormat("balanced accuracy"),
        "precision_macro": MetricFormat("precision, macro"),
        "f1_macro": MetricFormat("F1, macro"),
        "f1_weighted": MetricFormat("F1, weighted"),
        "map": MetricFormat("mAP"),
        "auroc_macro": MetricFormat("AUROC, macro"),
        "kappa": MetricFormat("Cohen's kappa", ""),
        "loss": MetricFormat("loss", "nats"),
        "ece": MetricFormat("calibration error"),
    }

    def __init__(
        self,
        classes: tuple[str, ...],
        val_set: ImageDataset,
        config: ClassifyConfig | None = None,
        input: ClassificationInput | None = None,
    ) -> None:
        self.classes = classes
        self.input = input or ClassificationInput()
        self.val_set = val_set
        self.config = config or ClassifyConfig()
        if self.config.multi_label:
            self.primary_metric, self.metric_formats = "map", MULTI_LABEL_FORMATS
        elif (k := self.config.top_k) != 5:
            of_k = {"top1": MetricFormat("top-1"), f"top{k}": MetricFormat(f"top-{k}")}
            self.metric_formats = of_k | {n: f for n, f in self.metric_formats.items() if n not in ("top1", "top5")}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["image"])

    def metric(self, device: torch.device, resamples: int = 0) -> ClassificationMetric:
        return ClassificationMetric(self.classes, device, self.config, len(self.val_set), resamples)

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """Tables of the best and worst classes and, for up to 1000 classes, of the most frequent confusions."""
        tables = [_class_table(metrics["per_class"], "ap" if self.config.multi_label else "accuracy")]
        if metrics.get("confusion") is not None:
            tables.append(_confusion_table(np.asarray(metrics["confusion"]), self.classes))
        return tables

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """Write ``confusion.png`` (up to 1000 classes, one class per image), ``precision_recall.png``, ``roc.png``,
        ``reliability.png`` and ``mistakes.png``; returns their paths."""
        # Imported late: prediction loads this module, and they import matplotlib.
        from ...pictures.confusion import confusion
        from ...pictures.quality import ranking_curves, reliability
        from .pictures import Mistake, mistakes, thumbnail

        paths = []
        if metrics.get("confusion") is not None:
            paths.append(folder / "confusion.png")
            confusion(np.asarray(metrics["confusion"]), self.classes, paths[-1])
        if metrics.get("curves"):  # not of metrics that an earlier version computed
            paths += [folder / "precision_recall.png", folder / "roc.png"]
            ranking_curves(metrics, self.classes, *paths[-2:])
        if metrics.get("calibration"):
            paths.append(folder / "reliability.png")
            label = "share that has the class" if self.config.multi_label else "accuracy"
            reliability(metrics["calibration"], metrics["ece"], paths[-1], label)
        items = []
        for mistake in metrics["worst"]:
            try:
                raw, _, name = self.val_set.read(mistake["index"])
                image = thumbnail(decode_picture(raw, self.input, name=name))
            except (UnreadableImage, OSError) as error:  # it could be read in the evaluation
                log.warning("left out of %s: %s", folder / "mistakes.png", error)
                continue
            target, prediction = self._decision(mistake)
            items.append(Mistake(image=image, target=target, prediction=prediction, score=mistake["score"], id=name))
        paths.append(folder / "mistakes.png")
        mistakes(items, paths[-1])
        return paths

    def _decision(self, mistake: dict[str, Any]) -> tuple[str, str]:
        """True and predicted class of a mistake."""
        if not self.config.multi_label:
            return self.classes[mistake["target"]], self.classes[mistake["prediction"]]
        name = self.classes[mistake["class"]]
        return (name, f"not {name}") if mistake["present"] else (f"not {name}", name)


MULTI_LABEL_FORMATS = {
    "map": MetricFormat("mAP"),
    "f1_macro": MetricFormat("F1, macro"),
    "f1_micro": MetricFormat("F1, micro"),
    "precision_micro": MetricFormat("precision, micro"),
    "recall_micro": MetricFormat("recall, micro"),
    "auroc_macro": MetricFormat("AUROC, macro"),
    "subset_accuracy": MetricFormat("subset accuracy"),
    "hamming_loss": MetricFormat("Hamming loss"),
    "loss": MetricFormat("loss", "nats"),
    "ece": MetricFormat("calibration error"),
}


class ClassificationTraining(ClassificationEvaluation):
    """Training of a classifier.

    Args:
        recipe: Recipe of the run. The dataset is opened and the model built immediately, so that errors show early.
    """

    training_modules: tuple[str, ...] = ()
    keeps_latest = False

    def __init__(self, recipe: ClassificationRecipe) -> None:
        self.recipe = recipe
        checkpoint = initial_weights(recipe)
        self.initial_images = UsedImages.of_initial_weights(checkpoint)
        self.train_set, val_set = open_splits(recipe, self._open)
        if val_set.multi_label and not len(val_set.presence()[1]):
            raise ValueError(
                f"{val_set.where}: none of the {len(val_set)} validation images has a class; use images with labels"
            )
        super().__init__(
            self.train_set.classes,
            with_classes(val_set, self.train_set.classes, owner="the training set"),
            recipe.classify,
        )
        arguments = arguments_for_size(recipe.model, recipe.model_args, recipe.input.size)
        spec = ModelSpec("classify", recipe.model, self.classes, recipe.input, arguments, recipe.classify)
        self.model = build_model(spec, recipe.pretrained, checkpoint)
        check_image_size(self.model, recipe.input.channels, recipe.input.size)
        set_grad_checkpointing(self.model, recipe)
        self.input = resolve_input(recipe.input, self.model, checkpoint)
        self.spec = replace(spec, input=self.input)
        self.input_description = f"{self.input.channels} x {self.input.size} x {self.input.size} pixels"
        self.mix = _mix(recipe.augment, len(self.classes))
        self.criterion = classification_loss(
            recipe.loss,
            self.classes,
            np.bincount(self.train_set.presence()[1], minlength=len(self.classes)),
            multi_label=recipe.classify.multi_label,
            label_smoothing=recipe.augment.label_smoothing,
        )
        self.distillation: Distillation | None = None
        if recipe.distill.teacher is not None:
            self.distillation = Distillation(recipe, self.model, self.input, resize=True)
            self.initial_images = self.distillation.with_initial(self.initial_images)
            if recipe.distill.alpha:
                self.soft_targets = SoftTargets(recipe, self.classes, self.distillation.predictor)

    def _open(self, split: Split) -> ImageDataset:
        recipe = self.recipe
        return open_dataset(
            recipe.data,
            split,
            val_fraction=recipe.input.val_fraction if recipe.folds is None else 0.0,
            seed=recipe.seed_of_split,
            allow_damaged=recipe.input.allow_damaged,
            labels=recipe.labels,
            multi_label=recipe.classify.multi_label,
        )

    def train_loader(self, rank: int, world: int) -> TrainLoader:
        recipe = self.recipe
        return classification_train_loader(
            self.train_set,
            self.input,
            recipe.augment,
            recipe.batch_size,
            seed=recipe.seed,
            rank=rank,
            world=world,
            sampling=recipe.sampling,
        )

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return classification_eval_loader(self.val_set, self.input, self.recipe.batch_size, rank=rank, world=world)

    def samples(self, model: nn.Module, device: torch.device) -> None:
        """Return ``None``: classifiers have no sample pictures."""

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        image, target = batch["image"], batch["target"]
        if self.mix is not None:
            image, target = self.mix(image, target)
        logits, teacher, losses = with_teacher(self.distillation, lambda: model(image), image)
        loss, alpha = self.criterion(logits, target), self.recipe.distill.alpha
        if self.distillation is None or not alpha:
            return {"loss": loss, **losses}
        return {"loss": (1 - alpha) * loss, "distill": alpha * self.soft_targets(logits, teacher), **losses}


def _class_table(per_class: list[dict[str, Any]], order: str) -> Table:
    """The best and the worst classes by one of their metrics; the metrics that they all have are the columns."""
    ranked = sorted((row for row in per_class if row["count"]), key=lambda row: -row[order])
    shown = [name for name in CLASS_COLUMNS if ranked and ranked[0].get(name) is not None]
    if "accuracy" in shown and "recall" in shown:  # of a single class they are the same
        shown.remove("recall")
    length = min(5, len(ranked) // 2) or len(ranked)  # so that no class is both among the best and the worst
    rows: list[tuple[str | int | float, ...]] = []
    for title, group in (("best", ranked[:length]), ("worst", ranked[::-1][:length])):
        rows.append((Markdown(f"**{title} {len(group)}**"), *("" for _ in ("count", *shown))))
        rows += [(row["class"], row["count"], *(_known(row[name]) for name in shown)) for row in group]
    return Table("Classes", ("class", "images", *(CLASS_COLUMNS[name] for name in shown)), rows)


def _known(value: float | None) -> str | float:
    return "undefined" if value is None else value


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
    arguments = dict(in_chans=spec.input.channels, **spec.model_args)
    if pretrained and checkpoint is None:
        model = create_pretrained(spec.model, spec.classes, **arguments)
    else:
        model = create_model(spec.model, num_classes=len(spec.classes), **arguments)
    if checkpoint is not None:
        load_pretrained(model, checkpoint, spec.classes)
    describe(model, spec)
    return model


def open_evaluation(
    model: Classifier,
    data: str,
    input: ClassificationInput,
    batch_size: int,
    rank: int,
    world: int,
    labels: LabelsConfig | None = None,
) -> tuple[ClassificationEvaluation, EvalLoader]:
    """Open the validation split of a dataset; for the model's training dataset, the images held out in training.

    Args:
        model: The model.
        data: The dataset.
        input: How images become tensors.
        batch_size: Images per batch.
        rank: Number of this process.
        world: Number of processes.
        labels: How a label file is read; ``None``: as in training, or by default if other data cannot be read so.
    """
    recipe, fraction, seed = model.recipe, 1.0, 0
    own = isinstance(recipe, ClassificationRecipe) and same_source(data, recipe.data)
    if model.used_images is None and isinstance(recipe, ClassificationRecipe):
        if own:
            fraction, seed = recipe.input.val_fraction, recipe.seed_of_split
        else:
            log.warning(
                "%s: the model does not say which images it was trained on, only their source, %s; if some of them are "
                "here too, the metrics are too high", data, recipe.data,
            )  # fmt: skip

    def open_split(split: Split, val_fraction: float) -> ImageDataset:
        return open_labeled(
            data, split, val_fraction, seed, recipe, labels, own=own,
            allow_damaged=input.allow_damaged, multi_label=model.config.multi_label, one_class=True,
        )  # fmt: skip

    images = held_out_fold(model, lambda: open_split("train", 0.0))
    if images is None:
        images = open_split("val", fraction)
        if model.used_images is not None:
            train_fraction = 1.0 if recipe is None else recipe.train_fraction
            images = held_out_in_training(images, model.used_images, train_fraction)
    images = with_classes(images, model.classes, class_synonyms(len(model.classes)))
    loader = classification_eval_loader(images, input, batch_size, rank=rank, world=world)
    return ClassificationEvaluation(model.classes, images, model.config, input), loader


def open_labeled(
    data: str,
    split: Split,
    val_fraction: float,
    seed: int,
    recipe: Recipe | None,
    labels: LabelsConfig | None,
    *,
    own: bool,
    allow_damaged: bool | None = None,
    multi_label: bool | None = None,
    one_class: bool = False,
) -> ImageDataset:
    """Open a dataset for a model that was trained with a recipe; the other arguments are those of ``open_dataset``.

    Args:
        data: The dataset.
        split: The split to open.
        val_fraction: Fraction of images to hold out.
        seed: Random seed of the held-out selection.
        recipe: Recipe of the model; of another task it does not count.
        labels: How a label file is read; ``None``: as in training, or by default if other data cannot be read so.
        own: Whether it is the dataset of the recipe.
        allow_damaged: Whether to use a damaged tar; ``None`` for the recipe's.
        multi_label: Whether an image may have several classes; ``None`` for the recipe's.
        one_class: Whether images of a single class are enough.
    """
    trained = recipe if isinstance(recipe, ClassificationRecipe) else None
    if allow_damaged is None:
        allow_damaged = recipe is not None and getattr(recipe.input, "allow_damaged", False)
    if multi_label is None:
        multi_label = trained is not None and trained.classify.multi_label
    ways = [labels or getattr(recipe, "labels", LabelsConfig())]  # classifiers and pretraining have them
    if labels is None and not own and ways[0] != LabelsConfig():
        ways.append(LabelsConfig())
    errors: list[ValueError] = []
    for way in ways:
        try:
            return open_dataset(
                data, split, val_fraction=val_fraction, seed=seed, allow_damaged=allow_damaged, labels=way,
                multi_label=multi_label, one_class=one_class,
            )  # fmt: skip
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def same_source(data: str, trained_on: str) -> bool:
    """Whether two datasets are the same, e.g. one folder by a relative and an absolute path."""
    paths = Path(data).expanduser(), Path(trained_on).expanduser()
    return data == trained_on or (all(path.exists() for path in paths) and paths[0].samefile(paths[1]))


def flops_model(model: nn.Module, spec: ModelSpec) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the model itself, and its input shape (C, H, W)."""
    size = spec.input.size  # type: ignore[attr-defined]
    return model, (spec.input.channels, size, size)


TASK = TaskType(build_model, ClassificationTraining, open_evaluation, flops_model, Classifier, ClassifierExport)
