"""Data loaders of all tasks: decoding and seeded augmentation in worker processes, unreadable images, exact resume."""

import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, parent_process
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..recipe import Input, Sampling
from ..seeding import stable_hash
from ..signals import ignore_stop_signals
from ..text import get_logger
from .dataset import RawDataset
from .decode import UnreadableImage, decode_for_resize
from .retry import retried
from .samplers import EvalSampler, TrainSampler
from .sampling import image_draws

log = get_logger(__name__)
CLOSE_SECONDS = 2.0  # that worker processes have to end by themselves
T = TypeVar("T")  # target of an image in a dataset
B = TypeVar("B", bound=Mapping[str, Any])  # a task's batch, a typed dict with "image", "index" and "unreadable"

Position = tuple[int, int]  # epoch, and index of an image or of a repeat of it; see TrainSampler
Item = dict[str, Any]  # an image's "image" (None if unreadable), "index", "unreadable" and what its task adds
Transform = Callable[[Any, T, str], Item]  # (result of decode_for_resize, target, name) to an item
Stack = Callable[[list[Item]], dict[str, Any]]  # one or more items to a batch
# (an item, a function that returns the item of another random image, epoch) to an item composed of them
Mix = Callable[[Item, Callable[[], Item], int], Item]


class DecodedImages(Dataset[Item], Generic[T]):
    """Decoded and transformed images, indexed by (epoch, index).

    Random numbers depend on (seed, epoch, index) only, so that images are the same for any number of workers and
    processes, and after a resume. An index is taken modulo the number of images: a repeat of an image in an epoch has
    an index of its own, and so another augmentation.

    Args:
        images: Encoded images and their targets.
        transform: Augmentation and preprocessing; may raise :class:`UnreadableImage`, e.g. if the image and its target
            differ in size.
        input: How images are decoded.
        seed: Seed of the transform's random numbers.
        attempts: Number of images to try per item. Beyond 1, an unreadable image is replaced by the next readable one,
            so that the batch size is constant. If all are unreadable, the item's image is ``None``.
        mix: Augmentation that composes transformed images; ``None`` for none.
    """

    def __init__(
        self,
        images: RawDataset[T],
        transform: Transform[T],
        input: Input,
        seed: int,
        attempts: int = 1,
        mix: Mix | None = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.input = input
        self.seed = seed
        self.attempts = attempts
        self.mix = mix

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Position) -> Item:
        epoch, index = position
        unreadable: list[str] = []
        for attempt in range(self.attempts):
            row = (index + attempt) % len(self.images)
            try:
                seed_all(self.seed, epoch, index)
                item = self._item(row)
                if self.mix is not None:
                    item = self.mix(item, partial(self._another, row, unreadable), epoch)
                return {**item, "index": row, "unreadable": unreadable}
            except UnreadableImage as error:
                unreadable.append(str(error))
        return {"image": None, "index": index, "unreadable": unreadable}

    def _item(self, row: int) -> Item:
        return self.transform(*retried(lambda: self._decoded(row)))

    def _decoded(self, row: int) -> tuple[Any, T, str]:
        """An image that is decoded as far as its size is known, its target, and its name."""
        try:
            raw, target, name = self.images.read(row)
        except OSError as error:  # of the storage: another image takes its place, as if it were damaged
            raise UnreadableImage(f"{self.images.name(row)}: {error}") from error
        return decode_for_resize(raw, self.input, name=name), target, name

    def _another(self, row: int, unreadable: list[str]) -> Item:
        """The item of a random other image, or of the next one that can be read; messages are added to the list."""
        if not (others := len(self.images) - 1):
            return self._item(row)
        first = random.randrange(others)
        for attempt in range(min(self.attempts, others)):
            try:
                return self._item((row + 1 + (first + attempt) % others) % len(self.images))
            except UnreadableImage as error:
                unreadable.append(str(error))
        raise UnreadableImage(unreadable.pop())

    def __getitems__(self, positions: list[Position]) -> list[Item]:
        # Called once per batch. Without worker processes, the global generators are the caller's: restore them.
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
    """Seed Python's, NumPy's and torch's CPU generators with a stable hash of the numbers."""
    key = stable_hash(*numbers)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)


class DeadWorker(RuntimeError):
    """A worker process of a data loader was killed."""


@contextmanager
def explained_dead_workers(workers: int) -> Iterator[None]:
    """Turn PyTorch's error about a worker that was killed into one that says what to do.

    PyTorch raises it in the handler of a signal: wherever the main thread happens to be, e.g. in a training step.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DeadWorker(
            f"a data loader worker died ({error}), often because memory or shared memory ran out; lower input.workers "
            f"(now {workers}) or batch_size"
        ) from error


def _init_worker(index: int) -> None:
    """Leave signals to the training process: a scheduler sends them to all processes at once."""
    ignore_stop_signals()
    sys.excepthook = _report_unless_closed
    threading.Thread(target=_exit_with_parent, name="parent", daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the training process has ended, also if it was killed.

    PyTorch looks after the process that forked the worker, which may be multiprocessing's server.
    """
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _report_unless_closed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an uncaught error, unless it is that the training process has ended while it was sent a batch."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


@dataclass(frozen=True)
class Collate:
    """Collate items into a batch; items without an image are dropped and their messages are kept.

    Args:
        stack: Collates the items that have an image.
    """

    stack: Stack

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        readable = [item for item in items if item["image"] is not None]
        return {
            **(self.stack(readable) if readable else {}),  # an empty batch is never yielded, only its messages are used
            "index": torch.tensor([item["index"] for item in readable], dtype=torch.long),
            "unreadable": [message for item in items for message in item["unreadable"]],
        }


class _EpochBatches(Sampler[list[Position]]):
    """Batch sampler for torch's data loader; set ``epoch`` and ``start_batch`` before each pass."""

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
    """Batches loaded by worker processes, which persist between passes.

    Args:
        dataset: Transformed images.
        stack: Collates the items of a batch.
        sampler: Sampler that yields the indices of each batch.
        input: Input settings; ``workers`` and ``max_unreadable`` are used.
    """

    def __init__(
        self, dataset: DecodedImages[Any], stack: Stack, sampler: TrainSampler | EvalSampler, input: Input
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
            collate_fn=Collate(stack),
            # Not on a computer whose GPU is not used here: pinning would need memory of it.
            pin_memory=torch.cuda.is_available() and torch.cuda.is_initialized(),
            persistent_workers=workers > 0,
            worker_init_fn=_init_worker,
            # Without its own generator, each pass would advance the global one, and a resumed run would differ.
            generator=torch.Generator(),
        )

    @property
    def workers(self) -> int:
        """Number of worker processes; 0 loads images in this process."""
        return self._loader.num_workers

    @property
    def unreadable(self) -> tuple[str, ...]:
        """One message per unreadable image so far."""
        return tuple(self._unreadable)

    def _run(self, epoch: int, start_batch: int) -> Iterator[B]:
        self._batches.epoch, self._batches.start_batch = epoch, start_batch
        with explained_dead_workers(self.workers):
            for batch in self._loader:
                self._record_unreadable(batch["unreadable"])
                if len(batch["index"]):
                    yield cast(B, batch)

    def _record_unreadable(self, messages: list[str]) -> None:
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
        """Stop the worker processes, within seconds."""
        iterator: Any = self._loader._iterator
        self._loader._iterator = None
        workers = getattr(iterator, "_workers", ())
        if not workers:
            return
        # One that does not react, e.g. because of a file system that does not, is killed.
        timer = threading.Timer(CLOSE_SECONDS, lambda: [worker.kill() for worker in workers if worker.is_alive()])
        timer.daemon = True
        timer.start()
        with suppress(RuntimeError):  # raised when a worker has been killed
            iterator._shutdown_workers()
        timer.cancel()


class TrainLoader(_Loader[B]):
    """Training batches; see :func:`train_loader`."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches per epoch and rank."""
        return len(self._batches.sampler)

    @property
    def images_per_epoch(self) -> int:
        """Images of an epoch, over all ranks, before an incomplete last batch is dropped."""
        return self._batches.sampler.per_epoch

    @property
    def images_per_batch(self) -> int:
        """Images per batch and rank: those of the recipe, or all, if the dataset has fewer."""
        return self._batches.sampler.batch_size

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[B]:
        """The batches of an epoch, from ``start_batch`` on; one iterator at a time."""
        return self._run(epoch, start_batch)


class EvalLoader(_Loader[B]):
    """Evaluation batches, which can be iterated repeatedly; see :func:`eval_loader`."""

    def __len__(self) -> int:
        return len(self._batches.sampler)

    def __iter__(self) -> Iterator[B]:
        return self._run(0, 0)


def train_loader(
    images: RawDataset[T],
    transform: Transform[T],
    stack: Stack,
    input: Input,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    groups: npt.NDArray[np.bool_] | None = None,
    sampling: Sampling | None = None,
    mix: Mix | None = None,
) -> TrainLoader[Any]:
    """Shuffled batches for training.

    Their order and content depend on (seed, rank, world) only, whatever the number of workers, also after a resume.
    An unreadable image is logged and replaced by the next one, so that the batch size is constant.

    Args:
        images: Training images.
        transform: Augmentation and preprocessing.
        stack: Collates the items of a batch.
        input: Input settings; ``channels``, ``workers`` and ``max_unreadable`` are used.
        batch_size: Images per batch and rank.
        seed: Seed of the image order and the augmentation.
        rank: Rank of this process.
        world: Number of processes.
        groups: (length,) which of two groups each image is in, e.g. portrait and landscape. At most one batch per epoch
            mixes the groups. ``None`` uses one group.
        sampling: How often an epoch has each image; ``None`` for once.
        mix: Augmentation that composes transformed images; ``None`` for none.

    Raises:
        UnreadableImage: While iterating, if more than ``input.max_unreadable`` images are unreadable.
    """
    dataset = DecodedImages(images, transform, input, seed, attempts=input.max_unreadable + 1, mix=mix)
    draws = image_draws(images, sampling or Sampling())
    sampler = TrainSampler(len(images), batch_size, rank, world, seed, groups=groups, draws=draws)
    return TrainLoader(dataset, stack, sampler, input)


def eval_loader(
    images: RawDataset[T],
    transform: Transform[T],
    stack: Stack,
    input: Input,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> EvalLoader[Any]:
    """Batches for evaluation, in order and with each image on exactly one rank.

    Unreadable images are logged and dropped.

    Arguments and errors are those of :func:`train_loader`.
    """
    dataset = DecodedImages(images, transform, input, seed=0)
    return EvalLoader(dataset, stack, EvalSampler(len(images), batch_size, rank, world), input)


def _workers(requested: int, batches: int) -> int:
    """Number of worker processes: at most one per batch, and at most this process's share of the CPU cores."""
    return max(0, min(requested, share_of_cores(), batches))


def share_of_cores() -> int:
    """Number of CPU cores per training process; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    per_task, tasks = (int(os.environ.get(f"SLURM_{name}", "0")) for name in ("CPUS_PER_TASK", "NTASKS"))
    if per_task and tasks >= processes and "TORCHELASTIC_RUN_ID" not in os.environ:
        return min(cores, per_task)  # SLURM started the processes, and has divided the cores among them
    return max(1, cores // processes)
