"""How fast files become tensors: our pipelines beside timm's, of one core, and the loader with all its workers."""

import io
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ..recipe import Augment, Input
from ..tasks.classification.data.dataset import ImageDataset
from ..tasks.classification.data.loaders import ClassificationDataset, train_loader
from ..tasks.classification.data.operations import MENDED, replace_operations
from ..tasks.classification.data.sources import open_dataset
from ..tasks.classification.data.transforms import Transform, eval_transform, train_transform
from .dataset import Raw
from .loaders import Position, seed_all
from .transforms import channel_statistics, resize_filter

Convert = Callable[[Position], Tensor]  # an image in an epoch to its tensor (C, S, S)


@dataclass(frozen=True)
class PipelineSpeed:
    """Images a second of one core, the median of interleaved rounds: by processor time, so that waiting for a disk,
    or for a core that another program holds, does not count.

    Attributes:
        ours: of this package.
        timm: of timm's transforms with the same settings, on images that Pillow opens; ``None`` where timm has no such
            crop (``augment.crop`` other than ``rrc``).
    """

    ours: float
    timm: float | None

    @property
    def ratio(self) -> float | None:
        """Ours over timm's."""
        return self.ours / self.timm if self.timm else None


@dataclass(frozen=True)
class InputSpeed:
    """What the input can deliver.

    Attributes:
        source: where the images came from.
        mean_bytes: length of a file, on average; ``None`` where images are not stored as files.
        train: decoding and augmenting, one core.
        evaluation: decoding, resizing and cropping, one core.
        images_per_s: training batches of the loader, by the clock, all workers together.
        workers: processes that it had; 0: it worked in this one.
        batch_size: images a batch.
    """

    source: str
    mean_bytes: int | None
    train: PipelineSpeed
    evaluation: PipelineSpeed
    images_per_s: float
    workers: int
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON, the ratios included."""
        ratios = {"train": {"ratio": self.train.ratio}, "evaluation": {"ratio": self.evaluation.ratio}}
        plain = asdict(self)
        return plain | {name: plain[name] | ratio for name, ratio in ratios.items()}


class SyntheticJpegs(ImageDataset):
    """JPEGs of 500 x 375 pixels and about 60 KB: smooth colour, edges, and noise.

    Args:
        length: images in the set; every 16th is the same.
    """

    def __init__(self, length: int = 4096) -> None:
        super().__init__(["even", "odd"], [i % 2 for i in range(length)], [f"{i}.jpg" for i in range(length)], "made/")
        self.files = [_jpeg(seed) for seed in range(min(length, 16))]

    def _read(self, row: int, name: str) -> bytes:
        return self.files[row % len(self.files)]


def measure_input(
    data: str | None, input: Input, augment: Augment, workers: int, batch_size: int, seconds: float = 20.0
) -> InputSpeed:
    """Measure decoding and transforms of one core beside timm's, then the training loader.

    Args:
        data: the images, as for training; ``None`` for :class:`SyntheticJpegs`.
        input: how images become tensors.
        augment: what training does to them.
        workers: loader processes; as in training, no more are started than there are cores.
        batch_size: images a batch.
        seconds: to spend, about; two thirds of it on the single core.
    """
    images: ImageDataset = (
        SyntheticJpegs() if data is None else open_dataset(data, "train", val_fraction=input.val_fraction)
    )
    with _one_thread():
        train, evaluation = _measure_core(images, input, augment, seconds * 2 / 3)
    images_per_s, started = _measure_loader(images, replace(input, workers=workers), augment, batch_size, seconds / 3)
    return InputSpeed(data or "made", _mean_bytes(images), train, evaluation, images_per_s, started, batch_size)


def timm_transforms(input: Input, augment: Augment) -> tuple[Transform, Transform]:
    """timm's own training and evaluation pipelines for the same settings; training with a random-area crop."""
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
        replace_operations(step, MENDED)
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
    images: ImageDataset, input: Input, augment: Augment, seconds: float, round_size: int = 16
) -> tuple[PipelineSpeed, PipelineSpeed]:
    """Training and evaluation in turn, ours and timm's on the same images with the same draws."""
    theirs_train, theirs_eval = timm_transforms(input, augment)
    converts: dict[str, Convert] = {
        "train": _ours(images, train_transform(input, augment), input),
        "eval": _ours(images, eval_transform(input), input),
        "timm eval": _timms(images, theirs_eval, input),
    }
    if augment.crop == "rrc":
        converts["timm train"] = _timms(images, theirs_train, input)
    speeds: dict[str, list[float]] = {name: [] for name in converts}
    first, end = 0, time.perf_counter() + seconds
    while first == 0 or time.perf_counter() < end:
        positions = [divmod(i, len(images)) for i in range(first, first + round_size)]
        for name, convert in converts.items():
            speeds[name].append(round_size / sum(_processor_time(convert, position) for position in positions))
        first += round_size
    found = {name: median(values) for name, values in speeds.items()}
    return PipelineSpeed(found["train"], found.get("timm train")), PipelineSpeed(found["eval"], found["timm eval"])


def _ours(images: ImageDataset, transform: Transform, input: Input) -> Convert:
    dataset = ClassificationDataset(images, transform, 1 if input.channels == 1 else 3, seed=0)

    def convert(position: Position) -> Tensor:
        item = dataset[position]
        if item["image"] is None:
            raise ValueError(f"{item['broken'][0]}; the speed is measured on readable images alone: remove it")
        return item["image"]

    return convert


def _timms(images: ImageDataset, transform: Transform, input: Input) -> Convert:
    def convert(position: Position) -> Tensor:
        raw = images.read(position[1])[0]
        image = raw if isinstance(raw, Image.Image) else Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
        return transform(image.convert("L" if input.channels == 1 else "RGB"))

    return convert


def _processor_time(convert: Convert, position: Position) -> float:
    seed_all(0, *position)  # as our dataset does: one draw is cheap and another dear, so timm's gets the same
    start = time.process_time()
    convert(position)
    return time.process_time() - start


def _measure_loader(
    images: ImageDataset, input: Input, augment: Augment, batch_size: int, seconds: float
) -> tuple[float, int]:
    """Images a second of the training loader, once its queues have run empty; and its number of workers."""
    loader = train_loader(images, input, augment, batch_size, seed=0)
    batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
    try:
        for _ in range(2 * loader.workers + 1):  # made while the processes started, or waiting since
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


def _jpeg(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    pixels = np.zeros((375, 500, 3))
    for cells, strength in ((4, 60), (24, 40), (96, 20)):  # from smooth shades to edges
        coarse = Image.fromarray(draw.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        pixels += (np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) - 127.5) * (strength / 127.5)
    pixels += draw.normal(127.5, 6.0, (375, 500, 1))  # of brightness, as a sensor's
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread, as in a loader process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
