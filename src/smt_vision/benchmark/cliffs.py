"""Where a model is slow for its work: time per multiply-accumulate over models, sizes and batches."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from .compare import PASSES, Contender
from .cost import describe
from .speed import Call, inference, interleave, training_step

STEEP = 3.0  # times the best cell's time per multiply-accumulate: from there on it is a cliff


@dataclass(frozen=True)
class Cell:
    """A model at one size and batch.

    Attributes:
        model: the contender's name.
        size: side of the images in pixels.
        batch_size: images a call.
        gmac: multiply-accumulates of the call, over 1e9; a training step counts three times its forward pass.
        seconds: median time of the call.
        relative: its time per multiply-accumulate over that of the best cell.
    """

    model: str
    size: int
    batch_size: int
    gmac: float
    seconds: float
    relative: float = 1.0

    @property
    def steep(self) -> bool:
        """Whether this is a cliff."""
        return self.relative > STEEP

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "steep": self.steep}


def cliffs(
    contenders: Sequence[Contender],
    sizes: Sequence[int],
    batch_sizes: Sequence[int],
    *,
    train: bool = False,
    precision: str = "32-true",
    device: torch.device | str = "cpu",
    rounds: int = 3,
    seconds: float = 0.1,
    most_gmac: float = 60.0,
    advance: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Time every contender at every size and batch, in turn, and relate its time per operation to the best one's.

    Args:
        contenders: of unlike names, on ``device``.
        sizes: sides in pixels.
        batch_sizes: images a call.
        train: time an update in place of a forward pass.
        precision: ``32-true``, or ``bf16-mixed``, which is autocast.
        device: where they are.
        rounds: turns of each cell.
        seconds: timed, a turn.
        most_gmac: cells whose call is more work than that are left out.
        advance: called after each round with the number done and the number of all.

    Returns:
        The cells, the steepest first.

    Raises:
        ValueError: a contender has no plain form to count GMAC on, or every cell is more work than ``most_gmac``.
    """
    form = training_step if train else inference
    calls: dict[int, Call] = {}
    cells: list[Cell] = []
    for contender in contenders:
        if contender.plain is None:
            raise ValueError(
                f"{contender.name}: its GMAC are not known, so there is no time per operation; leave it out"
            )
        for size in sizes:
            image = (contender.input_size[0], size, size)
            gmac = PASSES[train] * describe(contender.plain, image).gmac
            for batch_size in batch_sizes:
                if batch_size * gmac <= most_gmac:
                    cell = Cell(contender.name, size, batch_size, batch_size * gmac, 0.0)
                    x = torch.randn(batch_size, *image, device=device)
                    calls[len(cells)] = form(contender.model, x, precision)
                    cells.append(cell)
    if not cells:
        raise ValueError(f"every call is more than {most_gmac} GMAC; take smaller sizes or batches, or raise most_gmac")
    timings = interleave(calls, rounds=rounds, seconds=seconds, device=device, advance=advance)
    timed = [replace(cell, seconds=timings[i].median) for i, cell in enumerate(cells)]
    best = min(cell.seconds / cell.gmac for cell in timed)
    return sorted((replace(c, relative=c.seconds / c.gmac / best) for c in timed), key=lambda c: -c.relative)
