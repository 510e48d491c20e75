"""RGB images as tensors and back, four bytes a pixel, which is how Pillow has them in memory.

The fourth byte means nothing. To leave it in makes each way a copy of memory in place of a conversion, and halves the
time of torch's resizing, which would put it in itself.
"""

import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """An image of mode RGB, copied to a tensor (H, W, 4) uint8."""
    return torch.frombuffer(bytearray(image.tobytes("raw", "RGBX")), dtype=torch.uint8).view(
        image.height, image.width, 4
    )


def to_image(pixels: Tensor) -> Image.Image:
    """A tensor (H, W, 4) uint8, copied to an image of mode RGB."""
    height, width, _ = pixels.shape
    return Image.frombytes("RGB", (width, height), pixels.contiguous().numpy().tobytes(), "raw", "RGBX")
