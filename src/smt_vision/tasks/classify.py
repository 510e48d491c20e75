"""Image classification."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from .. import pictures
from ..data import ImageSet, decode, eval_loader, open_dataset, train_loader
from ..metrics import ClassificationMetrics
from ..recipes import Augment, Recipe
from .build import build_model, resolve_input
from .shown import worst
from .task import Batch, EvalLoader, Measure, Table, TrainLoader

WORST = 25  # mistakes kept for the picture


class Classification:
    """What training and evaluation of classifiers share.

    Args:
        classes: names, by the model's output.
        val_set: the images to evaluate on.
    """

    headline = "top1"
    measures: Mapping[str, Measure] = {
        "top1": Measure("top-1"),
        "top5": Measure("top-5"),
        "mean_class_accuracy": Measure("mean over classes"),
        "loss": Measure("loss", "nats"),
        "ece": Measure("calibration error"),
    }

    def __init__(self, classes: tuple[str, ...], val_set: ImageSet) -> None:
        self.classes = classes
        self.val_set = val_set

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["image"])

    def metric(self, device: torch.device) -> "ClassifyMetric":
        return ClassifyMetric(self.classes, device)

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """The best and the worst classes, and, up to 1000 classes, the most frequent confusions."""
        tables = [_ranked(metrics["per_class"])]
        if metrics["confusion"] is not None:
            tables.append(_confusions(np.asarray(metrics["confusion"]), self.classes))
        return tables

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """``confusion.png`` (up to 1000 classes) and ``mistakes.png``, the worst ones."""
        drawn = []
        if metrics["confusion"] is not None:
            drawn.append(folder / "confusion.png")
            pictures.confusion(torch.tensor(metrics["confusion"]), self.classes, drawn[-1])
        items = []
        for mistake in metrics["worst"]:
            raw, _, name = self.val_set.read(mistake["index"])
            items.append(
                pictures.Mistake(
                    image=decode(raw, 3, name=name),
                    target=self.classes[mistake["target"]],
                    prediction=self.classes[mistake["prediction"]],
                    confidence=mistake["confidence"],
                    id=name,
                )
            )
        drawn.append(folder / "mistakes.png")
        pictures.mistakes(items, drawn[-1])
        return drawn


class Classify(Classification):
    """Training a classifier on images of one class each, in a set with named classes.

    Args:
        recipe: the run. Its data set is opened and its model built at once, so that what cannot work fails early.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.train_set = self._open("train")
        super().__init__(self.train_set.classes, self._open("val"))
        self.model = build_model(recipe, num_classes=len(self.classes))
        self.input = resolve_input(recipe.input, self.model)
        self.images = f"{self.input.channels} x {self.input.size} x {self.input.size} pixels"
        self.mix = _mix(recipe.augment, len(self.classes))
        self.card = {
            "task": "classify",
            "model": recipe.model,
            "model_args": dict(recipe.model_args),
            "classes": list(self.classes),
            "input": asdict(self.input),
        }

    def _open(self, split: Literal["train", "val"]) -> ImageSet:
        return open_dataset(self.recipe.data, split, val_fraction=self.recipe.input.val_fraction, seed=self.recipe.seed)

    def train_loader(self, rank: int, world: int) -> TrainLoader:
        recipe = self.recipe
        return train_loader(
            self.train_set, self.input, recipe.augment, recipe.batch_size, seed=recipe.seed, rank=rank, world=world
        )

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return eval_loader(self.val_set, self.input, self.recipe.batch_size, rank=rank, world=world)

    def samples(self, model: nn.Module, device: torch.device) -> None:
        """None: a class is told in a word."""

    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        return self.model, (self.input.channels, self.input.size, self.input.size)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        image, target = batch["image"], batch["target"]
        if self.mix is not None:
            image, target = self.mix(image, target)
        return {"loss": F.cross_entropy(model(image), target, label_smoothing=self.recipe.augment.label_smoothing)}


class ClassifyMetric:
    """Accuracy and its relatives, exact on any number of processes, and the worst mistakes.

    Args:
        classes: names, by target.
        device: where the sums live.
    """

    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        self.classes = classes
        self.sums = ClassificationMetrics(len(classes), device)
        # Rows of (confidence, index, target, prediction); -1 where there is none.
        self.worst = torch.full((WORST, 4), -1.0, dtype=torch.float64, device=device)

    def update(self, output: Tensor, batch: Batch) -> None:
        target, logits = batch["target"], output.float()
        self.sums.update(logits, target)
        confidence, prediction = logits.softmax(-1).max(-1)
        rows = torch.stack([t.double() for t in (confidence, batch["index"], target, prediction)], dim=-1)
        self.worst = worst(torch.cat([self.worst, rows[prediction != target]]), WORST)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        self.sums.reduce(all_reduce)
        self.worst = worst(all_gather(self.worst).reshape(-1, 4), WORST)

    def compute(self) -> dict[str, Any]:
        out = self.sums.compute()
        confusion = out["confusion"]
        out["confusion"] = confusion.tolist() if isinstance(confusion, Tensor) else confusion
        for row in out["per_class"]:
            row["class"] = self.classes[int(row["class"])]
        out["worst"] = [
            {"index": int(i), "target": int(t), "prediction": int(p), "confidence": c}
            for c, i, t, p in self.worst.tolist()
            if c >= 0
        ]
        return out


def _ranked(per_class: list[dict[str, Any]]) -> Table:
    seen = [row for row in per_class if row["count"]]
    ranked = sorted(seen, key=lambda row: -row["accuracy"])
    shown = min(5, len(ranked) // 2) or len(ranked)  # no class is both among the best and the worst
    rows: list[tuple[str | int | float, ...]] = []
    for label, part in (("best", ranked[:shown]), ("worst", ranked[::-1][:shown])):
        rows.append((f"**{label} {len(part)}**", "", ""))
        rows += [(row["class"], row["count"], row["accuracy"]) for row in part]
    return Table("Classes", ("class", "images", "accuracy (%)"), rows)


def _confusions(matrix: np.ndarray, classes: tuple[str, ...]) -> Table:
    images = matrix.sum(axis=1)
    wrong = matrix - np.diag(matrix.diagonal())
    worst = [np.unravel_index(cell, wrong.shape) for cell in np.argsort(-wrong, axis=None, kind="stable")[:5]]
    rows: list[tuple[str | int | float, ...]] = [
        (classes[true], classes[said], int(wrong[true, said]), 100 * wrong[true, said] / images[true])
        for true, said in worst
        if wrong[true, said]
    ]
    return Table("Most frequent confusions", ("true class", "taken for", "images", "share (%)"), rows)


def _mix(augment: Augment, num_classes: int) -> v2.Transform | None:
    """Mixup and cutmix of a batch and its targets; draws from torch's global generator."""
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
