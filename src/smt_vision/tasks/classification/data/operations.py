"""The slow operations of timm's augmentation policies, in less time; and one that newer Pillow refuses, mended.

A shear or a translation moves whole lines along themselves, each by a distance of its own. Pillow filters in both
directions all the same, 16 values of double precision for each output; along the line alone there are four, or two.
What a policy draws is left to timm: only the function at the end of a draw is replaced.
"""

import random
import sys
from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from torch import Tensor

from ....data.pixels import to_image, to_tensor

Operation = Callable[..., Image.Image]


class AffineShift:
    """One of timm's shears and translations, with its arguments and its result.

    A value differs from Pillow's by one level of 255 at most: single precision here, double there. Images of other
    modes than RGB, and the nearest-neighbour filter, which is quick, are left to timm.

    Args:
        theirs: timm's function.
        axis: 0 moves columns vertically, 1 moves rows horizontally.
        unit: of the amount: ``slope`` (a line's distance from the edge is multiplied by it), ``pixels``, or ``share``
            of the image's side.
    """

    def __init__(self, theirs: Operation, axis: Literal[0, 1], unit: Literal["slope", "pixels", "share"]) -> None:
        self.theirs = theirs
        self.axis = axis
        self.unit = unit

    def __call__(
        self,
        image: Image.Image,
        amount: float,
        *,
        resample: Image.Resampling | tuple[Image.Resampling, ...],
        fillcolor: tuple[int, ...],
    ) -> Image.Image:
        if isinstance(resample, tuple):
            resample = random.choice(resample)
        if image.mode != "RGB" or resample not in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            return self.theirs(image, amount, resample=resample, fillcolor=fillcolor)
        length, lines = (image.height, image.width) if self.axis == 0 else image.size
        distance = {
            "slope": amount * (torch.arange(lines, dtype=torch.float64) + 0.5),
            "pixels": torch.tensor([amount], dtype=torch.float64),
            "share": torch.tensor([amount * length], dtype=torch.float64),
        }[self.unit]
        return _move(image, distance, self.axis, resample, fillcolor)


def _move(
    image: Image.Image, distance: Tensor, axis: int, resample: Image.Resampling, fillcolor: tuple[int, ...]
) -> Image.Image:
    """Output pixel i of a line is input position i + distance[line]; beyond the image, ``fillcolor``.

    A single distance is that of all lines.
    """
    pixels = to_tensor(image).view(torch.int32)[..., 0]  # (H, W): a pixel is fetched as one integer
    lines = pixels if axis == 1 else pixels.t().contiguous()
    length = lines.shape[1]
    whole = distance.floor()[:, None]
    part = (distance[:, None] - whole).float()
    if resample == Image.Resampling.BICUBIC:
        # Pillow's kernel, with a = -1: sharper than the one it resizes by.
        taps = {
            -1: -part * (1 - part) ** 2,
            0: 1 - part**2 * (2 - part),
            1: part * (1 + part - part**2),
            2: -(part**2) * (1 - part),
        }
    else:
        taps = {0: 1 - part, 1: part}

    place = (torch.arange(-1, length + 2) + whole.long()).clamp_(0, length - 1)
    values = lines.gather(1, place.expand(len(lines), -1)).view(torch.uint8).float()  # (lines, 4 (length + 3))
    # Pillow cuts the fraction off: a little more keeps whole numbers, as of flat areas, from falling to the next below.
    out = torch.full((len(lines), 4 * length), 1e-3)
    for tap, weight in taps.items():
        out.addcmul_(values.narrow(1, 4 * (tap + 1), 4 * length), weight)
    # By way of int32: torch is several times slower from float to uint8.
    moved = out.clamp_(0, 255).to(torch.int32).to(torch.uint8).view(torch.int32)
    at = torch.arange(length, dtype=torch.int32)
    first, last = ((end - distance[:, None] - 0.5).ceil().int() for end in (0, length))
    fill = torch.tensor(int.from_bytes(bytes((*fillcolor, 0)), sys.byteorder), dtype=torch.int32)
    result = torch.where((at >= first) & (at < last), moved, fill)
    result = result if axis == 1 else result.t().contiguous()
    return to_image(result.view(torch.uint8).view(image.height, image.width, 4))


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the ``bits`` highest bits of each value. None at all is black: Pillow 13 refuses 0, which timm draws."""
    return image if bits >= 8 else ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


PATCHED: Mapping[Operation, Operation] = {auto_augment.posterize: posterize}
ACCELERATED: Mapping[Operation, Operation] = {
    **PATCHED,
    auto_augment.shear_x: AffineShift(auto_augment.shear_x, 1, "slope"),
    auto_augment.shear_y: AffineShift(auto_augment.shear_y, 0, "slope"),
    auto_augment.translate_x_abs: AffineShift(auto_augment.translate_x_abs, 1, "pixels"),
    auto_augment.translate_y_abs: AffineShift(auto_augment.translate_y_abs, 0, "pixels"),
    auto_augment.translate_x_rel: AffineShift(auto_augment.translate_x_rel, 1, "share"),
    auto_augment.translate_y_rel: AffineShift(auto_augment.translate_y_rel, 0, "share"),
}


def replace_operations(step: object, ours: Mapping[Operation, Operation]) -> None:
    """Put our functions in the place of timm's, in a policy of timm's; any other step is left as it is."""
    for op in _operations(step):
        op.aug_fn = ours.get(cast(Operation, op.aug_fn), op.aug_fn)


def _operations(step: object) -> list[AugmentOp]:
    if isinstance(step, AutoAugment):
        return [op for chain in step.policy for op in chain]
    return list(step.ops) if isinstance(step, RandAugment | AugMixAugment) else []
