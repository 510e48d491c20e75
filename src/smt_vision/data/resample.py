"""Image resizing with PyTorch, a fraction of the time of Pillow's, which takes longer than decoding the JPEG."""

import math
import random
from typing import TypeVar, cast

import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import center_crop, crop, get_image_size

from .decode import LargeJpeg, OpenedImage
from .pixels import to_image, to_tensor

FILTERS = ("bilinear", "bicubic")  # those that PyTorch implements for uint8
AnyImage = TypeVar("AnyImage", Image.Image, Tensor)
LONGEST = 16  # aspect ratio above which an image is resized in another way, which bounds the memory
WIDEST_FILTER = 3  # support of Pillow's widest filter, Lanczos, in pixels of the smaller resolution


def image_size(image: OpenedImage) -> tuple[int, int]:
    """Width and height of an image, or of one of bands (C, H, W)."""
    if isinstance(image, LargeJpeg):
        return image.size
    width, height = get_image_size(image)
    return width, height


def resize(image: Image.Image, width: int, height: int, interpolation: str, exact: bool) -> Image.Image:
    """Resize an image with Pillow or PyTorch.

    PyTorch's result differs from Pillow's by at most two levels of 255, and nearly all pixels are equal. Both filter
    rows, then columns, and round to uint8 after each; PyTorch has 16 bits per filter weight instead of 22. Pillow 13
    filters columns first where that is less work, e.g. if only the height shrinks. It then differs from earlier
    versions and from PyTorch by more at the sharpest edges.

    Args:
        image: Image of any mode.
        width: Output width in pixels.
        height: Output height in pixels.
        interpolation: timm's name of the filter, e.g. ``bicubic``.
        exact: Whether to use Pillow. It is also used for modes other than RGB and for filters that PyTorch does not
            implement for uint8.
    """
    if width * image.height > LONGEST * max(image.width * image.height, width * height):
        # Filtered first in rows, a narrow and very high image would take a multiple of the memory of both.
        image = image.resize((image.width, height), str_to_pil_interp(interpolation))
    if exact or image.mode != "RGB" or interpolation not in FILTERS:
        return image.resize((width, height), str_to_pil_interp(interpolation))
    # (1, 4, H, W), channels last in memory: PyTorch has a fast path for this layout.
    pixels = to_tensor(image)[None].permute(0, 3, 1, 2)
    resized = interpolate(pixels, (height, width), mode=interpolation, antialias=True)
    return to_image(resized[0].permute(1, 2, 0))


def resize_bands(pixels: Tensor, width: int, height: int, interpolation: str) -> Tensor:
    """Resize an image of bands, with antialiasing.

    Args:
        pixels: (C, H, W) floating point.
        width: Output width in pixels.
        height: Output height in pixels.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
    """
    if width * pixels.shape[1] > LONGEST * max(pixels[0].numel(), width * height):  # as in resize
        pixels = resize_bands(pixels, pixels.shape[2], height, interpolation)
    if interpolation == "nearest":
        return interpolate(pixels[None], (height, width), mode="nearest-exact")[0]
    return interpolate(pixels[None], (height, width), mode=interpolation, antialias=True)[0]


class ResizeTo:
    """Resize an image to a square, or resize its short side and keep the aspect ratio.

    An image that already has the size is returned unchanged.

    Args:
        size: Side of the square, or short side, in pixels. The long side is rounded down, as in torchvision. If it
            exceeds 16 short sides, only its center is computed, by Pillow: the result is for a center crop.
        interpolation: timm's name of the filter; ``random`` chooses bilinear or bicubic for each image, as timm does.
        square: Whether to resize to a square, ignoring the aspect ratio.
        exact: Whether to use Pillow, as in :func:`resize`.
    """

    def __init__(self, size: int, interpolation: str, *, square: bool, exact: bool) -> None:
        self.size = size
        self.interpolation = interpolation
        self.square = square
        self.exact = exact

    def __call__(self, image: OpenedImage) -> Image.Image | Tensor:
        interpolation = random.choice(FILTERS) if self.interpolation == "random" else self.interpolation
        width = height = self.size
        sides = image_size(image)
        if not self.square:
            width, height = (int(self.size * side / min(sides)) for side in sides)
        if isinstance(image, LargeJpeg):
            image = image.reduced(width, height)
        if image_size(image) == (width, height):
            return image
        if isinstance(image, Tensor):
            if max(width, height) > LONGEST * self.size:
                rows, columns = (min(side, LONGEST * min(sides)) for side in image.shape[1:])
                image = cast(Tensor, center_crop(image, [rows, columns]))
                width, height = (int(self.size * side / min(sides)) for side in (columns, rows))
            return resize_bands(image, width, height, interpolation)
        if max(width, height) > LONGEST * self.size:
            return _resize_center(image, width, height, LONGEST * self.size, interpolation)
        return resize(image, width, height, interpolation, self.exact)


def _resize_center(image: Image.Image, width: int, height: int, longest: int, interpolation: str) -> Image.Image:
    """Resize an image to a width and height of which only the center of the long side is computed.

    A center crop of the result is that of the complete image: the number of pixels left out is a multiple of four, so
    that the crop's start is rounded in the same direction.
    """
    sides = []
    for length, resized in zip(image.size, (width, height), strict=True):
        kept = min(resized, longest + (resized - longest) % 4)
        scale = length / resized
        start, end = ((resized - kept) / 2 * scale, (resized + kept) / 2 * scale)
        margin = WIDEST_FILTER * max(1.0, scale)
        first, last = max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))
        sides.append((kept, first, last, start - first, end - first))
    (columns, left, right, *x), (rows, top, bottom, *y) = sides
    # The box is relative to a small crop, because Pillow stores it with 24 bits of precision.
    crop = image.crop((left, top, right, bottom))
    return crop.resize((columns, rows), str_to_pil_interp(interpolation), box=(x[0], y[0], x[1], y[1]))


class RandomCrop:
    """Crop a box of random area, aspect ratio and position, with timm's sampling.

    Args:
        scale: Range of areas, as fractions of the image area.
        ratio: Range of aspect ratios, width over height.
    """

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        self.scale = scale
        self.ratio = ratio

    def __call__(self, image: OpenedImage) -> OpenedImage:
        columns, rows = image_size(image)
        sized = torch.empty(1, 1).expand(rows, columns)  # without pixels: timm reads only the size
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(sized, self.scale, self.ratio)
        height, width = max(1, height), max(1, width)  # of an image of one or two pixels, timm may crop nothing
        top, left = min(top, rows - height), min(left, columns - width)
        if isinstance(image, LargeJpeg):
            return image.crop((left, top, left + width, top + height))
        return crop(image, top, left, height, width)
