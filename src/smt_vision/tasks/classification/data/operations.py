"""A posterize operation for timm's augmentation policies that also works with Pillow 13."""

from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the ``bits`` highest bits of each value; 0 bits, which timm samples but Pillow 13 rejects, give black."""
    return image if bits >= 8 else ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def replace_posterize(transform: object) -> None:
    """Use :func:`posterize` in timm's augmentation policies; any other transform is left unchanged."""
    for op in _operations(transform):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = posterize


def _operations(transform: object) -> list[AugmentOp]:
    if isinstance(transform, AutoAugment):
        return [op for policy in transform.policy for op in policy]
    return list(transform.ops) if isinstance(transform, RandAugment | AugMixAugment) else []
