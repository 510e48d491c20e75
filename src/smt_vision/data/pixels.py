"""Conversion of RGB images to tensors and back, with four bytes per pixel, which is Pillow's memory layout.

The fourth byte is unused. Keeping it makes each conversion a plain memory copy, and halves the time of PyTorch's
resizing, which would otherwise add a fourth channel itself.
"""

import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """Copy an image of mode RGB to a uint8 tensor (H, W, 4)."""
    return torch.frombuffer(bytearray(image.tobytes("raw", "RGBX")), dtype=torch.uint8).view(
        image.height, image.width, 4
    )


def to_image(pixels: Tensor) -> Image.Image:
    """Copy a uint8 tensor (H, W, 4) to an image of mode RGB."""
    height, width, _ = pixels.shape
    return Image.frombytes("RGB", (width, height), pixels.contiguous().numpy().tobytes(), "raw", "RGBX")
