"""Images to try resizing and augmentation on, and how far two of them are apart."""

import numpy as np
import numpy.typing as npt
from matplotlib import cbook
from PIL import Image


def picture(height: int = 75, width: int = 100, seed: int = 0) -> Image.Image:
    """Smooth shades with edges and noise, as a photograph has them."""
    draw = np.random.default_rng(seed)
    smooth = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(smooth) + draw.normal(0, 10, (height, width, 3))).clip(0, 255).astype(np.uint8))


def noise(height: int = 75, width: int = 100) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photograph() -> Image.Image:
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB")


def levels(left: Image.Image, right: Image.Image) -> npt.NDArray[np.int64]:
    assert left.size == right.size
    assert left.mode == right.mode
    return np.abs(np.asarray(left, dtype=np.int64) - np.asarray(right, dtype=np.int64))
