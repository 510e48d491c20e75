"""Effective receptive field: which input pixels the center of a feature map depends on, and how much.

Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016.

The output unit is a projection of the channels of the center cell with random signs, so the map is an average over
random directions of the feature space. The plain sum over channels is one such direction, and a bad one: a LayerNorm
gives it a constant value up to the norm's weights, so behind it, e.g. after the blocks of Swin v2, its gradient is
rounding error.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .blocks import NotDefined, block_outputs, require_one_image, stage_ends

Floats = npt.NDArray[np.float64]
PROJECTIONS = 4  # per image
SEED = 0


@dataclass(frozen=True)
class ReceptiveField:
    """Effective receptive field of a feature map's center.

    Attributes:
        name: Module path of the block whose output it is.
        map: ``(H, W)``, a value per pixel of the network's input: absolute value of the gradient, summed over the
            input's channels, averaged over images and projections.
        centroid: Row and column of the center of gravity of the map, in pixels.
        radius50: Radius in pixels of the disk around the centroid that holds 50 % of the map's sum.
        radius95: The same for 95 %.
    """

    name: str
    map: Floats
    centroid: tuple[float, float]
    radius50: float
    radius95: float

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for an npz file."""
        return {
            f"{self.name}.map": self.map,
            f"{self.name}.centroid": np.array(self.centroid),
            f"{self.name}.radius50": np.array(self.radius50),
            f"{self.name}.radius95": np.array(self.radius95),
        }


def effective_receptive_fields(network: nn.Module, images: Iterable[Tensor]) -> list[ReceptiveField]:
    """The effective receptive field by stage: the gradient of the center cell after the last block of the stage.

    Of each image, the gradients of four projections of the cell's channels with random signs are averaged in absolute
    value. The signs differ from image to image, but are the same in every call.

    Images of different sizes are averaged with the center cells in one place.

    Args:
        network: A timm model, a :class:`~smt_vision.tasks.backbone.Backbone`, or any module that returns feature maps.
        images: Images ``(1, C, H, W)``, each at the network's input size.

    Raises:
        NotDefined: The network has no feature maps, or one has no gradient with respect to the image.
        ValueError: There are no images, or several in a batch.
    """
    names = stage_ends(network)
    sums: dict[str, _CenteredSum] = {}
    generator = torch.Generator().manual_seed(SEED)
    for image in images:
        require_one_image(image)
        x = image.detach().clone().requires_grad_()
        with torch.enable_grad():
            outputs = block_outputs(network, x, lambda value: value, names)
        for i, output in enumerate(outputs):
            h, w = output.value.shape[-2:]
            center = output.value[0, :, h // 2, w // 2]
            total = torch.zeros(x.shape[-2:], dtype=torch.float64)
            for projection in range(PROJECTIONS):
                signs = torch.randint(2, center.shape, generator=generator).to(center) * 2 - 1
                last = i == len(outputs) - 1 and projection == PROJECTIONS - 1
                (gradient,) = torch.autograd.grad((signs * center).sum(), x, retain_graph=not last)
                total += gradient[0].abs().sum(0).cpu().double()
            place = (int((h // 2 + 0.5) * x.shape[-2] / h), int((w // 2 + 0.5) * x.shape[-1] / w))
            sums.setdefault(output.name, _CenteredSum()).add(total.numpy() / PROJECTIONS, place)
    if not sums:
        raise ValueError("no images to average over: expected at least one")
    return [_receptive_field(name, total.mean()) for name, total in sums.items()]


def contribution_radius(map: Floats, centroid: tuple[float, float], fraction: float) -> float:
    """Radius in pixels of the smallest disk around a point whose pixels hold a fraction of a map's sum.

    Args:
        map: Nonnegative values ``(H, W)``.
        centroid: Row and column of the disk's center.
        fraction: Fraction of the sum, in (0, 1].
    """
    rows, columns = np.indices(map.shape)
    distance = np.hypot(rows - centroid[0], columns - centroid[1]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(map.ravel()[order])
    # Rounding must not move the last pixel out of a disk that holds all.
    return float(distance[order[min(np.searchsorted(held, fraction * held[-1] * (1 - 1e-12)), len(order) - 1)]])


def uniform_radii(shape: tuple[int, ...]) -> tuple[float, float]:
    """The radii of 50 % and 95 % of a map ``(H, W)`` with equal values, for comparison."""
    map = np.ones(shape)
    centroid = centroid_of(map)
    return contribution_radius(map, centroid, 0.5), contribution_radius(map, centroid, 0.95)


def centroid_of(map: Floats) -> tuple[float, float]:
    """Row and column of the center of gravity of nonnegative values ``(H, W)``."""
    rows, columns = np.indices(map.shape)
    total = map.sum()
    return float((rows * map).sum() / total), float((columns * map).sum() / total)


class _CenteredSum:
    """A sum of maps of different sizes, with one pixel of each in the same place."""

    def __init__(self) -> None:
        self.total: Floats = np.zeros((1, 1))
        self.center = (0, 0)
        self.count = 0

    def add(self, map: Floats, center: tuple[int, int]) -> None:
        before = [max(self.center[i], center[i]) for i in (0, 1)]
        after = [max(self.total.shape[i] - self.center[i], map.shape[i] - center[i]) for i in (0, 1)]
        sides: list[Floats] = []
        for array, place in ((self.total, self.center), (map, center)):
            pads = [(before[i] - place[i], after[i] - (array.shape[i] - place[i])) for i in (0, 1)]
            sides.append(np.pad(array, pads))
        self.total, self.center, self.count = sides[0] + sides[1], (before[0], before[1]), self.count + 1

    def mean(self) -> Floats:
        return self.total / self.count


def _receptive_field(name: str, map: Floats) -> ReceptiveField:
    if not map.sum() > 0:
        raise NotDefined(
            f"the receptive field of {name} is empty: its center has no gradient with respect to the image"
        )
    centroid = centroid_of(map)
    return ReceptiveField(
        name, map, centroid, contribution_radius(map, centroid, 0.5), contribution_radius(map, centroid, 0.95)
    )
