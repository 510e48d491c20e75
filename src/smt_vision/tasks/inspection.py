"""What the inspection of a dataset needs from a task: its splits, and what the labels say."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.dataset import RawDataset
from ..recipe import Input

T = TypeVar("T")
Counts = npt.NDArray[np.int64]
Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Labels:
    """What the labels of one split say, as plain data where nothing else is said.

    Args:
        classes: A row per class, in their order: ``class``, ``images``, and what else is counted.
        image: Image index of each pair of an image and a class that occurs in it (P,).
        label: Class index of each pair (P,).
        facts: Further numbers.
        arrays: Values to draw, by name.
    """

    classes: list[dict[str, Any]]
    image: Counts
    label: Counts
    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


class TaskInspection(ABC, Generic[T]):
    """A task's part of the inspection of a dataset.

    Attributes:
        options: Fields of a recipe that say how the data are opened and read, by group.
        draws_labels: Whether :meth:`panel` draws labels; otherwise the class is all there is.
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]]
    draws_labels = True

    @abstractmethod
    def recognizes(self, data: str) -> bool:
        """Whether the data have a layout of this task and of no task that is asked later."""

    @abstractmethod
    def open(self, data: str, seed: int, options: Options) -> Mapping[str, RawDataset[T]]:
        """The splits of a dataset, as training opens them.

        Args:
            data: The data, as in a recipe.
            seed: Seed of held-out images.
            options: Fields of ``options`` that differ from a recipe's defaults.

        Raises:
            ValueError: The data cannot be opened.
        """

    def input(self, options: Options) -> Input:
        """How the images are decoded."""
        return Input()

    def measure(self, image: Image.Image, target: T, name: str) -> Counts | None:
        """What is to be known about the label of a decoded image; the same shape for all images of a dataset.

        Raises:
            UnreadableImage: The label does not belong to the image.
        """
        return None

    @abstractmethod
    def labels(self, images: RawDataset[T], rows: Counts, measured: Counts) -> Labels:
        """What the labels of a split say.

        Args:
            images: The split.
            rows: Indices (n,) of the images that were read.
            measured: The results of :meth:`measure` for these (n, ...).
        """

    def panel(self, image: Image.Image, target: T, classes: tuple[str, ...], side: int) -> Image.Image:
        """The image with its label drawn, with a long side of ``side`` pixels."""
        raise NotImplementedError


def class_rows(images: RawDataset[Any], counts: Counts, **more: Any) -> list[dict[str, Any]]:
    """Rows of :class:`Labels` with the number of images per class (K,), and more columns of K values."""
    columns = {"images": counts.tolist(), **more}
    return [
        {"class": name, **{column: values[k] for column, values in columns.items()}}
        for k, name in enumerate(images.classes)
    ]
