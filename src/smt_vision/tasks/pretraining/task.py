"""Self-supervised pretraining: SimCLR's loss between two views of each image.

The network is a classifier of timm whose last layer is replaced by a projection head. The weights of the latest
evaluation, without the head, are a checkpoint of a classifier without classes, from which a run of any other task
starts. They are not selected by the metric, which is often 100 % on few validation images after a few epochs, while
the features still improve.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.fingerprint import UsedImages
from ...extras import require
from ...spec import ModelSpec
from ...text import get_logger
from .. import get_task, read_spec
from ..build import (
    check_image_size,
    classifier_layers,
    create_model,
    initial_weights,
    load_pretrained,
    resolve_input,
    set_grad_checkpointing,
)
from ..classification.data.dataset import ImageDataset
from ..distill import Distillation
from ..image_size import arguments_for_size
from ..processes import share_statistics
from ..samples import gather_rows
from ..task import Batch, EvalLoader, MetricFormat, Table, TrainLoader
from .config import PretrainingRecipe
from .data import open_images, pretraining_eval_loader, pretraining_train_loader

log = get_logger(__name__)
MAX_EVALUATED = 50_000  # images; each is compared with all others
CHUNK = 1024  # images whose similarities to all others are in memory at a time
VOTE_TEMPERATURE = 0.07  # of the votes of neighbors by their similarity (Wu et al., CVPR 2018)


class PretrainingTraining:
    """Pretraining of a network.

    Args:
        recipe: Recipe of the run. The dataset is opened and the model built immediately, so that errors show early.

    Raises:
        ValueError: The images cannot be read, or the model has no linear classifier.
        ImportError: lightly is not installed.
    """

    distillation: Distillation | None = None
    keeps_latest = True

    def __init__(self, recipe: PretrainingRecipe) -> None:
        self.recipe = recipe
        checkpoint = initial_weights(recipe)
        heads, losses = require("lightly.models.modules.heads", "pretrain"), require("lightly.loss", "pretrain")
        self.initial_images = UsedImages.of_initial_weights(checkpoint)
        self.train_set, self.val_set = open_images(recipe)
        arguments = arguments_for_size(recipe.model, recipe.model_args, recipe.input.size)
        self.model = create_model(
            recipe.model,
            pretrained=recipe.pretrained and checkpoint is None,
            in_chans=recipe.input.channels,
            **arguments,
        )
        check_image_size(self.model, recipe.input.channels, recipe.input.size)
        if checkpoint is not None:
            load_pretrained(self.model, checkpoint)
        self.training_modules = _replace_classifier(
            self.model,
            recipe.model,
            lambda features: heads.SimCLRProjectionHead(features, recipe.pretrain.hidden, recipe.pretrain.dim),
        )
        # With statistics of its own on each process, the network could tell the two views of an image, which are on the
        # same process, from the negatives of the others (Chen et al., ICML 2020).
        self.model = share_statistics(self.model)
        set_grad_checkpointing(self.model, recipe)
        self._evaluated = _evenly_spaced(self.val_set, MAX_EVALUATED)
        self.input = resolve_input(recipe.input, self.model, checkpoint)
        spec = {"task": "classify", "model": recipe.model, "classes": [], "input": asdict(self.input), "head": {}}
        self.spec: ModelSpec = read_spec({**spec, "model_args": arguments})
        self.input_description = f"{self.input.channels} x {self.input.size} x {self.input.size} pixels"
        self.labeled = len(self.train_set.classes) > 1
        self.primary_metric = "knn" if self.labeled else "retrieval"
        knn = {"knn": MetricFormat("nearest neighbors")} if self.labeled else {}
        self.metric_formats: Mapping[str, MetricFormat] = {**knn, "retrieval": MetricFormat("retrieval of views")}
        self.criterion = losses.NTXentLoss(recipe.pretrain.temperature, gather_distributed=True)

    def train_loader(self, rank: int, world: int) -> TrainLoader:
        return pretraining_train_loader(self.train_set, self.recipe, self.input, rank, world)

    def eval_loader(self, rank: int, world: int) -> EvalLoader:
        return pretraining_eval_loader(self._evaluated, self.recipe, self.input, rank, world)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        first, second = model(batch["image"]).float().chunk(2)
        return {"loss": self.criterion(first, second)}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Features (2 B, D) of the views, as a classifier would read them."""
        network: Any = model
        return network.forward_head(network.forward_features(batch["image"]), pre_logits=True).float()

    def metric(self, device: torch.device, resamples: int = 0) -> "NeighborMetric":
        classes = max(len(self.train_set.classes), len(self.val_set.classes))  # they may be numbers without names
        return NeighborMetric(device, self.recipe.pretrain.neighbors, classes)

    def samples(self, model: nn.Module, device: torch.device) -> None:
        """Return ``None``: there are no sample pictures."""

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        return []

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        return []


class NeighborMetric:
    """How well the features tell images apart, without training on them. Shapes: N images, D features.

    ``knn``, if there are classes: top-1 accuracy in percent of the vote of an image's nearest neighbors among the other
    validation images, weighted by similarity (Wu et al., CVPR 2018). ``retrieval``: share in percent of the augmented
    views whose nearest image is the one that they are of.

    Args:
        device: Device on which processes exchange their features.
        neighbors: Number of neighbors that vote.
        classes: Number of classes; 1 for none.
    """

    def __init__(self, device: torch.device, neighbors: int, classes: int) -> None:
        self.device, self.neighbors, self.classes = device, neighbors, classes
        self._rows: list[Tensor] = []  # index, class, features of the image (D), features of its view (D)

    def update(self, output: Tensor, batch: Batch) -> None:
        labels = torch.stack([batch["index"], batch["target"]], dim=1).to(output)
        self._rows.append(torch.cat([labels, *output.chunk(2)], dim=1).float().cpu())

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        # A process may have no image: the validation images may be few.
        rows = torch.cat(self._rows) if self._rows else torch.zeros(0, 0)
        self._rows = [gather_rows(rows.to(self.device), all_gather)]

    def compute(self) -> dict[str, Any]:
        rows = torch.cat(self._rows)
        rows = rows[rows[:, 0].argsort()]
        target = rows[:, 1].long()
        images, views = (nn.functional.normalize(part) for part in rows[:, 2:].chunk(2, dim=1))
        out: dict[str, Any] = {
            "count": len(rows),
            "retrieval": _percent(_nearest(views, images), torch.arange(len(rows), device=rows.device)),
        }
        if self.classes > 1:
            out["knn"] = _percent(_vote(images, target, self.neighbors, self.classes), target)
        return out


def _evenly_spaced(images: ImageDataset, count: int) -> ImageDataset:
    """At most ``count`` images, evenly spaced: of each class in proportion, where images are in order of classes."""
    if len(images) <= count:
        return images
    log.info("%s: evaluating %d of %d images", images.where, count, len(images))
    return images.select(np.linspace(0, len(images) - 1, count).astype(np.int64))


def _nearest(queries: Tensor, gallery: Tensor) -> Tensor:
    return torch.cat([(part @ gallery.T).argmax(dim=1) for part in queries.split(CHUNK)])


def _vote(images: Tensor, target: Tensor, neighbors: int, classes: int) -> Tensor:
    """The class (N,) of each image (N, D) by the others."""
    votes = []
    for start in range(0, len(images), CHUNK):
        similarity = images[start : start + CHUNK] @ images.T
        similarity.diagonal(start).fill_(-torch.inf)
        top = similarity.topk(min(neighbors, max(len(images) - 1, 1)), dim=1)
        weights = (top.values / VOTE_TEMPERATURE).softmax(dim=1)
        votes.append(
            weights.new_zeros(len(weights), classes).scatter_add_(1, target[top.indices], weights).argmax(dim=1)
        )
    return torch.cat(votes)


def _percent(prediction: Tensor, target: Tensor) -> float:
    return 100 * int((prediction == target).sum()) / max(len(target), 1)


def _replace_classifier(model: Any, name: str, build: Callable[[int], nn.Module]) -> tuple[str, ...]:
    """Replace the last layer of a timm model; returns the prefix of its parameters."""
    layers = classifier_layers(model)
    layer = model.get_submodule(layers[0]) if len(layers) == 1 else None
    if not isinstance(layer, nn.Linear) or not hasattr(model, "forward_head"):
        raise ValueError(
            f"model {name!r} does not end in one linear classifier, which pretraining replaces; use another, e.g. an "
            "SMT, ConvNeXt, EfficientNet, ResNet or ViT"
        )
    model.set_submodule(layers[0], build(layer.in_features))
    return (f"{layers[0]}.",)


TASK = replace(get_task("classify"), training=PretrainingTraining)
