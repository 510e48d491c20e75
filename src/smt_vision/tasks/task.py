"""The contract between a task and the rest: what training, evaluation, prediction and export ask of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..deploy.form import ExportForm
from ..spec import ModelSpec
from .predictor import Predictor

Batch = dict[str, Any]


@dataclass(frozen=True)
class MetricFormat:
    """How a metric is displayed.

    Args:
        label: Display name, e.g. ``top-1``.
        unit: ``%`` is shown with two digits, any other unit, and none, with four.
    """

    label: str
    unit: str = "%"

    @property
    def title(self) -> str:
        """The label with its unit, e.g. ``top-1 (%)``."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float, sign: str = "") -> str:
        """The value as it is shown; ``sign="+"`` for a difference."""
        return f"{value:{sign}.{2 if self.unit == '%' else 4}f}"


@dataclass(frozen=True)
class Table:
    """A table of a run's summary.

    Args:
        title: Heading.
        header: Column names.
        rows: Text and numbers; floats are shown with two digits.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str | int | float, ...]]


class Metric(Protocol):
    """Exact sums over a dataset, for any number of processes."""

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch: what ``Evaluation.predict`` returned, and the batch itself."""

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        """Combine the processes' sums, once, at the end."""

    def compute(self) -> dict[str, Any]:
        """Metrics by name: scalars as floats, tables as lists and dicts (plain data, for JSON).

        ``count`` is the number of images.
        """


class TrainLoader(Protocol):
    """Batches whose order and content are a pure function of the epoch."""

    @property
    def batches_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        """The epoch's batches from ``start_batch`` on; those before are skipped without being read."""

    def close(self) -> None:
        """Stop the worker processes."""


class EvalLoader(Protocol):
    """Every sample of a dataset exactly once over all processes."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class Evaluation(Protocol):
    """A validation set, and how a model's outputs on it are measured and shown.

    Attributes:
        primary_metric: Metric that decides which checkpoint is best, in percent; higher is better, and it is finite.
        metric_formats: The metrics worth a line of the summary, in order; the primary metric is one of them, and
            ``loss`` is there where the metric has one.
    """

    primary_metric: str
    metric_formats: Mapping[str, MetricFormat]

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output for a batch, in the form that the metric takes."""

    def metric(self, device: torch.device) -> Metric: ...

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """Details beyond the scalar metrics."""

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """Draw an evaluation into a folder; returns the files, in the order of the summary."""


class Training(Evaluation, Protocol):
    """A training run's model, data, loss and metric.

    Attributes:
        model: The network, with the weights that the recipe starts from.
        spec: Model spec that goes into every checkpoint.
        input_description: What the model sees of an image, in words, e.g. ``3 x 224 x 224 pixels``.
    """

    @property
    def model(self) -> nn.Module: ...

    spec: ModelSpec
    input_description: str

    def train_loader(self, rank: int, world: int) -> TrainLoader: ...

    def eval_loader(self, rank: int, world: int) -> EvalLoader: ...

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Losses of a batch by name; the training loop sums them."""

    def samples(self, model: nn.Module, device: torch.device) -> Image.Image | None:
        """The same few validation images each time, ground truth beside prediction; ``None`` for no picture.

        Called on one process after an evaluation, with the model in evaluation mode.
        """


@dataclass(frozen=True)
class TaskType:
    """The parts of a task, as :func:`smt_vision.tasks.get_task` gives them.

    Args:
        build_model: ``(spec, pretrained=False, checkpoint=None)`` to the model; ``pretrained`` loads published weights,
            ``checkpoint`` starts from a :class:`smt_vision.checkpoints.Checkpoint`.
        training: ``(recipe)`` to a :class:`Training`, with its datasets opened and its model built, so that whatever
            cannot work fails early.
        evaluation: ``(predictor, data, input, batch_size, rank, world)`` to an :class:`Evaluation` and its loader.
        flops_model: ``(model, spec)`` to a module of one batch of images and the ``(C, H, W)`` for which its parameters
            and GMAC are reported.
        predictor: Class of the predictors.
        export: Class that exports them.
    """

    build_model: Callable[..., nn.Module]
    training: Callable[[Any], Training]
    evaluation: Callable[..., tuple[Evaluation, EvalLoader]]
    flops_model: Callable[[nn.Module, ModelSpec], tuple[nn.Module, tuple[int, int, int]]]
    predictor: type[Predictor[Any]]
    export: type[ExportForm]
