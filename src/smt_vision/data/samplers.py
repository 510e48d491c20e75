"""Batch samplers: the image indices of each batch are a pure function of the seed and the epoch."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .sampling import Draws


class TrainSampler:
    """Training batches of one rank, a pure function of (seed, epoch).

    An epoch is a permutation of all images, the same on each rank, split into global batches of batch_size * world;
    the incomplete last one is dropped. A dataset smaller than one global batch gives one batch of all its images
    (divided equally among the ranks, so up to world - 1 images may be left out). With draws, an epoch has those of the
    images instead; the k-th repeat of an image in an epoch is its index + k * length.

    With groups, all images of a global batch belong to one group, except in the one batch where the groups meet. The
    order of the batches is random, and so is which group comes last and loses the incomplete batch.

    Args:
        length: Number of images in the dataset.
        batch_size: Images per batch on each rank.
        rank: Rank of this process.
        world: Number of processes.
        seed: Random seed of the permutations.
        groups: Group of each image (length,), e.g. whether it is a portrait image: images of similar shape need the
            least padding. ``None`` for a single group.
        draws: How often each image is drawn; ``None`` for once per epoch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        groups: npt.NDArray[np.bool_] | None = None,
        draws: Draws | None = None,
    ) -> None:
        if length < world:
            raise ValueError(f"{length} training images for {world} processes; use fewer processes")
        self.length = length
        self.per_epoch = length if draws is None else len(draws)
        self.batch_size = min(batch_size, self.per_epoch // world)
        self.rank = rank
        self.world = world
        self.seed = seed
        self.groups = groups
        self.draws = draws

    def __len__(self) -> int:
        return self.per_epoch // (self.batch_size * self.world)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[list[int]]:
        """Batches of an epoch from ``start_batch`` on, so that resuming decodes none of the earlier ones."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.length) if self.draws is None else self.draws.sample(rng)
        batches = np.arange(len(self))
        if self.groups is not None:
            last = rng.integers(2)
            order = order[np.argsort(self.groups[order % self.length] == last, kind="stable")]
            rng.shuffle(batches)
        for batch in batches[start_batch:].tolist():
            first = (batch * self.world + self.rank) * self.batch_size
            yield order[first : first + self.batch_size].tolist()


class EvalSampler:
    """Evaluation batches of one rank: each image exactly once over all ranks, so ranks may differ by one image.

    Args:
        length: Number of images in the dataset.
        batch_size: Images per batch on each rank.
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world: int) -> None:
        self.per_epoch = length
        self.indices = range(rank, length, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def batches(self, epoch: int = 0, start_batch: int = 0) -> Iterator[list[int]]:
        """Batches from ``start_batch`` on; the same in each epoch."""
        for batch in range(start_batch, len(self)):
            yield list(self.indices[batch * self.batch_size : (batch + 1) * self.batch_size])
