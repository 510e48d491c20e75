"""Speed of the classification input: pipelines of one core against timm's, and the training loader."""

import io
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from smt_vision.benchmark.timing import one_thread
from smt_vision.data.dataset import Raw
from smt_vision.data.decode import LargeJpeg, UnreadableImage, decode_for_resize, decode_input
from smt_vision.data.loaders import DecodedImages, Position, seed_all
from smt_vision.data.transforms import channel_statistics, resize_filter
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationInput
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.data.loaders import classification_train_loader
from smt_vision.tasks.classification.data.operations import replace_posterize
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.classification.data.transforms import Transform, eval_transform, train_transform

IMAGE_SIZE = (500, 375)  # width and height of synthetic images in pixels: about the median of ImageNet
Convert = Callable[[Position], Tensor]  # (epoch, index) of an image -> tensor (C, S, S)


@dataclass(frozen=True)
class PipelineSpeed:
    """Images per second of one core: the median over rounds in which the pipelines take turns.

    Computed from processor time, which excludes waiting for the disk or for a core used by another process.

    Attributes:
        ours: Speed of this package's pipeline.
        full: Speed of this package's pipeline with images decoded at their full resolution, as with ``input.exact``;
            ``None`` if they are not large JPEG files.
        timm: Speed of timm's transforms with the same settings, on images opened with Pillow; ``None`` if timm has no
            such crop (``augment.crop`` other than ``rrc``).
    """

    ours: float
    full: float | None
    timm: float | None

    @property
    def ratio(self) -> float | None:
        """Speed of ours divided by that of timm's."""
        return self.ours / self.timm if self.timm else None


@dataclass(frozen=True)
class InputSpeed:
    """Speed of the input.

    Attributes:
        source: Data set, or ``synthetic``.
        mean_bytes: Average size of a file; ``None`` if the images are not stored as files.
        train: Decoding and augmentation, one core.
        evaluation: Decoding, resizing and cropping, one core.
        images_per_s: Training batches from the loader with all workers, in wall-clock time.
        workers: Number of worker processes; 0 if the loader works in the main process.
        batch_size: Images per batch.
    """

    source: str
    mean_bytes: int | None
    train: PipelineSpeed
    evaluation: PipelineSpeed
    images_per_s: float
    workers: int
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, including the ratios."""
        ratios = {"train": {"ratio": self.train.ratio}, "evaluation": {"ratio": self.evaluation.ratio}}
        plain = asdict(self)
        return plain | {name: plain[name] | ratio for name, ratio in ratios.items()}


class SyntheticJpegs(ImageDataset):
    """Synthetic JPEG files: smooth colors, edges and noise; of 500 x 375 pixels, about 60 KB.

    Args:
        length: Number of images; 16 of them are distinct.
        image_size: Width and height of the images in pixels.
    """

    def __init__(self, length: int = 4096, image_size: tuple[int, int] = IMAGE_SIZE) -> None:
        ids = [f"{i}.jpg" for i in range(length)]
        super().__init__(["even", "odd"], [i % 2 for i in range(length)], ids, "synthetic/")
        self.files = [_jpeg(seed, *image_size) for seed in range(min(length, 16))]

    def _read(self, row: int, name: str) -> bytes:
        return self.files[row % len(self.files)]


def measure_input(
    data: str | None,
    input: ClassificationInput,
    augment: ClassificationAugment,
    workers: int,
    batch_size: int,
    seconds: float = 20.0,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> InputSpeed:
    """MetricFormat decoding and transforms on one core against timm's, then the training loader.

    Args:
        data: Data set, as for ``smt train``; ``None`` for :class:`SyntheticJpegs`.
        input: Image size, normalization and loader settings.
        augment: Training augmentation.
        workers: Number of worker processes; limited to the number of cores, as in training.
        batch_size: Images per batch.
        seconds: Approximate total time; two thirds of it are spent on the single-core pipelines.
        image_size: Width and height of synthetic images in pixels.
    """
    images: ImageDataset = (
        SyntheticJpegs(image_size=image_size)
        if data is None
        else open_dataset(data, "train", val_fraction=input.val_fraction)
    )
    with one_thread():
        train, evaluation = _measure_core(images, input, augment, seconds * 2 / 3)
    images_per_s, started = _measure_loader(images, replace(input, workers=workers), augment, batch_size, seconds / 3)
    return InputSpeed(data or "synthetic", _mean_bytes(images), train, evaluation, images_per_s, started, batch_size)


def timm_transforms(input: ClassificationInput, augment: ClassificationAugment) -> tuple[Transform, Transform]:
    """timm's training (with its random resized crop) and evaluation transforms for the same settings."""
    mean, std = channel_statistics(input)
    size = (input.channels, input.size, input.size)
    train = create_transform(
        size,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        interpolation=input.interpolation,
        mean=mean,
        std=std,
        re_prob=augment.random_erasing,
        re_mode=augment.erasing_mode,
    )
    for step in train.transforms:
        replace_posterize(step)
    evaluation = create_transform(
        size,
        interpolation=resize_filter(input),
        mean=mean,
        std=std,
        crop_pct=input.crop_pct,
        crop_mode=input.crop_mode,
    )
    return train, evaluation


def _measure_core(
    images: ImageDataset,
    input: ClassificationInput,
    augment: ClassificationAugment,
    seconds: float,
    round_size: int = 16,
) -> tuple[PipelineSpeed, PipelineSpeed]:
    """Time training and evaluation pipelines in turn, ours and timm's with the same images and random numbers."""
    timm_train, timm_eval = timm_transforms(input, augment)
    our_train, our_eval = train_transform(input, augment), eval_transform(input)
    converts: dict[str, Convert] = {
        "train": _our_convert(images, our_train, input),
        "eval": _our_convert(images, our_eval, input),
        "timm eval": _timm_convert(images, timm_eval, input),
    }
    if augment.crop == "rrc":
        converts["timm train"] = _timm_convert(images, timm_train, input)
    with suppress(UnreadableImage):  # reported when the pipelines run
        if isinstance(decode_for_resize(images.raw(0), input, name=images.name(0)), LargeJpeg):
            converts["full train"] = _full_convert(images, our_train, input)
            converts["full eval"] = _full_convert(images, our_eval, input)
    speeds: dict[str, list[float]] = {name: [] for name in converts}
    first, end = 0, time.perf_counter() + seconds
    while first == 0 or time.perf_counter() < end:
        positions = [divmod(i, len(images)) for i in range(first, first + round_size)]
        for name, convert in converts.items():
            speeds[name].append(round_size / sum(_processor_time(convert, position) for position in positions))
        first += round_size
    medians = {name: median(values) for name, values in speeds.items()}
    train = PipelineSpeed(medians["train"], medians.get("full train"), medians.get("timm train"))
    return train, PipelineSpeed(medians["eval"], medians.get("full eval"), medians["timm eval"])


def _our_convert(images: ImageDataset, transform: Transform, input: ClassificationInput) -> Convert:
    dataset = DecodedImages(images, lambda image, target, name: {"image": transform(image)}, input, seed=0)

    def convert(position: Position) -> Tensor:
        item = dataset[position]
        if item["image"] is None:
            raise ValueError(f"{item['unreadable'][0]}; the benchmark needs readable images: remove it")
        return item["image"]

    return convert


def _full_convert(images: ImageDataset, transform: Transform, input: ClassificationInput) -> Convert:
    def convert(position: Position) -> Tensor:
        raw, _, name = images.read(position[1])
        return transform(decode_input(raw, input, name=name))

    return convert


def _timm_convert(images: ImageDataset, transform: Transform, input: ClassificationInput) -> Convert:
    def convert(position: Position) -> Tensor:
        raw = images.read(position[1])[0]
        image = raw if isinstance(raw, Image.Image) else Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
        return transform(image.convert("L" if input.channels == 1 else "RGB"))

    return convert


def _processor_time(convert: Convert, position: Position) -> float:
    seed_all(0, *position)  # as DecodedImages does: the cost of augmentation depends on the random numbers
    start = time.process_time()
    convert(position)
    return time.process_time() - start


def _measure_loader(
    images: ImageDataset, input: ClassificationInput, augment: ClassificationAugment, batch_size: int, seconds: float
) -> tuple[float, int]:
    """Images per second of the training loader in its steady state, and its number of workers."""
    loader = classification_train_loader(images, input, augment, batch_size, seed=0)
    batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
    try:
        for _ in range(2 * loader.workers + 1):  # prepared while the workers started
            next(batches)
        done, start = 0, time.perf_counter()
        while done == 0 or time.perf_counter() < start + seconds:
            done += len(next(batches)["target"])
        return done / (time.perf_counter() - start), loader.workers
    finally:
        loader.close()


def _mean_bytes(images: ImageDataset, count: int = 64) -> int | None:
    lengths = [_length(images.read(row)[0]) for row in range(min(count, len(images)))]
    known = [length for length in lengths if length is not None]
    return round(sum(known) / len(known)) if known else None


def _length(raw: Raw) -> int | None:
    if isinstance(raw, bytes):
        return len(raw)
    return None if isinstance(raw, Image.Image) else raw.stat().st_size


def _jpeg(seed: int, width: int, height: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells, strength in ((4, 60), (24, 40), (96, 20)):  # from smooth to sharp
        coarse = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        pixels += (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) - 127.5) * (strength / 127.5)
    pixels += rng.normal(127.5, 6.0, (height, width, 1))  # luminance noise
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()
