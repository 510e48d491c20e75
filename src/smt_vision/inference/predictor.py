"""What classifiers, detectors and segmenters in use have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from ..data import BrokenImage, channels_of, decode
from ..recipes import Input, Recipe

R = TypeVar("R")


@dataclass(frozen=True)
class Seen:
    """An image on its way into the model.

    Args:
        id: its path, or its place in the list given.
        size: height and width as stored, its EXIF orientation followed.
        pixels: ``(C, h, w)``, as the model takes it.
    """

    id: str
    size: tuple[int, int]
    pixels: Tensor


class Predictor(ABC, Generic[R]):
    """A model with its classes and the way images must be prepared for it; R is what it says of an image.

    Args:
        model: put into evaluation mode, on the device.
        classes: names, by label.
        input: how images become tensors.
        transform: the same as a function, from an image to ``(C, h, w)``.
        name: what to call it.
        device: where it runs.
        recipe: what it was trained by, where that is known.
    """

    kind: ClassVar[str]  # in words, for messages: "a classifier"
    batch_size: ClassVar[int]  # images a forward pass, unless another number is asked for

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        input: Input,
        transform: Callable[[Image.Image], Tensor],
        name: str,
        device: str | torch.device,
        recipe: Recipe | None,
    ) -> None:
        self.model = model.eval().to(device)
        self.classes = tuple(classes)
        self.input = input
        self.transform = transform
        self.name = name
        self.device = torch.device(device)
        self.recipe = recipe

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | torch.device = "cpu",
        changes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """As :func:`smt_vision.inference.load`, of this kind alone.

        Raises:
            ValueError: the source is of another kind; and what ``load`` raises.
        """
        from .load import load  # it knows all kinds, and so imports them

        found = load(source, device, changes)
        if not isinstance(found, cls):
            raise ValueError(f"{source} is {found.kind} and not {cls.kind}; smt_vision.inference.load takes any")
        return found

    def __call__(self, images: Iterable[str | Path | Image.Image], batch_size: int | None = None) -> list[R]:
        """What the model says of each image; see :meth:`stream`."""
        return list(self.stream(images, batch_size))

    def stream(self, images: Iterable[str | Path | Image.Image], batch_size: int | None = None) -> Iterator[R]:
        """What the model says of images as they come, in order; an unreadable one gives a result with its ``error``.

        No more than a batch is read ahead.

        Args:
            images: paths or PIL images of any mode and size.
            batch_size: images a forward pass.
        """
        return self._stream(images, batch_size, self._say)

    def _stream(
        self,
        images: Iterable[str | Path | Image.Image],
        batch_size: int | None,
        say: Callable[[list[Seen]], Sequence[R]],
    ) -> Iterator[R]:
        items = iter(enumerate(images))
        while batch := list(islice(items, batch_size or self.batch_size)):
            seen = [self._see(i, image) for i, image in batch]
            readable = [image for image in seen if isinstance(image, Seen)]
            results = iter(say(readable) if readable else ())
            for image in seen:
                yield next(results) if isinstance(image, Seen) else self._unreadable(*image)

    def _see(self, i: int, image: str | Path | Image.Image) -> Seen | tuple[str, str]:
        """The image, or its name and why it cannot be read."""
        name = str(i) if isinstance(image, Image.Image) else str(image)
        try:
            picture = decode(
                image if isinstance(image, Image.Image) else Path(image), channels_of(self.input), name=name
            )
        except BrokenImage as error:
            return name, str(error)
        return Seen(name, (picture.height, picture.width), self.transform(picture))

    @property
    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Plain data that suffices to use the model, as checkpoints have it: task, classes, input, head."""

    @property
    @abstractmethod
    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        """A module of one batch of images, and the ``(C, H, W)`` for which its parameters and GMAC are told."""

    @abstractmethod
    def _say(self, batch: list[Seen]) -> Sequence[R]:
        """Results of a batch of at least one image, in order."""

    @abstractmethod
    def _unreadable(self, id: str, error: str) -> R:
        """The result of an image that cannot be read."""
