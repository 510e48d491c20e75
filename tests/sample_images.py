"""Sample images for tests of resizing and augmentation, and a comparison of images."""

import numpy as np
import numpy.typing as npt
from matplotlib import cbook
from PIL import Image


def picture(height: int = 75, width: int = 100, seed: int = 0) -> Image.Image:
    """Smooth shades with edges and noise, similar to a photograph."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(smooth) + rng.normal(0, 10, (height, width, 3))).clip(0, 255).astype(np.uint8))


def noise(height: int = 75, width: int = 100) -> Image.Image:
    """Uniform random pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photograph() -> Image.Image:
    """The sample photograph that ships with matplotlib."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB")


def levels(left: Image.Image, right: Image.Image) -> npt.NDArray[np.int64]:
    """Absolute difference per pixel and channel, in levels of 255, of two images of one size and mode."""
    assert left.size == right.size
    assert left.mode == right.mode
    return np.abs(np.asarray(left, dtype=np.int64) - np.asarray(right, dtype=np.int64))
