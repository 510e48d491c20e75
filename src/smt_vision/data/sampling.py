"""How often an epoch has each training image: class-balanced and repeat-factor sampling.

Shapes: N images, K classes, P pairs of an image and a class that occurs in it, L draws per epoch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..recipe import Sampling
from ..text import get_logger
from .dataset import RawDataset

log = get_logger(__name__)


@dataclass(frozen=True)
class Draws:
    """Expected numbers of draws of images, and the draws of an epoch by systematic sampling.

    With an expectation of e, an image is drawn floor(e) or ceil(e) times, and so is each stratum as a whole: the
    classes have their shares in every epoch, not only on average.

    Args:
        images: Number of images N.
        image: Image indices (P,).
        stratum: Class of each entry (P,).
        expected: Expected draws per epoch of each entry (P,).
    """

    images: int
    image: npt.NDArray[np.int64]
    stratum: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Draws per epoch L, the same in every epoch."""
        return round(float(self.expected.sum()))

    def per_image(self) -> npt.NDArray[np.float64]:
        """Expected draws per epoch of each image (N,)."""
        return np.bincount(self.image, weights=self.expected, minlength=self.images).astype(np.float64)

    def sample(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """The draws of an epoch (L,), in random order.

        The k-th repeat of an image i is i + k N: modulo N the image, and as a whole a number of its own, from which
        the random numbers of its augmentation follow.
        """
        entries = np.lexsort((rng.random(len(self.image)), self.stratum))  # by stratum, in random order within it
        ends = np.cumsum(self.expected[entries])
        points = (np.arange(len(self)) + rng.random()) * (ends[-1] / len(self))
        drawn = np.searchsorted(ends, points, side="right").clip(max=len(entries) - 1)
        image = np.sort(self.image[entries[drawn]])
        repeat = np.arange(len(image)) - np.searchsorted(image, image)
        return rng.permutation(image + repeat * self.images)


def image_draws(images: RawDataset[Any], sampling: Sampling) -> Draws | None:
    """The draws of a training set by its recipe's sampling; ``None`` for ``uniform``.

    - ``balanced`` and ``sqrt``: an image is drawn for each of its classes. Of M images with a class, a class with n of
      them gets M n^q / sum(n^q) draws, q being 0 or 1/2, shared equally among its images. An image of several classes
      is drawn for each of them. Images without a class are drawn once.
    - ``repeat_factor``: an image is drawn max(1, sqrt(t / f)) times, f being the fraction of the images with its rarest
      class and t the threshold; once if it has no class.

    Args:
        images: The training images.
        sampling: The recipe's fields.
    """
    if sampling.method == "uniform" or not len(images):
        return None
    count = len(images)
    image, label = images.presence()
    frequency = np.bincount(label, minlength=len(images.classes))
    if sampling.method == "repeat_factor":
        factors = np.ones(count)
        np.maximum.at(factors, image, np.sqrt(sampling.threshold * count / frequency[label]))
        draws = Draws(count, np.arange(count), np.zeros(count, dtype=np.int64), factors)
    else:
        power = frequency ** (0.5 if sampling.method == "sqrt" else 0.0) * (frequency > 0)
        others = np.setdiff1d(np.arange(count), image)
        share = (count - len(others)) * power[label] / (power.sum() * frequency[label])
        draws = Draws(
            count,
            np.concatenate([image, others]),
            np.concatenate([label, np.full(len(others), len(images.classes))]),
            np.concatenate([share, np.ones(len(others))]),
        )
    expected = draws.per_image()
    log.info(
        "%s: sampling.method=%s: epochs of %d images from %d, each %.3g to %.3g times",
        images.where, sampling.method, len(draws), count, expected.min(), expected.max(),
    )  # fmt: skip
    return draws
