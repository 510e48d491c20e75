"""Resizing with torch compared with Pillow: within two levels of 255, with the same crops and the same predictions."""

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
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationInput
from smt_vision.tasks.classification.data.transforms import eval_transform, train_transform

Make = Callable[[], Image.Image]
LEVELS = 2  # largest difference from Pillow, in levels of 255
MEAN = 0.02  # largest mean difference from Pillow, in levels of 255
COLUMNS_FIRST = 0.3  # the same where Pillow 13 filters columns first and torch filters rows first


def test_to_tensor_and_to_image_round_trip() -> None:
    image = picture()
    pixels = to_tensor(image)
    assert pixels.shape == (75, 100, 4)
    assert np.array_equal(pixels[..., :3], image)
    assert levels(to_image(pixels[10:20, 5:25]), image.crop((5, 10, 25, 20))).max() == 0


@pytest.mark.parametrize("size", [(224, 224), (40, 30), (99, 11), (1, 1), (100, 75)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("make", [picture, noise])
def test_resize_matches_pillow_within_two_levels(
    size: tuple[int, int], interpolation: str, make: Callable[[], Image.Image]
) -> None:
    image, filter = make(), Image.Resampling[interpolation.upper()]
    # Two calls, because in a single call Pillow 13 may filter columns first.
    expected = image.resize((size[0], image.height), filter).resize(size, filter)
    difference = levels(resize(image, *size, interpolation, exact=False), expected)
    assert difference.max() <= LEVELS
    assert difference.mean() <= MEAN


def test_exact_nearest_and_gray_equal_pillow() -> None:
    image = picture()
    gray, bicubic, nearest = image.convert("L"), Image.Resampling.BICUBIC, Image.Resampling.NEAREST
    assert levels(resize(image, 41, 31, "bicubic", exact=True), image.resize((41, 31), bicubic)).max() == 0
    assert levels(resize(image, 41, 31, "nearest", exact=False), image.resize((41, 31), nearest)).max() == 0
    assert levels(resize(gray, 41, 31, "bicubic", exact=False), gray.resize((41, 31), bicubic)).max() == 0


def test_resize_to_current_size_returns_same_image() -> None:
    image = picture(32, 40)
    assert ResizeTo(32, "bicubic", square=False, exact=False)(image) is image
    assert ResizeTo(32, "bicubic", square=True, exact=False)(image).size == (32, 32)
    assert ResizeTo(16, "bicubic", square=False, exact=False)(picture(33, 50)).size == (24, 16)  # 50 * 16 / 33 = 24.2


def tensor_levels(left: Tensor, right: Tensor, config: ClassificationInput) -> Tensor:
    """Absolute difference of two normalized images, in levels of 255."""
    assert config.std is not None
    return (left - right).abs() * torch.tensor(config.std).view(-1, 1, 1) * 255


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (64, 1.0), (300, 0.9)])
def test_eval_transform_matches_timm_within_two_levels(size: int, crop_pct: float) -> None:
    config = ClassificationInput(size=size, crop_pct=crop_pct, std=(0.2, 0.3, 0.25))
    for image in (photograph(), picture(375, 500)):
        difference = tensor_levels(
            eval_transform(config)(image), eval_transform(replace(config, exact=True))(image), config
        )
        assert difference.max() < LEVELS + 0.01
        assert difference.mean() < MEAN


def test_squash_matches_timm_except_at_sharp_edges() -> None:
    config = ClassificationInput(size=384, crop_pct=1.0, crop_mode="squash", std=(1.0, 1.0, 1.0))
    image = photograph()
    difference = tensor_levels(
        eval_transform(config)(image), eval_transform(replace(config, exact=True))(image), config
    )
    assert (difference > LEVELS + 0.01).float().mean() < 1e-3
    assert difference.mean() < COLUMNS_FIRST


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_train_crops_and_flips_match_timm(interpolation: str) -> None:
    """Equal seeds give equal areas, aspect ratios, positions, filters and flips, so the distributions are equal too."""
    config = ClassificationInput(size=32, interpolation=interpolation, std=(1.0, 1.0, 1.0))
    augment = ClassificationAugment(auto_augment=None, color_jitter=0.0, random_erasing=0.25, hflip=0.5, vflip=0.3)
    ours = train_transform(config, augment)
    theirs = transforms_imagenet_train(
        32, interpolation=interpolation, vflip=0.3, color_jitter=None, re_prob=0.25, re_mode="pixel", std=config.std
    )
    image = picture()
    for seed in range(60):
        seed_all(seed)
        expected = theirs(image)
        seed_all(seed)
        # A different crop would differ by tens of levels.
        assert tensor_levels(ours(image), expected, config).mean() < COLUMNS_FIRST


def test_random_crop_distributions() -> None:
    """By definition, independent of timm: areas are uniform over ``scale``, log aspect ratios over ``ratio``."""
    image = Image.fromarray(np.arange(400 * 400, dtype=np.int32).reshape(400, 400))  # pixel value = position
    crop, samples = RandomCrop((0.1, 0.5), (3 / 4, 4 / 3)), []
    seed_all(0)
    for _ in range(3000):
        box = crop(image)
        top, left = divmod(box.getpixel((0, 0)), 400)
        area, aspect = box.width * box.height / 400**2, math.log(box.width / box.height)
        samples.append((area, aspect, left / (400 - box.width), top / (400 - box.height)))
    areas, aspects, lefts, tops = np.array(samples).T
    edge = math.log(4 / 3)
    # Kolmogorov-Smirnov distance exceeded with probability 0.001, plus the rounding of boxes to whole pixels.
    threshold = 1.95 / math.sqrt(len(samples)) + 0.004
    for values, low, high in ((areas, 0.1, 0.5), (aspects, -edge, edge), (lefts, 0, 1), (tops, 0, 1)):
        ranks = np.sort((values - low) / (high - low))
        assert np.abs(ranks - np.linspace(0, 1, len(ranks))).max() < threshold


def test_color_jitter_matches_timm() -> None:
    config = ClassificationInput(size=32, std=(1.0, 1.0, 1.0))
    ours = train_transform(config, ClassificationAugment(auto_augment=None, color_jitter=0.4, random_erasing=0.0))
    theirs = transforms_imagenet_train(32, interpolation="bicubic", color_jitter=0.4, std=config.std)
    for seed in range(20):
        seed_all(seed)
        expected = theirs(picture())
        seed_all(seed)
        # Brightness, contrast and saturation factors of up to 1.4 each amplify the difference of the resize.
        assert tensor_levels(ours(picture()), expected, config).mean() < 1.4**3 * COLUMNS_FIRST


def predicted_classes(images: list[Image.Image], config: ClassificationInput) -> tuple[list[int], list[int]]:
    """Classes of images resized with torch and with Pillow, predicted with the weights that ship with the package."""
    model = timm.create_model("smt_femto.cifar10", pretrained=True).eval()
    with torch.inference_mode():
        both = [
            model(torch.stack([eval_transform(replace(config, exact=exact))(image) for image in images]))
            for exact in (False, True)
        ]
    return both[0].argmax(1).tolist(), both[1].argmax(1).tolist()


def cifar_images(archive: Path, count: int) -> Iterator[Image.Image]:
    """The first ``count`` images of an archive."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                yield Image.open(io.BytesIO(file.read())).convert("RGB")
                count -= 1
            if not count:
                return


def test_torch_and_pillow_predict_same_classes_cifar10(shared: Path) -> None:
    archive = shared / "data" / "cifar10.tar.gz"
    if not archive.is_file():
        pytest.skip("CIFAR-10 is not among the shared files")
    torch_classes, pillow_classes = predicted_classes(
        list(cifar_images(archive, 64)), ClassificationInput(size=64, crop_pct=1.0)
    )
    assert torch_classes == pillow_classes


def test_torch_and_pillow_predict_same_classes_photographs(shared: Path) -> None:
    files = sorted((shared / "data" / "coco_tiny" / "val2017").glob("*.jpg"))
    if not files:
        pytest.skip("no photographs among the shared files")
    torch_classes, pillow_classes = predicted_classes(
        [Image.open(file).convert("RGB") for file in files], ClassificationInput(size=64)
    )
    assert len(torch_classes) == len(files)
    assert torch_classes == pillow_classes


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 2_000_000), (1, 1), (2, 1)])
def test_extreme_aspect_ratios_have_a_bounded_cost(size, mode, monkeypatch) -> None:
    computed: list[int] = []
    resize = Image.Image.resize

    def recorded(self, *args, **kwargs):
        out = resize(self, *args, **kwargs)
        computed.append(out.width * out.height)
        return out

    monkeypatch.setattr(Image.Image, "resize", recorded)
    image = Image.new("RGB", size, (10, 100, 200))
    out = eval_transform(ClassificationInput(size=64, crop_mode=mode, exact=True))(image)
    assert out.shape == (3, 64, 64)
    assert max(computed) <= 2_000_000
    color = eval_transform(ClassificationInput(size=64))(image.resize((64, 64)))[:, 0, 0]
    assert (out == color[:, None, None]).all(0).sum() >= (1 if mode == "border" else 64 * 64)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(3, 301), (901, 7), (1, 40), (4000, 90)])
def test_center_of_a_long_image_is_that_of_the_complete_one(size, interpolation, monkeypatch) -> None:
    width, height = size
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    transform = eval_transform(ClassificationInput(size=63, crop_pct=0.9, interpolation=interpolation, exact=True))
    found = transform(image)
    monkeypatch.setattr("smt_vision.data.resample.LONGEST", 10**9)
    assert (found - transform(image)).abs().max() * 255 * 0.225 < 1.1  # levels


def test_training_crops_of_tiny_images_are_not_empty() -> None:
    crop = RandomCrop((0.08, 1.0), (3 / 4, 4 / 3))
    for size in ((1, 1), (2, 1), (1, 2)):
        image = Image.new("RGB", size, (200, 100, 10))
        assert {crop(image).getpixel((0, 0)) for _ in range(50)} == {(200, 100, 10)}
