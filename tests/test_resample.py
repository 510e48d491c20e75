"""torch's resizing beside Pillow's: within two levels of 255, the same crops, and the same predictions."""

import io
import math
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from sample_images import levels, noise, photograph, picture
from smt_vision.data.loaders import seed_all
from smt_vision.data.pixels import to_image, to_tensor
from smt_vision.data.resample import RandomCrop, ResizeTo, resize
from smt_vision.recipe import Augment, Input
from smt_vision.tasks.classification.data.transforms import eval_transform, train_transform

Make = Callable[[], Image.Image]
LEVELS = 2  # of 255: the largest difference from Pillow
MEAN = 0.02  # of 255: the largest mean difference from Pillow
COLUMNS_FIRST = 0.3  # the same, where Pillow 13 filters columns first and torch rows


def test_pixels_there_and_back() -> None:
    image = picture()
    pixels = to_tensor(image)
    assert pixels.shape == (75, 100, 4)
    assert np.array_equal(pixels[..., :3], image)
    assert levels(to_image(pixels[10:20, 5:25]), image.crop((5, 10, 25, 20))).max() == 0


@pytest.mark.parametrize("size", [(224, 224), (40, 30), (99, 11), (1, 1), (100, 75)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("make", [picture, noise])
def test_resizing_is_pillows_within_two_levels(
    size: tuple[int, int], interpolation: str, make: Callable[[], Image.Image]
) -> None:
    image, filter = make(), Image.Resampling[interpolation.upper()]
    # In two calls: in one, Pillow 13 may filter columns first.
    theirs = image.resize((size[0], image.height), filter).resize(size, filter)
    off = levels(resize(image, *size, interpolation, exact=False), theirs)
    assert off.max() <= LEVELS
    assert off.mean() <= MEAN


def test_what_torch_is_not_asked_for_equals_pillow() -> None:
    image = picture()
    grey, bicubic, nearest = image.convert("L"), Image.Resampling.BICUBIC, Image.Resampling.NEAREST
    assert levels(resize(image, 41, 31, "bicubic", exact=True), image.resize((41, 31), bicubic)).max() == 0
    assert levels(resize(image, 41, 31, "nearest", exact=False), image.resize((41, 31), nearest)).max() == 0
    assert levels(resize(grey, 41, 31, "bicubic", exact=False), grey.resize((41, 31), bicubic)).max() == 0


def test_an_image_of_the_size_wanted_is_not_touched() -> None:
    image = picture(32, 40)
    assert ResizeTo(32, "bicubic", square=False, exact=False)(image) is image
    assert ResizeTo(32, "bicubic", square=True, exact=False)(image).size == (32, 32)
    assert ResizeTo(16, "bicubic", square=False, exact=False)(picture(33, 50)).size == (24, 16)  # 24.2


def in_levels(left: Tensor, right: Tensor, given: Input) -> Tensor:
    assert given.std is not None
    return (left - right).abs() * torch.tensor(given.std).view(-1, 1, 1) * 255


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (64, 1.0), (300, 0.9)])
def test_evaluation_is_timms_within_two_levels(size: int, crop_pct: float) -> None:
    given = Input(size=size, crop_pct=crop_pct, std=(0.2, 0.3, 0.25))
    for image in (photograph(), picture(375, 500)):
        off = in_levels(eval_transform(given)(image), eval_transform(replace(given, exact=True))(image), given)
        assert off.max() < LEVELS + 0.01
        assert off.mean() < MEAN


def test_a_squashed_photograph_is_timms_but_for_the_sharpest_edges() -> None:
    given = Input(size=384, crop_pct=1.0, crop_mode="squash", std=(1.0, 1.0, 1.0))
    image = photograph()
    off = in_levels(eval_transform(given)(image), eval_transform(replace(given, exact=True))(image), given)
    assert (off > LEVELS + 0.01).float().mean() < 1e-3
    assert off.mean() < COLUMNS_FIRST


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_crops_and_flips_are_timms(interpolation: str) -> None:
    """From the same seeds the same area, aspect ratio, place, filter and flips: hence the same distributions."""
    given = Input(size=32, interpolation=interpolation, std=(1.0, 1.0, 1.0))
    augment = Augment(auto_augment=None, color_jitter=0.0, random_erasing=0.25, hflip=0.5, vflip=0.3)
    ours = train_transform(given, augment)
    theirs = transforms_imagenet_train(
        32, interpolation=interpolation, vflip=0.3, color_jitter=None, re_prob=0.25, re_mode="pixel", std=given.std
    )
    image = picture()
    for seed in range(60):
        seed_all(seed)
        expected = theirs(image)
        seed_all(seed)
        assert in_levels(ours(image), expected, given).mean() < COLUMNS_FIRST  # tens, were it another crop


def test_crops_cover_what_the_recipe_says() -> None:
    """Against the definition, not against timm: areas uniform over the scale, log aspect ratios over theirs."""
    image = Image.fromarray(np.arange(400 * 400, dtype=np.int32).reshape(400, 400))  # each pixel knows its place
    crop, seen = RandomCrop((0.1, 0.5), (3 / 4, 4 / 3)), []
    seed_all(0)
    for _ in range(3000):
        box = crop(image)
        top, left = divmod(box.getpixel((0, 0)), 400)
        area, aspect = box.width * box.height / 400**2, math.log(box.width / box.height)
        seen.append((area, aspect, left / (400 - box.width), top / (400 - box.height)))
    areas, aspects, lefts, tops = np.array(seen).T
    edge = math.log(4 / 3)
    # Kolmogorov and Smirnov's distance from uniform exceeds this once in a thousand; and boxes are of whole pixels.
    far = 1.95 / math.sqrt(len(seen)) + 0.004
    for values, low, high in ((areas, 0.1, 0.5), (aspects, -edge, edge), (lefts, 0, 1), (tops, 0, 1)):
        ranks = np.sort((values - low) / (high - low))
        assert np.abs(ranks - np.linspace(0, 1, len(ranks))).max() < far


def test_colours_are_timms() -> None:
    given = Input(size=32, std=(1.0, 1.0, 1.0))
    ours = train_transform(given, Augment(auto_augment=None, color_jitter=0.4, random_erasing=0.0))
    theirs = transforms_imagenet_train(32, interpolation="bicubic", color_jitter=0.4, std=given.std)
    for seed in range(20):
        seed_all(seed)
        expected = theirs(picture())
        seed_all(seed)
        # Brightness, contrast and saturation of up to 1.4 each stretch what the resize differs by.
        assert in_levels(ours(picture()), expected, given).mean() < 1.4**3 * COLUMNS_FIRST


# Predictions


def predictions(images: list[Image.Image], given: Input) -> tuple[list[int], list[int]]:
    """Classes from images resized by torch, and by Pillow, with the weights that ship."""
    model = timm.create_model("smt_femto.cifar10", pretrained=True).eval()
    with torch.inference_mode():
        both = [
            model(torch.stack([eval_transform(replace(given, exact=exact))(image) for image in images]))
            for exact in (False, True)
        ]
    return both[0].argmax(1).tolist(), both[1].argmax(1).tolist()


def cifar(archive: Path, count: int) -> Iterator[Image.Image]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                yield Image.open(io.BytesIO(file.read())).convert("RGB")
                count -= 1
            if not count:
                return


def test_the_same_classes_for_cifar10_enlarged(shared: Path) -> None:
    archive = shared / "data" / "cifar10.tar.gz"
    if not archive.is_file():
        pytest.skip("no CIFAR-10 among the shared files")
    ours, theirs = predictions(list(cifar(archive, 128)), Input(size=64, crop_pct=1.0))
    assert ours == theirs


def test_the_same_classes_for_photographs(shared: Path) -> None:
    files = sorted((shared / "data" / "coco_tiny" / "val2017").glob("*.jpg"))
    if not files:
        pytest.skip("no photographs among the shared files")
    ours, theirs = predictions([Image.open(file).convert("RGB") for file in files], Input(size=64))
    assert len(ours) == len(files)
    assert ours == theirs
