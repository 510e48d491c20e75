"""Batches: sharded samplers, seeded augmentation, worker processes, unreadable images; and those of classification.

Shapes: B images of C channels, S x S pixels.
"""

import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..recipe import Input
from ..seeding import stable_hash
from .dataset import RawDataset
from .decode import UnreadableImage, decode
from .samplers import EvalSampler, TrainSampler

log = logging.getLogger(__name__)
Position = tuple[int, int]  # (epoch, image)


Item = dict[str, Any]  # one image's "image" (None: none could be read), "index", "unreadable", and what its task needs
T = TypeVar("T")


B = TypeVar("B", bound=Mapping[str, Any])  # a task's batch: a typed dict with "image", "index" and "unreadable" in it


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

    def __init__(self, images: RawDataset[T], channels: Literal[1, 3], seed: int, attempts: int = 1) -> None:
        self.images = images
        self.channels = channels
        self.seed = seed
        self.attempts = attempts

    @abstractmethod
    def convert(self, image: Image.Image, target: T, name: str) -> Item:
        """A decoded image and its target to ``image`` and what else its batch needs; UnreadableImage if they disagree."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Position) -> Item:
        epoch, index = position
        unreadable: list[str] = []
        for attempt in range(self.attempts):
            row = (index + attempt) % len(self.images)
            try:
                raw, target, name = self.images.read(row)
                image = decode(raw, self.channels, name=name)
                seed_all(self.seed, epoch, index)
                return {**self.convert(image, target, name), "index": row, "unreadable": unreadable}
            except UnreadableImage as error:
                unreadable.append(str(error))
        return {"image": None, "index": index, "unreadable": unreadable}

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


class Collate(ABC):
    """Items to a batch; those without an image are left out, their messages kept."""

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        read = [item for item in items if item["image"] is not None]
        return {
            **(self.stack(read) if read else {}),  # a batch of no image is not handed on: only its messages count
            "index": torch.tensor([item["index"] for item in read], dtype=torch.long),
            "unreadable": [message for item in items for message in item["unreadable"]],
        }

    @abstractmethod
    def stack(self, items: list[Item]) -> dict[str, Any]:
        """Everything else of the batch, of one or more items."""


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
        input: of it, ``workers`` and ``max_unreadable``.
    """

    def __init__(
        self, dataset: DecodedImages[Any], collate: Collate, sampler: TrainSampler | EvalSampler, input: Input
    ) -> None:
        self.images = dataset.images
        self.max_unreadable = input.max_unreadable
        self._unreadable: dict[str, None] = {}
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
    def unreadable(self) -> tuple[str, ...]:
        """A message for each unreadable image met so far."""
        return tuple(self._unreadable)

    def _run(self, epoch: int, start_batch: int) -> Iterator[B]:
        self._batches.epoch, self._batches.start_batch = epoch, start_batch
        try:
            for batch in self._loader:
                self._count(batch["unreadable"])
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
            if message not in self._unreadable:
                self._unreadable[message] = None
                log.warning(
                    "unreadable image %d of at most %d: %s", len(self._unreadable), self.max_unreadable, message
                )
        if len(self._unreadable) > self.max_unreadable:
            first = "; ".join(list(self._unreadable)[:3])
            raise UnreadableImage(
                f"{len(self._unreadable)} unreadable images, more than max_unreadable={self.max_unreadable}: {first}"
                f"{' ...' if len(self._unreadable) > 3 else ''}. Replace or remove them, or raise input.max_unreadable"
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


def _workers(wanted: int, batches: int) -> int:
    """No more than there are batches, nor than this process's share of the processor cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(0, min(wanted, share, batches))
