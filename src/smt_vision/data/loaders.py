"""Batches: sharded samplers, seeded augmentation, worker processes, unreadable images; and those of classification.

Shapes: B images of C channels, S x S pixels.
"""

import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from ..recipes import Augment, Input
from ..seeding import stable_hash
from .decode import BrokenImage, decode
from .image_set import ImageSet, RawSet
from .transforms import Transform, eval_transform, train_transform

log = logging.getLogger(__name__)
Position = tuple[int, int]  # (epoch, image)


Item = dict[str, Any]  # one image's "image" (None: none could be read), "index", "broken", and what its task needs
T = TypeVar("T")


class Batch(TypedDict):
    """image (B, C, S, S) float32, target (B,) int64, index (B,) int64, and a message for each unreadable image."""

    image: Tensor
    target: Tensor
    index: Tensor
    broken: list[str]


B = TypeVar("B", bound=Mapping[str, Any])  # a task's batch: a typed dict with "image", "index" and "broken" in it


class DecodedImages(Dataset[Item], ABC, Generic[T]):
    """Decoded and augmented images by (epoch, index).

    What :meth:`convert` draws is a function of (seed, epoch, index) alone: the same for any number of workers and
    processes, and after a resume.

    Args:
        images: the raw images.
        channels: 1 or 3.
        seed: of the draws.
        attempts: images to try for each item: beyond 1, the next readable image replaces one that is not, so that
            batches keep their size. Where none was readable the item's image is ``None``.
    """

    def __init__(self, images: RawSet[T], channels: Literal[1, 3], seed: int, attempts: int = 1) -> None:
        self.images = images
        self.channels = channels
        self.seed = seed
        self.attempts = attempts

    @abstractmethod
    def convert(self, image: Image.Image, target: T, name: str) -> Item:
        """A decoded image and its target to ``image`` and what else its batch needs; BrokenImage if they disagree."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Position) -> Item:
        epoch, index = position
        broken: list[str] = []
        for attempt in range(self.attempts):
            row = (index + attempt) % len(self.images)
            try:
                raw, target, name = self.images.read(row)
                image = decode(raw, self.channels, name=name)
                seed_all(self.seed, epoch, index)
                return {**self.convert(image, target, name), "index": row, "broken": broken}
            except BrokenImage as error:
                broken.append(str(error))
        return {"image": None, "index": index, "broken": broken}

    def __getitems__(self, positions: list[Position]) -> list[Item]:
        # The loader asks for a batch at a time. In a worker the generators are ours; here they are the caller's.
        if get_worker_info() is not None:
            return [self[position] for position in positions]
        python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            return [self[position] for position in positions]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torch_state)


def seed_all(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators from a stable hash of some numbers."""
    key = stable_hash(*numbers)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)


class ClassificationDataset(DecodedImages[int]):
    """Images as tensors (C, S, S) with their class; ``transform`` makes the tensor, the rest is as above."""

    def __init__(
        self, images: ImageSet, transform: Transform, channels: Literal[1, 3], seed: int, attempts: int = 1
    ) -> None:
        super().__init__(images, channels, seed, attempts)
        self.transform = transform

    def convert(self, image: Image.Image, target: int, name: str) -> Item:
        return {"image": self.transform(image), "target": target}


class Collate(ABC):
    """Items to a batch; those without an image are left out, their messages kept."""

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        read = [item for item in items if item["image"] is not None]
        return {
            **(self.stack(read) if read else {}),  # a batch of no image is not handed on: only its messages count
            "index": torch.tensor([item["index"] for item in read], dtype=torch.long),
            "broken": [message for item in items for message in item["broken"]],
        }

    @abstractmethod
    def stack(self, items: list[Item]) -> dict[str, Any]:
        """Everything else of the batch, of one or more items."""


class ClassificationCollate(Collate):
    """Images of one size and their classes."""

    def stack(self, items: list[Item]) -> dict[str, Any]:
        return {
            # torch's own collation: a worker stacks straight into the memory that it shares, and saves a copy.
            "image": default_collate([item["image"] for item in items]),
            "target": torch.tensor([item["target"] for item in items], dtype=torch.long),
        }


class TrainSampler:
    """Which images make up each batch of an epoch, on one rank: a pure function of (seed, epoch).

    An epoch is a permutation of all images, the same on each rank, cut into global batches of batch_size * world;
    the incomplete last one is dropped. A set smaller than one global batch makes one batch of all its images (shared
    equally, so that fewer than ``world`` may be left out).

    With groups, a batch's images are of one group, on all ranks, but in the one batch where the groups meet. Which
    group comes last, and so loses the incomplete batch, is drawn, and so is the order of the batches.

    Args:
        length: images in the set.
        batch_size: images a batch, on each rank.
        rank: of this process.
        world: processes.
        seed: of the permutations.
        groups: (length,) False or True, as which images are upright: they pad each other least; ``None`` for one group.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        groups: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        if length < world:
            raise ValueError(f"{length} training images for {world} processes; use fewer processes")
        self.length = length
        self.batch_size = min(batch_size, length // world)
        self.rank = rank
        self.world = world
        self.seed = seed
        self.groups = groups

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch, from ``start_batch`` on: to resume costs no decoding of those before."""
        draw = np.random.default_rng([self.seed, epoch])
        order, batches = draw.permutation(self.length), np.arange(len(self))
        if self.groups is not None:
            last = draw.integers(2)
            order = order[np.argsort(self.groups[order] == last, kind="stable")]
            draw.shuffle(batches)
        for batch in batches[start_batch:].tolist():
            first = (batch * self.world + self.rank) * self.batch_size
            yield order[first : first + self.batch_size].tolist()


class EvalSampler:
    """Every image once over all ranks, without padding; ranks may differ by an image.

    Args:
        length: images in the set.
        batch_size: images a batch.
        rank: of this process.
        world: processes.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world: int) -> None:
        self.indices = range(rank, length, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def batches(self, epoch: int = 0, start_batch: int = 0) -> Iterator[list[int]]:
        """The batches, from ``start_batch`` on; the same in each epoch."""
        for batch in range(start_batch, len(self)):
            yield list(self.indices[batch * self.batch_size : (batch + 1) * self.batch_size])


class _EpochBatches(Sampler[list[Position]]):
    """What torch's loader iterates, in this process: set ``epoch`` and ``start_batch`` before each pass."""

    def __init__(self, sampler: TrainSampler | EvalSampler) -> None:
        self.sampler = sampler
        self.epoch = 0
        self.start_batch = 0

    def __len__(self) -> int:
        return len(self.sampler) - self.start_batch

    def __iter__(self) -> Iterator[list[Position]]:
        epoch = self.epoch
        return ([(epoch, i) for i in batch] for batch in self.sampler.batches(epoch, self.start_batch))


class _Loader(Generic[B]):
    """Batches of a sampler through worker processes, which are kept from one pass to the next.

    Args:
        dataset: images by (epoch, index).
        collate: makes a batch of them.
        sampler: which images make up each batch.
        input: of it, ``workers`` and ``max_broken``.
    """

    def __init__(
        self, dataset: DecodedImages[Any], collate: Collate, sampler: TrainSampler | EvalSampler, input: Input
    ) -> None:
        self.images = dataset.images
        self.max_broken = input.max_broken
        self._broken: dict[str, None] = {}
        self._batches = _EpochBatches(sampler)
        workers = _workers(input.workers, len(sampler))
        self._loader: DataLoader[Item] = DataLoader(
            dataset,
            batch_sampler=cast(Iterable[list[int]], self._batches),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            # Else each pass would draw from the global generator, and a resumed run would differ from a whole one.
            generator=torch.Generator(),
        )

    @property
    def workers(self) -> int:
        """Worker processes; 0: images are loaded in this one."""
        return self._loader.num_workers

    @property
    def broken(self) -> tuple[str, ...]:
        """A message for each unreadable image met so far."""
        return tuple(self._broken)

    def _run(self, epoch: int, start_batch: int) -> Iterator[B]:
        self._batches.epoch, self._batches.start_batch = epoch, start_batch
        try:
            for batch in self._loader:
                self._count(batch["broken"])
                if len(batch["index"]):
                    yield cast(B, batch)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RuntimeError(
                f"a loader process died ({error}); most often memory or shared memory ran out: lower input.workers "
                f"(now {self.workers}) or batch_size"
            ) from error

    def _count(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self._broken:
                self._broken[message] = None
                log.warning("unreadable image %d of at most %d: %s", len(self._broken), self.max_broken, message)
        if len(self._broken) > self.max_broken:
            first = "; ".join(list(self._broken)[:3])
            raise BrokenImage(
                f"{len(self._broken)} unreadable images, more than max_broken={self.max_broken}: {first}"
                f"{' ...' if len(self._broken) > 3 else ''}. Replace or remove them, or raise input.max_broken"
            )

    def close(self) -> None:
        """End the worker processes."""
        self._loader._iterator = None


class TrainLoader(_Loader[B]):
    """Batches of training; see ``train_loader``."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch on this rank; the same on each."""
        return len(self._batches.sampler)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[B]:
        """The batches of an epoch, from ``start_batch`` on; one pass at a time."""
        return self._run(epoch, start_batch)


class EvalLoader(_Loader[B]):
    """Batches of evaluation; see ``eval_loader``. Iterate it as often as needed."""

    def __len__(self) -> int:
        return len(self._batches.sampler)

    def __iter__(self) -> Iterator[B]:
        return self._run(0, 0)


def train_loader(
    images: ImageSet, input: Input, augment: Augment, batch_size: int, seed: int, rank: int = 0, world: int = 1
) -> TrainLoader[Batch]:
    """Shuffled, augmented batches.

    The whole stream is a function of (seed, rank, world): not of the number of workers, nor of where it was resumed.
    An unreadable image is named in the log and replaced by the next one, so that batches keep their size.

    Args:
        images: the training images.
        input: how images become tensors.
        augment: what training does to them.
        batch_size: images a batch, on each rank.
        seed: of order and augmentation.
        rank: of this process.
        world: processes.

    Raises:
        BrokenImage: while iterating, when more than ``input.max_broken`` images are unreadable.
    """
    dataset = ClassificationDataset(
        images, train_transform(input, augment), channels_of(input), seed, attempts=input.max_broken + 1
    )
    sampler = TrainSampler(len(images), batch_size, rank, world, seed)
    return TrainLoader(dataset, ClassificationCollate(), sampler, input)


def eval_loader(images: ImageSet, input: Input, batch_size: int, rank: int = 0, world: int = 1) -> EvalLoader[Batch]:
    """Batches in order, each image once over all ranks. Unreadable ones are named in the log and left out.

    Args:
        images: the validation images.
        input: how images become tensors.
        batch_size: images a batch.
        rank: of this process.
        world: processes.

    Raises:
        BrokenImage: while iterating, when more than ``input.max_broken`` images are unreadable.
    """
    dataset = ClassificationDataset(images, eval_transform(input), channels_of(input), seed=0)
    return EvalLoader(dataset, ClassificationCollate(), EvalSampler(len(images), batch_size, rank, world), input)


def channels_of(input: Input) -> Literal[1, 3]:
    """The input's number of channels as :func:`smt_vision.data.decode.decode` takes it."""
    return 1 if input.channels == 1 else 3  # any other number has been refused by the transform


def _workers(wanted: int, batches: int) -> int:
    """No more than there are batches, nor than this process's share of the processor cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(0, min(wanted, share, batches))
