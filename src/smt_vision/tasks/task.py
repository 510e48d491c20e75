"""The interface of a task: what training, evaluation, prediction and export need from it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.dataset import RawDataset
from ..data.fingerprint import UsedImages
from ..deploy.form import ExportForm
from ..spec import ModelSpec
from .distill import Distillation
from .predictor import Predictor

Batch = dict[str, Any]


@dataclass(frozen=True)
class MetricFormat:
    """How a metric is displayed.

    Args:
        label: Display name, e.g. ``top-1``.
        unit: Unit, or empty. ``%`` is shown with two decimals, everything else with four.
    """

    label: str
    unit: str = "%"

    @property
    def title(self) -> str:
        """The label with its unit, e.g. ``top-1 (%)``."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float | None, sign: str = "") -> str:
        """The value as displayed, ``None`` as undefined; ``sign="+"`` for a difference."""
        if value is None:
            return "undefined"
        return f"{value:{sign}.{2 if self.unit == '%' else 4}f}"


@dataclass(frozen=True)
class Table:
    """A table of a run's summary.

    Args:
        title: Heading.
        header: Column names.
        rows: Text and numbers; floats are shown with two decimals, and text is escaped unless it is
            :class:`~smt_vision.text.Markdown`.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str | int | float, ...]]


class Metric(Protocol):
    """Metrics of a dataset, accumulated per batch; exact for any number of processes."""

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch: the output of ``Evaluation.predict``, and the batch itself."""

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        """Combine the state of all processes; call it once, after the last batch."""

    def compute(self) -> dict[str, Any]:
        """Metrics by name as plain data for JSON: scalars as floats, tables as lists and dicts.

        ``count`` is the number of images.
        """


class TrainLoader(Protocol):
    """Training batches; their order and content are a pure function of the epoch."""

    @property
    def batches_per_epoch(self) -> int: ...

    @property
    def images_per_epoch(self) -> int: ...

    @property
    def images_per_batch(self) -> int: ...

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        """The batches of an epoch, starting with ``start_batch``; earlier batches are not read."""

    def close(self) -> None:
        """Stop the worker processes."""


class EvalLoader(Protocol):
    """Every sample of a dataset exactly once over all processes."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Stop the worker processes."""


class Evaluation(Protocol):
    """A validation set, its metrics and how they are displayed.

    Attributes:
        val_set: The images.
        primary_metric: Name of the metric that decides which checkpoint is best, unless the task keeps the latest: in
            percent, finite, higher is better.
        metric_formats: The metrics listed in the summary, in order; includes the primary metric, and ``loss`` if the
            metric computes one.
    """

    primary_metric: str
    metric_formats: Mapping[str, MetricFormat]

    @property
    def val_set(self) -> RawDataset[Any]: ...

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output for a batch, as expected by ``Metric.update``."""

    def metric(self, device: torch.device, resamples: int = 0) -> Metric:
        """The metrics, accumulated on a device.

        With ``resamples``, they include ``interval``, the bootstrap interval of the primary metric over that many
        resamples of the images; see :func:`smt_vision.tasks.bootstrap.as_interval`.
        """

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """Details beyond the scalar metrics."""

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """Save pictures of an evaluation in a folder; returns the files, in the order of the summary."""


class Training(Evaluation, Protocol):
    """A training run's model, data, loss and metric.

    Attributes:
        model: The network with its initial weights.
        spec: Model spec that is stored in every checkpoint.
        train_set: The training images.
        initial_images: Images that the initial weights or the teacher were trained on, if these are of a run.
        distillation: The teacher to learn from, if there is one.
        training_modules: Prefixes of the parameters that only training needs, which the best weights are saved without.
        keeps_latest: ``best.pt`` holds the weights of the latest evaluation, and the primary metric is only reported.
        input_description: Description of the model's input, e.g. ``3 x 224 x 224 pixels``.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def train_set(self) -> RawDataset[Any]: ...

    spec: ModelSpec
    initial_images: UsedImages | None
    distillation: Distillation | None
    training_modules: tuple[str, ...]
    keeps_latest: bool
    input_description: str

    def train_loader(self, rank: int, world: int) -> TrainLoader: ...

    def eval_loader(self, rank: int, world: int) -> EvalLoader: ...

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Losses of a batch by name; the training loop adds them up."""

    def samples(self, model: nn.Module, device: torch.device) -> Image.Image | None:
        """A picture of a few fixed validation images with ground truth and prediction; ``None`` for no picture.

        Called on one process after an evaluation, with the model in evaluation mode.
        """


@dataclass(frozen=True)
class TaskType:
    """The parts of a task; see :func:`smt_vision.tasks.get_task`.

    Args:
        build_model: ``(spec, pretrained=False, checkpoint=None) -> model``. ``pretrained`` loads published weights,
            ``checkpoint`` the weights of a :class:`smt_vision.checkpoints.Checkpoint`.
        training: ``(recipe) -> Training``. It opens the datasets and builds the model, so that invalid settings fail
            early.
        evaluation: ``(predictor, data, input, batch_size, rank, world) -> (Evaluation, EvalLoader)``; with ``split`` if
            ``splits`` has others than ``val``.
        flops_model: ``(model, spec) -> (module, (C, H, W))``: a module called with one image batch, and the input size
            for which its parameters and GMAC are reported.
        predictor: Class of the task's predictors.
        export: Class that exports a predictor.
        splits: Splits of a dataset that can be evaluated.
    """

    build_model: Callable[..., nn.Module]
    training: Callable[[Any], Training]
    evaluation: Callable[..., tuple[Evaluation, EvalLoader]]
    flops_model: Callable[[nn.Module, ModelSpec], tuple[nn.Module, tuple[int, int, int]]]
    predictor: type[Predictor[Any]]
    export: type[ExportForm]
    splits: tuple[str, ...] = ("val",)
