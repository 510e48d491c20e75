"""Batches: sharded samplers, seeded augmentation, worker processes, unreadable images.

Shapes: B images of C channels, S x S pixels.
"""

import hashlib
import logging
import os
import random
from collections.abc import Iterable, Iterator
from typing import Literal, TypedDict, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from ..recipes import Augment, Input
from .decode import BrokenImage, decode
from .image_set import ImageSet
from .transforms import Transform, eval_transform, train_transform

log = logging.getLogger(__name__)
Position = tuple[int, int]  # (epoch, image)


class Item(TypedDict):
    """One image: (C, S, S), or ``None`` where none could be read; its class; its index; what could not be read."""

    image: Tensor | None
    target: int
    index: int
    broken: list[str]


class Batch(TypedDict):
    """image (B, C, S, S) float32, target (B,) int64, index (B,) int64, and a message for each unreadable image."""

    image: Tensor
    target: Tensor
    index: Tensor
    broken: list[str]


class ClassificationDataset(Dataset[Item]):
    """Decoded and augmented images by (epoch, index).

    What the transform draws is a function of (seed, epoch, index) alone: the same for any number of workers and
    processes, and after a resume.

    Args:
        images: the raw images.
        transform: an image to a tensor (C, S, S).
        channels: 1 or 3.
        seed: of the transform's draws.
        attempts: images to try for each item: beyond 1, the next readable image replaces one that is not, so that
            batches keep their size. Where none was readable the item's image is ``None``.
    """

    def __init__(
        self, images: ImageSet, transform: Transform, channels: Literal[1, 3], seed: int, attempts: int = 1
    ) -> None:
        self.images = images
        self.transform = transform
        self.channels = channels
        self.seed = seed
        self.attempts = attempts

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Position) -> Item:
        epoch, index = position
        broken: list[str] = []
        for attempt in range(self.attempts):
            row = (index + attempt) % len(self.images)
            try:
                raw, target, name = self.images.read(row)
                image: Image.Image = decode(raw, self.channels, name=name)
            except BrokenImage as error:
                broken.append(str(error))
                continue
            seed_all(self.seed, epoch, index)
            return Item(image=self.transform(image), target=target, index=row, broken=broken)
        return Item(image=None, target=-1, index=index, broken=broken)

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
    key = int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)


class Collate:
    """Items to a batch; those without an image are left out, their messages kept."""

    def __init__(self, channels: int, size: int) -> None:
        self.shape = (0, channels, size, size)

    def __call__(self, items: list[Item]) -> Batch:
        images = [item["image"] for item in items if item["image"] is not None]
        read = [item for item in items if item["image"] is not None]
        return Batch(
            # torch's own collation: a worker stacks straight into the memory that it shares, and saves a copy.
            image=default_collate(images) if images else torch.empty(self.shape),
            target=torch.tensor([item["target"] for item in read], dtype=torch.long),
            index=torch.tensor([item["index"] for item in read], dtype=torch.long),
            broken=[message for item in items for message in item["broken"]],
        )


class TrainSampler:
    """Which images make up each batch of an epoch, on one rank: a pure function of (seed, epoch).

    An epoch is a permutation of all images, the same on each rank, cut into global batches of batch_size * world;
    the incomplete last one is dropped. A set smaller than one global batch makes one batch of all its images (shared
    equally, so that fewer than ``world`` may be left out).

    Args:
        length: images in the set.
        batch_size: images a batch, on each rank.
        rank: of this process.
        world: processes.
        seed: of the permutations.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world: int, seed: int) -> None:
        if length < world:
            raise ValueError(f"{length} training images for {world} processes; use fewer processes")
        self.length = length
        self.batch_size = min(batch_size, length // world)
        self.rank = rank
        self.world = world
        self.seed = seed

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch, from ``start_batch`` on: to resume costs no decoding of those before."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        for batch in range(start_batch, len(self)):
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


class _Loader:
    """Batches of a sampler through worker processes, which are kept from one pass to the next."""

    def __init__(self, dataset: ClassificationDataset, sampler: TrainSampler | EvalSampler, input: Input) -> None:
        self.images = dataset.images
        self.max_broken = input.max_broken
        self._broken: dict[str, None] = {}
        self._batches = _EpochBatches(sampler)
        workers = _workers(input.workers, len(sampler))
        self._loader: DataLoader[Item] = DataLoader(
            dataset,
            batch_sampler=cast(Iterable[list[int]], self._batches),
            num_workers=workers,
            collate_fn=Collate(input.channels, input.size),
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

    def _run(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        self._batches.epoch, self._batches.start_batch = epoch, start_batch
        try:
            for batch in self._loader:
                self._count(batch["broken"])
                if len(batch["target"]):
                    yield batch
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


class TrainLoader(_Loader):
    """Batches of training; see ``train_loader``."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch on this rank; the same on each."""
        return len(self._batches.sampler)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from ``start_batch`` on; one pass at a time."""
        return self._run(epoch, start_batch)


class EvalLoader(_Loader):
    """Batches of evaluation; see ``eval_loader``. Iterate it as often as needed."""

    def __len__(self) -> int:
        return len(self._batches.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return self._run(0, 0)


def train_loader(
    images: ImageSet, input: Input, augment: Augment, batch_size: int, seed: int, rank: int = 0, world: int = 1
) -> TrainLoader:
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
        images, train_transform(input, augment), _channels(input), seed, attempts=input.max_broken + 1
    )
    return TrainLoader(dataset, TrainSampler(len(images), batch_size, rank, world, seed), input)


def eval_loader(images: ImageSet, input: Input, batch_size: int, rank: int = 0, world: int = 1) -> EvalLoader:
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
    dataset = ClassificationDataset(images, eval_transform(input), _channels(input), seed=0)
    return EvalLoader(dataset, EvalSampler(len(images), batch_size, rank, world), input)


def _channels(input: Input) -> Literal[1, 3]:
    return 1 if input.channels == 1 else 3  # any other number has been refused by the transform


def _workers(wanted: int, batches: int) -> int:
    """No more than there are batches, nor than this process's share of the processor cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(0, min(wanted, share, batches))
