"""Which images make up each batch: pure functions of the seed and the epoch."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


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
        groups: (length,) False or True, as which images are portrait: they pad each other least; ``None`` for one group.
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
