"""Resizing by torch, which needs a fraction of Pillow's time: Pillow's takes longer than decoding the JPEG."""

import random

from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch.nn.functional import interpolate

from .pixels import to_image, to_tensor

FILTERS = ("bilinear", "bicubic")  # that torch has for bytes


def resize(image: Image.Image, width: int, height: int, interpolation: str, exact: bool) -> Image.Image:
    """An image resized: by Pillow, or by torch, whose result is Pillow's within two levels of 255, nearly all equal.

    torch filters rows, then columns, and rounds to bytes after each, as Pillow does but for 16 bits a weight in place
    of 22. Pillow 13 filters columns first where that is less work, as when height alone shrinks; it then differs from
    earlier Pillow and from torch by more at the sharpest edges.

    Args:
        image: any image.
        width: of the result, in pixels.
        height: of the result.
        interpolation: timm's name of the filter, as ``bicubic``.
        exact: let Pillow do it. It also does images that are not RGB, and filters that torch does not have for bytes.
    """
    if exact or image.mode != "RGB" or interpolation not in FILTERS:
        return image.resize((width, height), str_to_pil_interp(interpolation))
    # (1, 4, H, W), channels last in memory: the layout that torch has a fast path for.
    pixels = to_tensor(image)[None].permute(0, 3, 1, 2)
    resized = interpolate(pixels, (height, width), mode=interpolation, antialias=True)
    return to_image(resized[0].permute(1, 2, 0))


class ResizeTo:
    """Resize an image to a square, or its short side alone with the aspect ratio kept, unless it has that size already.

    Args:
        size: of the square, or of the short side, in pixels; the long side is rounded down, as torchvision does.
        interpolation: timm's name of the filter; ``random``: bilinear or bicubic, drawn for each image as timm does.
        square: whether to give up the aspect ratio.
        exact: as in :func:`resize`.
    """

    def __init__(self, size: int, interpolation: str, *, square: bool, exact: bool) -> None:
        self.size = size
        self.interpolation = interpolation
        self.square = square
        self.exact = exact

    def __call__(self, image: Image.Image) -> Image.Image:
        interpolation = random.choice(FILTERS) if self.interpolation == "random" else self.interpolation
        width = height = self.size
        if not self.square:
            width, height = (int(self.size * side / min(image.size)) for side in image.size)
        same = image.size == (width, height)
        return image if same else resize(image, width, height, interpolation, self.exact)


class RandomCrop:
    """A box of random area, aspect ratio and place, as timm draws it.

    Args:
        scale: areas, as shares of the image.
        ratio: aspect ratios, width over height.
    """

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        self.scale = scale
        self.ratio = ratio

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        return image.crop((left, top, left + width, top + height))
