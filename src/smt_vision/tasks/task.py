"""The contract between a task and the engine."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


class Metric(Protocol):
    """Exact sums over a data set, on any number of processes."""

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add a batch: what ``Task.predict`` returned, and the batch itself."""

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        """Combine the processes' sums, once, at the end."""

    def compute(self) -> dict[str, Any]:
        """Numbers by name: those worth a line as floats, tables as lists and dicts (plain data, for JSON)."""


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
    """The part of a task that evaluation needs."""

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's output for a batch."""

    def metric(self, device: torch.device) -> Metric: ...


class Task(Evaluable, Protocol):
    """What is learnt: the model, its data, its loss and its metric.

    Attributes:
        model: the network, untrained or with the recipe's starting weights.
        headline: the metric that says which checkpoint is best; higher is better.
        card: plain data that goes into every checkpoint and suffices to use the model: classes, input.
    """

    model: nn.Module
    headline: str
    card: dict[str, Any]

    def train_loader(self, rank: int, world: int) -> TrainLoader: ...

    def eval_loader(self, rank: int, world: int) -> EvalLoader: ...

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Named losses of a batch; the loop sums them."""

    def pictures(self, folder: Path, metrics: dict[str, Any]) -> list[Path]:
        """Draw an evaluation into the run's folder."""
