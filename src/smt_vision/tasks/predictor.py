"""Base class of the predictors of all tasks."""

import copy
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from ..bounds import Count, checked, short
from ..data.ahead import image_threads, map_ahead
from ..data.decode import UnreadableImage, count_pixels, decode_for_resize
from ..data.files import find_images
from ..data.fingerprint import UsedImages
from ..data.resample import image_size
from ..deploy.errors import is_out_of_memory
from ..deploy.export import export_model
from ..deploy.exported import ExportedModel, Manifest
from ..deploy.quantize import AccuracyControl
from ..recipe import Recipe
from ..spec import ModelSpec
from . import get_task
from .results import Source

R = TypeVar("R")
MAX_VALUES = 1 << 27  # of the network input of a batch, 0.5 GB; a larger image is a batch of its own


@dataclass(frozen=True)
class PreparedImage:
    """A preprocessed image.

    Args:
        source: Image as passed by the caller.
        id: Path of the image, or its index among the passed images.
        size: Height and width of the stored image, after EXIF orientation.
        pixels: Model input ``(C, h, w)``, or the decoded image if a predictor prepares it in parts.
    """

    source: Source
    id: str
    size: tuple[int, int]
    pixels: Tensor


class Predictor(ABC, Generic[R]):
    """A model with its classes and preprocessing; R is the type of its results.

    Several threads may use a predictor at the same time, e.g. those of a web server.

    Args:
        model: Set to evaluation mode and moved to the device.
        spec: Classes, preprocessing and options of the head.
        name: Display name.
        device: Device to run on.
        recipe: Recipe that the model was trained with, if known.
        used_images: Images that the model was trained on, if known.
    """

    kind: ClassVar[str]  # for messages, e.g. "a classifier"
    batch_size: ClassVar[int] = 4  # default images per forward pass
    eval_batch_size: ClassVar[int] = 4  # default images per batch in evaluation
    columns: ClassVar[tuple[str, ...]]  # titles of the values that `row` returns
    options: ClassVar[frozenset[str]] = frozenset()  # keyword arguments of `stream`, `save`, `row` and `to_dict`

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        name: str = "model",
        device: str | torch.device = "cpu",
        recipe: Recipe | None = None,
        used_images: UsedImages | None = None,
    ) -> None:
        self.device = parse_device(device)
        self.model = model.eval().to(self.device)
        self.spec = spec
        self.input: Any = spec.input
        self.config: Any = spec.head
        self.classes = tuple(spec.classes)
        self.transform = self._make_transform()
        self.name = name
        self.recipe = recipe
        self.used_images = used_images
        self.dtype = torch.float32  # of matrix products and convolutions

    def __call__(self, images: Iterable[Source], batch_size: Count | None = None, **options: Any) -> list[R]:
        """The result of each image; see :meth:`stream`."""
        return list(self.stream(images, batch_size, **options))

    @checked
    def stream(self, images: Iterable[Source], batch_size: Count | None = None, **options: Any) -> Iterator[R]:
        """Yield the result of each image in order, computed one batch at a time.

        The result of an unreadable image has its ``error`` set.

        Args:
            images: Paths or PIL images of any mode and size. A PIL image gives the result of its file: its EXIF
                orientation is applied unless it has been removed, as ``ImageOps.exif_transpose`` does. That of a large
                JPEG file differs slightly if its pixels have already been loaded, since a file may be decoded at a
                lower resolution.
            batch_size: Images per forward pass.
            options: Options of the task's predictor.

        Raises:
            TypeError: ``images`` is a single image, one of them is neither a path nor a PIL image, or the predictor has
                no such option.
            ValueError: ``batch_size`` is below 1.
        """
        if isinstance(images, str | os.PathLike | Image.Image):
            raise TypeError(f"images is a single {type(images).__name__}; expected a list of paths or PIL images")
        if unknown := sorted(options.keys() - set(self.options)):
            known = f"its options are {', '.join(sorted(self.options))}" if self.options else "it has none"
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}; {known}")
        for prepared in self._batches(images, batch_size or self.batch_size):
            readable = [image for image in prepared if isinstance(image, PreparedImage)]
            results = self._predict(readable, **options)
            for image in prepared:
                yield next(results) if isinstance(image, PreparedImage) else self._unreadable(*image)

    @abstractmethod
    def save(self, results: Iterable[R], folder: str | Path, **options: Any) -> list[Path]:
        """Write results to a folder; returns the files and folders written."""

    @property
    def frame_maps(self) -> str:
        """Folder of the maps that :meth:`save_frame` writes for the frames of a video; empty if there are none."""
        return ""

    def save_frame(self, result: R, path: Path) -> None:
        """Write the map of a video's frame; nothing where :attr:`frame_maps` is empty."""

    def check_options(self, **options: Any) -> None:
        """Raise a ValueError for values of the task's options that this model does not support."""

    @abstractmethod
    def draw(self, result: R, **options: Any) -> Image.Image:
        """A readable image with its result drawn over it, at its original size, without a legend."""

    @abstractmethod
    def row(self, result: R, **options: Any) -> tuple[str, ...]:
        """A result as a table row, with the columns in :attr:`columns`."""

    @abstractmethod
    def to_dict(self, result: R, **options: Any) -> dict[str, Any]:
        """A result as plain data, for JSON."""

    @property
    @abstractmethod
    def input_description(self) -> str:
        """Description of the preprocessing."""

    @property
    def precision(self) -> str:
        """The type of its matrix products and convolutions: ``fp32``, ``bf16``, or ``int8`` for some exports."""
        for module in self.model.modules():
            if isinstance(module, ExportedModel):
                return module.precision
        return "fp32" if self.dtype == torch.float32 else "bf16"

    def flops_model(self) -> tuple[nn.Module, tuple[int, int, int]]:
        """A module called with an image batch, and the ``(C, H, W)`` for which parameters and GMAC are reported."""
        return get_task(self.spec.task).flops_model(self.model, self.spec)

    @checked
    def export(
        self,
        folder: str | Path,
        format: str,
        *,
        images: Sequence[str | Path] = (),
        calibrate: Sequence[str | Path] = (),
        replace: bool = False,
        batch_size: Count | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        control: AccuracyControl | None = None,
        on_status: Callable[[str], None] = lambda text: None,
    ) -> Manifest:
        """Export the model for another runtime; see :func:`smt_vision.deploy.export.export_model`.

        ``batch_size`` is for detectors: the number of images of one size that the program takes, by default one.
        ``precision`` is ``fp32``, or ``bf16`` for a program that OpenVINO runs in bfloat16. ``control`` limits the
        accuracy loss by 8-bit quantization; see :func:`smt_vision.engine.evaluation.accuracy_control`.

        Raises:
            TypeError: ``images`` or ``calibrate`` is a single path.
            FileNotFoundError: One of them does not exist.
            ValueError: This predictor computes in bfloat16, or as :func:`~smt_vision.deploy.export.export_model` says.
        """
        for name, paths in (("images", images), ("calibrate", calibrate)):
            if isinstance(paths, str | os.PathLike):
                raise TypeError(f"invalid {name}={short(paths)}: expected a list of image files and folders")
        if self.dtype != torch.float32:
            raise ValueError(f"{self.name} was loaded in {self.dtype}; load it without precision to export it")
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return export_model(
            get_task(self.spec.task).export(model, self.spec, self.name, batch_size),
            Path(folder),
            format=format,
            images=find_images(images),
            calibrate=find_images(calibrate),
            replace=replace,
            precision=precision,
            control=control,
            used_images=self.used_images,
            on_status=on_status,
        )

    @abstractmethod
    def _make_transform(self) -> Callable[[Any], Tensor]:
        """Preprocessing, from a decoded image to ``(C, h, w)``."""

    def _batches(
        self, images: Iterable[Source], batch_size: int
    ) -> Iterator[list[PreparedImage | tuple[Source, str, str]]]:
        """Yield up to ``batch_size`` images at a time, prepared; fewer where their network input would be large.

        Images of different sizes are padded to the largest height and width of their batch.
        """
        batch: list[PreparedImage | tuple[Source, str, str]] = []
        sizes: list[tuple[int, ...]] = []
        for image in self._prepared(images, ahead=2 * batch_size):
            if isinstance(image, PreparedImage):
                sizes.append(tuple(image.pixels.shape))
                if len(sizes) > 1 and len(sizes) * math.prod(map(max, zip(*sizes, strict=True))) > MAX_VALUES:
                    yield batch
                    batch, sizes = [], sizes[-1:]
            batch.append(image)
            if len(batch) == batch_size:
                yield batch
                batch, sizes = [], []
        if batch:
            yield batch

    def _prepared(self, images: Iterable[Source], ahead: int) -> Iterator[PreparedImage | tuple[Source, str, str]]:
        """The images in order, prepared; files in a list by threads, ahead of the model.

        Each image of an iterator is prepared before the next is taken, so that the iterator may close or remove it.
        Images in memory are prepared by the calling thread: two entries of a list may be the same image.
        """
        items = enumerate(images)
        if not isinstance(images, list | tuple):
            return (self._prepare(*item) for item in items)

        def pixels(item: tuple[int, Source]) -> float:
            source = item[1]
            if not isinstance(source, str | os.PathLike):
                return math.inf
            return count_pixels(Path(source)) * max(1, self.input.channels / 3)

        return map_ahead(
            lambda item: self._prepare(*item), items, pixels=pixels, threads=image_threads(self.device), ahead=ahead
        )

    def _predict(self, batch: list[PreparedImage], **options: Any) -> Iterator[R]:
        """Results of a batch; where memory does not suffice, of one image at a time, and then an error."""
        done = 0
        try:
            if batch:
                for result in self._predict_batch(batch, **options):
                    yield result
                    done += 1
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if len(batch) == 1:
            height, width = batch[0].size
            error_text = f"{batch[0].id}: not enough memory to predict {width} x {height} pixels; reduce the image"
            yield self._unreadable(batch[0].source, batch[0].id, error_text)
            return
        for image in batch[done:]:
            yield from self._predict([image], **options)

    def _prepare(self, i: int, image: Source) -> PreparedImage | tuple[Source, str, str]:
        """The preprocessed image; for an unreadable image its source, id and error."""
        if not isinstance(image, str | os.PathLike | Image.Image):
            raise TypeError(
                f"image {i} is of type {type(image).__name__}; expected a path or a PIL image (PIL.Image.fromarray "
                "makes one from an array of shape (H, W, 3) and type uint8)"
            )
        id = str(i) if isinstance(image, Image.Image) else str(image)
        source = image if isinstance(image, Image.Image) else Path(image)
        size = ""
        try:
            picture = decode_for_resize(source, self.spec.input, name=id)
            width, height = image_size(picture)
            size = f" {width} x {height} pixels"
            return PreparedImage(image, id, (height, width), self._pixels(picture))
        except UnreadableImage as error:
            return image, id, str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return image, id, f"{id}: not enough memory to {'resize' if size else 'decode'}{size or ' it'}"

    def _pixels(self, image: Any) -> Tensor:
        """The model's input, or as far as it is prepared, from the result of :func:`decode_for_resize`."""
        return self.transform(image)

    @abstractmethod
    def _predict_batch(self, batch: list[PreparedImage], **options: Any) -> Iterable[R]:
        """Results of a non-empty batch, in order."""

    @abstractmethod
    def _unreadable(self, source: Source, id: str, error: str) -> R:
        """The result of an unreadable image."""


def not_finite(id: str) -> str:
    """The error of an image for which a model's outputs are infinite or not a number."""
    return f"{id}: the model's outputs are not finite; its weights may be damaged, or its training may have diverged"


def parse_device(device: str | torch.device) -> torch.device:
    """The device with this name.

    Raises:
        ValueError: There is no such kind of device, or none on this computer that this build of PyTorch supports.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"invalid device={short(device)}: expected e.g. cpu, cuda, cuda:1 or mps") from error
    try:
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an AssertionError: the build is without it
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={parsed} cannot be used here ({reason}); use cpu") from error
    return parsed
