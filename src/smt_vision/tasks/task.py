"""The contract between a task and the engine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

Batch = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """How a number of an evaluation is told to a reader.

    Args:
        label: what it is called, as ``top-1``.
        unit: ``%`` is shown with two digits, any other, and none, with four.
    """

    label: str
    unit: str = "%"

    @property
    def title(self) -> str:
        """The label with its unit, as ``top-1 (%)``."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float, sign: str = "") -> str:
        """The number as it is shown; ``sign="+"`` for a difference."""
        return f"{value:{sign}.{2 if self.unit == '%' else 4}f}"


@dataclass(frozen=True)
class Table:
    """A table of a run's summary.

    Args:
        title: above it.
        header: the columns' names.
        rows: words, and numbers: whole ones as they are, others with two digits.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str | int | float, ...]]


class Metric(Protocol):
    """Exact sums over a data set, on any number of processes."""

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch: what ``Task.predict`` returned, and the batch itself."""

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        """Combine the processes' sums, once, at the end."""

    def compute(self) -> dict[str, Any]:
        """Numbers by name: those worth a line as floats, tables as lists and dicts (plain data, for JSON).

        ``count`` is the number of images.
        """


class TrainLoader(Protocol):
    """Batches whose order and content are a pure function of the epoch."""

    @property
    def batches_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        """The epoch's batches from ``start_batch`` on; those before are skipped without being read."""

    def close(self) -> None:
        """End the worker processes."""


class EvalLoader(Protocol):
    """Every sample of a data set exactly once over all processes."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class Evaluable(Protocol):
    """The part of a task that evaluation needs.

    Attributes:
        headline: the metric, in percent, that says which checkpoint is best; higher is better, and it is finite.
        measures: the metrics worth a line of the summary, in order; the headline is one of them, and ``loss`` is there
            where the metric has one.
    """

    headline: str
    measures: Mapping[str, Measure]

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output for a batch, as the metric takes it."""

    def metric(self, device: torch.device) -> Metric: ...

    def tables(self, metrics: dict[str, Any]) -> list[Table]:
        """What there is to tell beyond the measures."""

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """Draw an evaluation into a folder; returns what was drawn, in the order of the summary."""


class Task(Evaluable, Protocol):
    """What is learnt: the model, its data, its loss and its metric.

    Attributes:
        model: the network, untrained or with the recipe's starting weights.
        images: what the model sees of an image, in words, as ``3 x 224 x 224 pixels``.
        card: plain data that goes into every checkpoint and suffices to use the model: classes, input.
    """

    @property
    def model(self) -> nn.Module: ...

    images: str
    card: dict[str, Any]

    def train_loader(self, rank: int, world: int) -> TrainLoader: ...

    def eval_loader(self, rank: int, world: int) -> EvalLoader: ...

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Named losses of a batch; the loop sums them."""

    def samples(self, model: nn.Module, device: torch.device) -> Image.Image | None:
        """The same few held-out images each time, with the truth beside what the model says; ``None``: no picture.

        Called on one process after an evaluation, with the model in evaluation mode.
        """

    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        """A module of one batch of images, and the ``(C, H, W)`` for which its parameters and GMAC are told."""
