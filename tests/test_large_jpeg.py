"""Large JPEG files, decoded at a lower resolution where a crop is resized: close to those decoded in full."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import smt_vision.data.decode as decoding
from smt_vision.data.decode import LargeJpeg, UnreadableImage, decode, decode_for_resize, decode_input
from smt_vision.data.loaders import DecodedImages, seed_all
from smt_vision.data.region import Region
from smt_vision.data.resample import image_size
from smt_vision.recipe import Input
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationInput
from smt_vision.tasks.classification.data.folders import FolderDataset
from smt_vision.tasks.classification.data.transforms import eval_transform, train_transform
from smt_vision.tasks.classification.predictor import Classifier
from smt_vision.tasks.detection.config import DetectConfig
from smt_vision.tasks.detection.data.transforms import DetectionTransform
from smt_vision.tasks.load import load

UNIT = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # tensors in [0, 1]
INPUT = ClassificationInput(size=64, **UNIT)


def photo(width: int = 1600, height: int = 1200, mode: str = "RGB") -> Image.Image:
    """Smooth colors, which differ in all corners, with the noise of a camera."""
    rng = np.random.default_rng(0)
    colors = Image.fromarray(rng.integers(30, 226, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(colors) + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def large(data: bytes | Path | Image.Image, input: Input = INPUT) -> LargeJpeg:
    found = decode_for_resize(data, input, name="x")
    assert isinstance(found, LargeJpeg)
    return found


def levels(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean absolute difference in levels of 255."""
    assert one.shape == other.shape
    return 255 * float((one - other).abs().mean())


@pytest.fixture(scope="module")
def data() -> bytes:
    return jpeg(photo())


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((100, 75), (200, 150)), ((101, 75), (400, 300)), ((200, 150), (400, 300)), ((400, 300), (800, 600))],
)
def test_the_lowest_resolution_of_twice_the_size_is_decoded(
    data: bytes, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    with Image.open(io.BytesIO(data)) as expected:
        expected.draft(None, decoded)
        assert expected.size == decoded
        assert np.array_equal(large(data).reduced(*size), expected)


def test_full_resolution_where_the_size_needs_it(data: bytes) -> None:
    full = decode(data, 3, name="x")
    assert np.array_equal(large(data).reduced(401, 300), full)
    assert np.array_equal(large(data).crop((7, 5, 400, 305)).reduced(100, 76), full.crop((7, 5, 400, 305)))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"progressive": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_jpeg(mode: str, options: dict[str, object], channels: int) -> None:
    given = replace(INPUT, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    content = jpeg(photo(mode=mode), **options)
    transform = eval_transform(given)
    reduced = large(content, given)
    assert levels(transform(reduced), transform(decode_input(content, given, name="x"))) < 0.6
    assert list(reduced._decoded) == [8]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1600, 1200), (1607, 1201)])
def test_orientation_and_sides_that_are_no_multiples_of_the_scale(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(photo(*size), exif=exif)
    full = decode(content, 3, name="x")
    assert large(content).size == full.size == (size if orientation < 5 else size[::-1])
    for mode in ("center", "squash", "border"):
        transform = eval_transform(replace(INPUT, crop_mode=mode))
        assert levels(transform(large(content)), transform(full)) < 0.6
    crop = (101, 202, 1100, 1100)
    for hflip in (False, True):
        region = Region(*crop, 70, 60, hflip=hflip)
        one, other = (np.asarray(region.image(i, "bicubic", False), int) for i in (large(content), full))
        assert np.abs(one - other).mean() < 1.5  # the crop is shifted by up to 1/4 pixel


def test_training_has_the_same_random_numbers_and_crops(data: bytes) -> None:
    transform = train_transform(INPUT, ClassificationAugment(random_erasing=1.0, auto_augment=None, color_jitter=0.0))
    full, scales = decode(data, 3, name="x"), set()
    for seed in range(20):
        image = large(data)
        seed_all(seed)
        reduced = transform(image)
        seed_all(seed)
        expected = transform(full)
        assert levels(reduced, expected) < 2.5  # the crop is shifted by up to 1/4 pixel
        scales |= set(image._decoded)
    assert scales == {2, 4, 8}


def test_crops_of_one_image_are_decoded_once_per_scale(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    image = large(data)
    first = image.reduced(100, 75)
    monkeypatch.setattr(decoding, "open_image", None)
    assert image.reduced(90, 60) is first
    assert np.array_equal(image.crop((800, 600, 1600, 1200)).reduced(50, 37), first.crop((100, 75, 200, 150)))


def test_everything_else_is_decoded_as_before(data: bytes) -> None:
    full = decode(data, 3, name="x")
    exact = decode_for_resize(data, replace(INPUT, exact=True), name="x")
    png, small, loaded = io.BytesIO(), jpeg(photo(1024, 1023)), Image.open(io.BytesIO(data))
    full.save(png, "PNG")
    loaded.load()
    reduced = Image.open(io.BytesIO(data))
    reduced.draft(None, (800, 600))
    for given, expected in (
        (exact, full),
        (decode_for_resize(png.getvalue(), INPUT, name="x"), full),
        (decode_for_resize(small, INPUT, name="x"), decode(small, 3, name="x")),
        (decode_for_resize(loaded, INPUT, name="x"), full),
        (decode_for_resize(reduced, INPUT, name="x"), decode(reduced, 3, name="x")),
    ):
        assert isinstance(given, Image.Image)
        assert np.array_equal(given, expected)
    transform = eval_transform(replace(INPUT, exact=True))
    assert torch.equal(transform(exact), transform(full))


def test_opened_image_gives_the_pixels_of_its_file_and_is_not_changed(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    with Image.open(tmp_path / "x.jpg") as image:
        before = (image.size, image.mode, list(image.tile), image.decoderconfig)
        from_image = large(image).reduced(100, 75)
        assert (image.size, image.mode, list(image.tile), image.decoderconfig) == before
        assert np.array_equal(from_image, large(tmp_path / "x.jpg").reduced(100, 75))
        assert np.array_equal(image, decode(data, 3, name="x"))


def test_file_of_several_images(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.mpo", save_all=True, append_images=[Image.new("RGB", (1600, 1200), "red")])
    with Image.open(tmp_path / "x.mpo") as image:
        assert image.format == "MPO"
        reduced = large(image).reduced(100, 75)
        assert reduced.size == (200, 150)
        assert np.array_equal(reduced, large(tmp_path / "x.mpo").reduced(100, 75))
        image.seek(1)
        shown = decode_for_resize(image, INPUT, name="x")
        assert isinstance(shown, Image.Image)
        assert np.allclose(shown.getpixel((5, 5)), (255, 0, 0), atol=2)


def test_truncated_file(data: bytes, tmp_path: Path) -> None:
    for folder, content in (("cat", data[: len(data) * 2 // 3]), ("dog", data)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(content)
    cut = tmp_path / "cat" / "1.jpg"
    with Image.open(cut) as image:
        for source in (cut, cut.read_bytes(), image):
            with pytest.raises(UnreadableImage, match=r"^x: .*truncated"):
                large(source).reduced(100, 75)
    images = FolderDataset(tmp_path, ("cat", "dog"), [0, 1], ["cat/1.jpg", "dog/1.jpg"])
    transform = eval_transform(INPUT)
    item = DecodedImages(images, lambda i, t, n: {"image": transform(i), "target": t}, INPUT, seed=0, attempts=2)[0, 0]
    assert item["index"] == 1
    assert item["unreadable"][0].startswith(str(cut))
    assert torch.equal(item["image"], transform(large(data)))


def test_max_pixels_are_those_of_the_full_resolution(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1600 * 1200 - 1)
    with pytest.raises(UnreadableImage, match="1600 x 1200 pixels, more than max_pixels=1919999"):
        decode_for_resize(data, INPUT, name="x")


def test_prediction(trained: Path, data: bytes, tmp_path: Path) -> None:
    classifier = load(trained)
    assert isinstance(classifier, Classifier)
    (tmp_path / "x.jpg").write_bytes(data)
    with Image.open(tmp_path / "x.jpg") as image:
        by_path, by_image = classifier([tmp_path / "x.jpg", image], batch_size=1)
        image.load()
        (by_pixels,) = classifier([image])
    assert by_path.top == by_image.top
    assert by_path.score == pytest.approx(by_pixels.score, abs=0.02)
    prepared = classifier._prepare(0, tmp_path / "x.jpg")
    assert not isinstance(prepared, tuple)
    assert prepared.size == (1200, 1600)


def test_detection_keeps_the_size_of_the_file(data: bytes) -> None:
    target = {
        "boxes": np.array([[400, 300, 1200, 900]], dtype=np.float32),
        "labels": np.array([1]),
        "crowd": np.array([False]),
        "ids": np.array([5]),
        "masks": None,
        "size": (1200, 1600),
    }
    detect, given = DetectConfig(short_side=300, long_side=400), Input(**UNIT)
    transform = DetectionTransform(given, detect, None)
    image = large(data, given)
    assert image_size(image) == (1600, 1200)
    sample, full = (transform(i, target, "x") for i in (image, decode(data, 3, name="x")))
    assert sample["original"] == full["original"] == (1200, 1600)
    assert levels(sample["image"], full["image"]) < 0.6
    assert list(image._decoded) == [2]
