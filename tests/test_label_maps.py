"""Segmentation datasets in folders: layouts, label maps, binary masks, class names, and errors that name the files."""

import io
import json
import logging
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dense_sets import write_image, write_labels
from smt_vision.data.decode import UnreadableImage
from smt_vision.data.label_maps import decode_labels, decode_mask
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.data.dataset import SegmentationDataset
from smt_vision.tasks.segmentation.data.sources import find_splits, open_segmentation

BINARY = SegmentConfig(kind="binary")
ADE20K = SegmentConfig(zero_is_ignored=True)
LABELS = np.array([[0, 1, 2, 255], [2, 1, 0, 0]])


def write_dataset(
    root: Path,
    images: str = "images/train",
    labels: str = "labels/train",
    content: npt.ArrayLike = LABELS,
    classes: object = ("sky", "road", "car"),
    count: int = 2,
    palette: bool = False,
) -> Path:
    height, width = np.asarray(content).shape
    for i in range(count):
        write_image(root / images / f"{i}.jpg", width, height, seed=i)
        write_labels(root / labels / f"{i}.png", content, palette=palette)
    if classes is not None:
        (root / "classes.json").write_text(json.dumps(classes))
    return root


def open_train(root: Path, config: SegmentConfig | None = None) -> SegmentationDataset:
    return open_segmentation(str(root), "train", config or SegmentConfig())


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/train", "labels/train"),
        ("images/training", "annotations/training"),
        ("image/train", "masks/train"),
        ("train/images", "train/masks"),
        ("TrainDataset/Imgs", "TrainDataset/GT"),
        ("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"),
        ("images/train/city/one", "labels/train/city/one"),
    ],
)
def test_layouts(tmp_path: Path, images: str, labels: str) -> None:
    found = open_train(write_dataset(tmp_path, images, labels))
    assert len(found) == 2
    raw, target, name = found.read(1)
    assert raw == tmp_path / images / "1.jpg"
    assert name == str(raw)
    assert np.array_equal(target, LABELS)
    assert target.dtype == np.uint8
    with pytest.raises(ValueError, match=r"for val.*images/train/NAME"):
        open_segmentation(str(tmp_path), "val", SegmentConfig())


def test_validation_split_is_preferred_to_test_split(tmp_path: Path) -> None:
    write_dataset(tmp_path, "images/test", "labels/test")
    assert open_segmentation(str(tmp_path), "val", SegmentConfig()).read(0)[0] == tmp_path / "images" / "test" / "0.jpg"
    write_dataset(tmp_path, "images/validation", "labels/validation")
    assert open_segmentation(str(tmp_path), "val", SegmentConfig()).read(0)[0] == tmp_path / "images/validation/0.jpg"


@pytest.mark.parametrize(
    ("of_images", "of_labels", "used"),
    [
        (("val", "test"), ("test",), "test"),
        (("test",), ("val", "test"), "test"),
        (("val", "test"), ("val", "test"), "val"),
    ],
)
def test_images_and_label_maps_are_of_the_same_split(
    tmp_path: Path, of_images: Sequence[str], of_labels: Sequence[str], used: str
) -> None:
    for name in of_images:
        write_image(tmp_path / "images" / name / "0.jpg", 4, 2)
    for name in of_labels:
        write_labels(tmp_path / "labels" / name / "0.png", LABELS)
    (tmp_path / "classes.json").write_text('["sky", "road", "car"]')
    found = open_segmentation(str(tmp_path), "val", SegmentConfig())
    assert (found.images, found.labels) == (tmp_path / "images" / used, tmp_path / "labels" / used)


def test_a_validation_split_has_no_label_maps_of_a_test_split(tmp_path: Path) -> None:
    write_dataset(tmp_path, "images/val", "labels/test")
    with pytest.raises(ValueError, match=r"images/ has val, labels/ has test; these are different splits"):
        open_segmentation(str(tmp_path), "val", SegmentConfig())


def test_the_last_label_is_that_of_ignored_pixels(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(255)]
    write_dataset(tmp_path, classes=names)
    with pytest.raises(ValueError, match=r"255 classes with zero_is_ignored.*expected at most 254"):
        open_train(tmp_path, ADE20K)
    (tmp_path / "classes.json").write_text(json.dumps(names[:254]))
    assert len(open_train(tmp_path, ADE20K).classes) == 254


def test_unicode_normalization_of_file_names_does_not_matter(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    write_image(tmp_path / f"Imgs/{composed}.jpg", 4, 2)
    write_labels(tmp_path / f"GT/{decomposed}.png", [[0, 255, 0, 255], [0, 255, 0, 255]])
    dataset = open_segmentation(str(tmp_path), "val", SegmentConfig(kind="binary"))
    assert [dataset.id(i) for i in range(len(dataset))] == [f"{composed}.jpg"]
    assert dataset.read(0)[1].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]


@pytest.mark.parametrize("suffix", [".jpg", ".JPE", ".jfif"])
def test_label_maps_in_jpeg_are_told_whatever_their_suffix(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(tmp_path / "images/0.jpg", 4, 2)
    (tmp_path / "labels").mkdir()
    Image.new("L", (4, 2)).save(tmp_path / f"labels/0{suffix}", "JPEG")
    (tmp_path / "classes.json").write_text('["a", "b"]')
    open_segmentation(str(tmp_path), "val", SegmentConfig())
    assert "1 of 1 checked label maps are in a format of lossy" in caplog.text


def test_palette_indices_are_the_labels(tmp_path: Path) -> None:
    assert np.array_equal(open_train(write_dataset(tmp_path, palette=True)).read(0)[1], LABELS)


def test_zero_is_ignored_in_ade20k(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, labels="annotations/train", content=[[0, 1, 3, 255], [2, 1, 0, 3]], classes=None)
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t8\twall\n2\t0.1\t9\t8\tbuilding, edifice\n3\t0.1\t9\t8\tsky \n"
    (root / "objectInfo150.txt").write_text(table)
    found = open_train(root, ADE20K)
    assert found.classes == ("wall", "building", "sky")
    assert found.read(0)[1].tolist() == [[255, 0, 2, 255], [1, 0, 255, 2]]
    with pytest.raises(ValueError, match=r"labels 3\b.*0 to 2.*255.*zero_is_ignored"):
        open_train(root)


def test_ignore_index_of_classes_json(tmp_path: Path) -> None:
    classes = {"classes": ["a", "b"], "ignore_index": 9}
    found = open_train(write_dataset(tmp_path, content=[[0, 1, 9]], classes=classes))
    assert found.classes == ("a", "b")
    assert found.read(0)[1].tolist() == [[0, 1, 255]]


def png(bits: int, color_type: int, row: bytes, width: int, palette: bytes = b"") -> bytes:
    """A PNG file with one row; color type 0 is grayscale, 2 RGB, 3 palette."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0))
    colors = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + header + colors + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def save(image: Image.Image, ending: str, **options: object) -> Callable[[Path], Path]:
    """Saves an image as ``x.ENDING`` in a folder."""

    def write(folder: Path) -> Path:
        image.save(folder / f"x.{ending}", **options)
        return folder / f"x.{ending}"

    return write


def content(data: bytes, ending: str) -> Callable[[Path], Path]:
    """Writes a file ``x.ENDING`` with this content into a folder."""

    def write(folder: Path) -> Path:
        (folder / f"x.{ending}").write_bytes(data)
        return folder / f"x.{ending}"

    return write


def bmp(row: list[int]) -> bytes:
    """A BMP file of 8 bits per pixel with one row of 8 pixels, and a palette of black and white."""
    pixels = bytes(row)
    colors = bytes([0, 0, 0, 0, 255, 255, 255, 0])
    info = struct.pack("<IiiHHIIiiII", 40, len(row), 1, 1, 8, 0, len(pixels), 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + info + colors + pixels


def jpeg2000(row: list[int], bits: int) -> bytes:
    """A JPEG 2000 file with one row of fewer bits than Pillow can write: those bits are changed in its header.

    JPEG 2000 codes the difference to half of the range.
    """
    stored = 8 if bits <= 8 else 16
    out = io.BytesIO()
    array(np.add(row, 2 ** (stored - 1) - 2 ** (bits - 1)), f"uint{stored}").save(out, "JPEG2000", num_resolutions=1)
    data = bytearray(out.getvalue())
    data[data.index(b"ihdr") + 14] = data[data.index(b"\xff\x4f\xff\x51") + 42] = bits - 1
    return bytes(data)


def array(values: npt.ArrayLike, dtype: str) -> Image.Image:
    return Image.fromarray(np.asarray([values], dtype=dtype))


def palette(values: npt.ArrayLike, colors: list[tuple[int, int, int]]) -> Image.Image:
    image = array(values, "uint8")
    image.putpalette([level for color in colors for level in color])
    return image


def merged(mode: str, *bands: npt.ArrayLike) -> Image.Image:
    return Image.merge(mode, [array(band, "uint8") for band in bands])


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
OPAQUE = [255, 255, 255]
LABEL_FILES = {
    "1 PNG": (save(array([0, 1, 0], "bool"), "png"), [0, 1, 0]),
    "1 BMP": (save(array([0, 1, 0], "bool"), "bmp"), [0, 1, 0]),
    "1 TIFF, CCITT": (save(array([0, 1, 0], "bool"), "tif", compression="group4"), [0, 1, 0]),
    "1 PBM": (save(array([0, 1, 0], "bool"), "pbm"), [0, 1, 0]),
    "2-bit gray": (content(png(2, 0, bytes([0b00_01_10_11]), 4), "png"), [0, 1, 2, 3]),
    "4-bit gray": (content(png(4, 0, bytes([0x01, 0x2F]), 4), "png"), [0, 1, 2, 15]),
    "PGM of maximum 15": (content(b"P5 4 1 15\n\0\1\2\x0f", "pgm"), [0, 1, 2, 15]),
    "plain PGM of maximum 100": (content(b"P2 4 1 100\n0 1 2 100\n", "pgm"), [0, 1, 2, 100]),
    "PGM of maximum 1000": (content(b"P5 3 1 1000\n" + struct.pack(">3H", 0, 1, 999), "pgm"), [0, 1, 999]),
    "PGM of maximum 65535": (content(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 1, 999), "pgm"), [0, 1, 999]),
    "1-bit palette": (content(png(1, 3, bytes([0b0100_0000]), 3, bytes([255] * 3 + [0] * 3)), "png"), [0, 1, 0]),
    "2-bit palette": (content(png(2, 3, bytes([0b00_01_10_11]), 4, bytes(12)), "png"), [0, 1, 2, 3]),
    "4-bit palette": (content(png(4, 3, bytes([0x01, 0x2F]), 4, bytes(48)), "png"), [0, 1, 2, 15]),
    "palette": (save(palette([0, 2, 1], VOC), "png"), [0, 2, 1]),
    "palette, transparent": (save(palette([0, 2, 1], VOC), "png", transparency=0), [0, 2, 1]),
    "palette GIF": (save(palette([0, 2, 1], VOC), "gif"), [0, 2, 1]),
    "palette BMP": (save(palette([0, 2, 1], VOC), "bmp"), [0, 2, 1]),
    "palette TIFF": (save(palette([0, 2, 1], VOC), "tif"), [0, 2, 1]),
    "gray GIF": (save(array([0, 2, 1], "uint8"), "gif"), [0, 2, 1]),
    "gray, transparent": (save(array([0, 2, 1], "uint8"), "png", transparency=0), [0, 2, 1]),
    "opaque LA": (save(merged("LA", [0, 2, 1], OPAQUE), "png"), [0, 2, 1]),
    "RGB with equal channels": (save(merged("RGB", *[[0, 2, 1]] * 3), "png"), [0, 2, 1]),
    "RGB with equal channels, WebP": (save(merged("RGB", *[[0, 2, 1]] * 3), "webp", lossless=True), [0, 2, 1]),
    "opaque RGBA with equal channels": (save(merged("RGBA", *[[0, 2, 1]] * 3, OPAQUE), "png"), [0, 2, 1]),
    "4-bit JPEG 2000": (content(jpeg2000([0, 1, 15], 4), "jp2"), [0, 1, 15]),
    "10-bit JPEG 2000": (content(jpeg2000([0, 1, 300], 10), "jp2"), [0, 1, 300]),
    "16-bit JPEG 2000": (content(jpeg2000([0, 1, 300], 16), "jp2"), [0, 1, 300]),
    "opaque PA": (save(palette([0, 2, 1], VOC).convert("PA"), "tif"), [0, 2, 1]),
    "I;16": (save(array([0, 1, 65535], "uint16"), "png"), [0, 1, 65535]),
    "I;16B": (save(Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 1, 300)), "tif"), [0, 1, 300]),
    "I": (save(array([0, -1, 70000], "int32"), "tif"), [0, -1, 70000]),
    "F of integers": (save(array([0, -1, 2], "float32"), "tif"), [0, -1, 2]),
}


@pytest.mark.parametrize("form", LABEL_FILES)
def test_values_of_label_maps_in_every_pixel_format(form: str, tmp_path: Path) -> None:
    write, expected = LABEL_FILES[form]
    found = decode_labels(write(tmp_path), name="x")
    assert found.tolist() == [expected]
    assert np.issubdtype(found.dtype, np.integer)


COLORED = merged("RGB", [0, 1, 2], [0, 1, 2], [0, 1, 3])
REFUSED_LABELS = {
    "RGB": (save(COLORED, "png"), r"mode RGB.*each color"),
    "RGB of 16 bits": (content(png(16, 2, bytes([0, 1] * 3), 1), "png"), r"mode RGB.*not have 8 bits"),
    "RGBA": (save(COLORED.convert("RGBA"), "png"), r"mode RGBA\b"),
    "CMYK": (save(COLORED.convert("CMYK"), "tif"), r"mode CMYK\b"),
    "LAB": (save(Image.new("LAB", (3, 1)), "tif"), r"mode LAB\b"),
    "YCbCr": (save(COLORED.convert("YCbCr"), "tif"), r"mode (YCbCr|RGB)\b"),
    "transparent LA": (save(merged("LA", [0, 2, 1], [255, 0, 255]), "png"), r"mode LA\b.*alpha"),
    "fractions": (save(array([0, 0.5, 1], "float32"), "tif"), r"value 0\.5\b"),
    "not a number": (save(array([0, np.nan, 1], "float32"), "tif"), r"value nan"),
    "infinity": (save(array([0, np.inf, 1], "float32"), "tif"), r"value inf"),
    "transparent RGBA": (save(merged("RGBA", *[[0, 2, 1]] * 3, [255, 0, 255]), "png"), r"mode RGBA\b.*alpha"),
    "white is 0": (save(array([0, 2, 1], "uint8"), "tif", tiffinfo={262: 0}), r"WhiteIsZero"),
    "white is 0, 16 bits": (save(array([0, 2, 1], "uint16"), "tif", tiffinfo={262: 0}), r"WhiteIsZero"),
    "8-bit BMP of black and white": (content(bmp([0, 1] * 4), "bmp"), r"BMP file.*more than 1 bit"),
    "pages": (save(COLORED.convert("L"), "tif", save_all=True, append_images=[COLORED.convert("L")]), r"\b2 pages"),
    "frames": (save(palette([0, 1], VOC), "gif", save_all=True, append_images=[palette([1, 0], VOC)]), r"\b2 .*frames"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED_LABELS)
def test_label_maps_without_one_integer_per_pixel_are_refused(form: str, tmp_path: Path) -> None:
    write, match = REFUSED_LABELS[form]
    with pytest.raises(UnreadableImage, match=rf"^x\.png: .*{match}"):
        decode_labels(write(tmp_path), name="x.png")


def test_reduced_copies_in_a_tiff_are_not_further_pages(tmp_path: Path) -> None:
    """As in Cloud-Optimized GeoTIFF, whose overviews are pages."""
    overview = array([1], "uint8")
    overview.encoderinfo = {"tiffinfo": {254: 1}}
    labels = array([0, 1, 2, 3], "uint8")
    labels.save(tmp_path / "x.tif", save_all=True, append_images=[overview])
    with Image.open(tmp_path / "x.tif") as image:
        assert image.n_frames == 2
        image.seek(1)
        assert image.tag_v2[254] == 1
    assert decode_labels(tmp_path / "x.tif", name="x").tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("values", [[0, 1, 200], [0, 1, 65535]])
def test_exif_orientation_of_label_maps_and_masks(kind: str, values: list[int], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    stored = array(values, "uint8" if max(values) < 256 else "uint16")
    stored.save(tmp_path / f"x.{kind}", exif=exif)
    assert decode_labels(tmp_path / f"x.{kind}", name="x").tolist() == [[value] for value in values]
    assert decode_mask(tmp_path / f"x.{kind}", name="x").shape == (3, 1)


WHITE_ON_BLACK = [0, 255, 128]
MASK_FILES = {
    "1": (save(array([0, 1, 0], "bool"), "png"), [0, 1, 0]),
    "1 BMP": (save(array([0, 1, 0], "bool"), "bmp"), [0, 1, 0]),
    "0 and 255": (save(array([0, 255, 0], "uint8"), "png"), [0, 1, 0]),
    "0 and 1": (save(array([0, 1, 0], "uint8"), "png"), [0, 1, 0]),
    "black": (save(array([0, 0, 0], "uint8"), "png"), [0, 0, 0]),
    "soft": (save(array([0, 127, 128, 129, 255], "uint8"), "png"), [0, 0, 0, 1, 1]),
    "4-bit, 0 and 15": (content(png(4, 0, bytes([0x0F, 0x00]), 3), "png"), [0, 1, 0]),
    "4-bit, 0 and 1": (content(png(4, 0, bytes([0x01, 0x00]), 3), "png"), [0, 1, 0]),
    "2-bit, 0 and 1": (content(png(2, 0, bytes([0b00_01_00_00]), 3), "png"), [0, 1, 0]),
    "PGM of maximum 1": (content(b"P5 3 1 1\n\0\1\0", "pgm"), [0, 1, 0]),
    "PGM of maximum 4095": (content(b"P5 3 1 4095\n" + struct.pack(">3H", 0, 4095, 1000), "pgm"), [0, 1, 0]),
    "LA": (save(merged("LA", WHITE_ON_BLACK, OPAQUE), "png"), [0, 1, 0]),
    "LA with an invisible alpha": (save(merged("LA", WHITE_ON_BLACK, [0, 0, 0]), "png"), [0, 1, 0]),
    "RGB": (save(merged("RGB", *[WHITE_ON_BLACK] * 3), "png"), [0, 1, 0]),
    "RGB of 0 and 1": (save(merged("RGB", *[[0, 1, 0]] * 3), "png"), [0, 1, 0]),
    "RGB with a yellow object": (save(merged("RGB", [0, 255], [0, 255], [0, 0]), "png"), [0, 1]),
    "RGBA": (save(merged("RGBA", *[WHITE_ON_BLACK] * 3, OPAQUE), "png"), [0, 1, 0]),
    "RGBA, object cut out": (save(merged("RGBA", *[[0, 255, 0]] * 3, [0, 255, 0]), "png"), [0, 1, 0]),
    "CMYK": (save(merged("RGB", *[WHITE_ON_BLACK] * 3).convert("CMYK"), "tif"), [0, 1, 0]),
    "LAB": (save(merged("LAB", [0, 255, 100], [128] * 3, [128] * 3), "tif"), [0, 1, 0]),
    "YCbCr JPEG": (save(merged("RGB", *[np.repeat([0, 255], 16)] * 3), "jpg"), [0] * 16 + [1] * 16),
    "palette of grays": (save(palette([1, 0, 2], [(255,) * 3, (0,) * 3, (40,) * 3]), "png"), [0, 1, 0]),
    "palette, white first": (save(palette([1, 0], [(255,) * 3, (0,) * 3]), "png"), [0, 1]),
    "palette, VOC colors": (save(palette([0, 1, 0], VOC), "png"), [0, 1, 0]),
    "palette, all black": (save(palette([0, 1, 0], [(0, 0, 0)] * 2), "png"), [0, 1, 0]),
    "palette GIF": (save(palette([0, 1, 0], VOC), "gif"), [0, 1, 0]),
    "palette with alpha values": (
        save(palette([0, 1, 2], [(0, 0, 0), (255, 255, 255), (9, 9, 9)]), "png", transparency=bytes([0, 255, 99])),
        [0, 1, 0],
    ),
    "palette, object of low opacity": (
        save(palette([0, 1, 0], VOC), "png", transparency=bytes([0, 90])),
        [0, 1, 0],
    ),
    "transparent white": (save(array([0, 255, 0], "uint8"), "png", transparency=255), [0, 1, 0]),
    "1-bit JPEG 2000": (content(jpeg2000([0, 1, 0], 1), "jp2"), [0, 1, 0]),
    "white is 0, 8 bits": (save(array([0, 255, 0], "uint8"), "tif", tiffinfo={262: 0}), [0, 1, 0]),
    "RGB of 16 bits, 0 and 65535": (content(png(16, 2, bytes([0] * 6 + [255] * 6), 2), "png"), [0, 1]),
    "0 and 255, and a few 1": (save(array([0, 1] + [255] * 10, "uint8"), "png"), [0, 0] + [1] * 10),
    "PA": (save(array([0, 255, 0], "uint8").convert("P").convert("PA"), "tif"), [0, 1, 0]),
    "16 bits, 0 and 65535": (save(array([0, 65535, 20000], "uint16"), "png"), [0, 1, 0]),
    "16 bits, 0 and 255": (save(array([0, 255, 0], "uint16"), "png"), [0, 1, 0]),
    "16 bits, 0 and 1": (save(array([0, 1, 0], "uint16"), "png"), [0, 1, 0]),
    "I, 0 and 255": (save(array([0, 255, 0], "int32"), "tif"), [0, 1, 0]),
    "F, 0 to 1": (save(array([0, 1, 0.4], "float32"), "tif"), [0, 1, 0]),
    "F, 0 to 255": (save(array([0, 255, 99.5], "float32"), "tif"), [0, 1, 0]),
}


@pytest.mark.parametrize("form", MASK_FILES)
def test_objects_of_masks_in_every_pixel_format(form: str, tmp_path: Path) -> None:
    write, expected = MASK_FILES[form]
    assert (decode_mask(write(tmp_path), name="x") > 128).astype(int).tolist() == [expected]


REFUSED_MASKS = {
    "RGB with a red object": (save(merged("RGB", [0, 255], [0, 0], [0, 0]), "png"), r"mode RGB.*\(255, 0, 0\).*76\b"),
    "palette of several objects": (save(palette([0, 1, 2], VOC), "png"), r"mode P .*\(128, 0, 0\)"),
    "white with an object in alpha": (save(merged("LA", [255, 255], [0, 255]), "png"), r"transparency"),
    "black with an object in alpha": (save(merged("RGBA", *[[0, 0]] * 3, [0, 255]), "png"), r"transparency"),
    "palette of white with an object in alpha": (
        save(palette([0, 1], [(255, 255, 255)] * 2), "png", transparency=bytes([0, 255])),
        r"transparency",
    ),
    "0, 1 and 255": (save(array([0, 1, 255], "uint8"), "png"), r"1 and 255\b.*segment\.kind classes"),
    "RGB of 16 bits, 0 and 255": (content(png(16, 2, bytes([0] * 6 + [0, 255] * 3), 2), "png"), r"16 bits per channel"),
    "white is 0, 16 bits": (save(array([0, 65535], "uint16"), "tif", tiffinfo={262: 0}), r"WhiteIsZero"),
    "12 bits": (save(array([0, 4095], "uint16"), "png"), r"0 to 4095\b.*65535"),
    "negative": (save(array([0, -1], "int32"), "tif"), r"-1 to 0\b"),
    "beyond 16 bits": (save(array([0, 70000], "int32"), "tif"), r"0 to 70000\b"),
    "not a number": (save(array([0, np.nan], "float32"), "tif"), r"nan"),
    "pages": (save(COLORED.convert("L"), "tif", save_all=True, append_images=[COLORED.convert("L")]), r"\b2 pages"),
}


@pytest.mark.parametrize("form", REFUSED_MASKS)
def test_masks_of_unclear_meaning_are_refused(form: str, tmp_path: Path) -> None:
    write, match = REFUSED_MASKS[form]
    with pytest.raises(UnreadableImage, match=rf"^x\.png: .*{match}"):
        decode_mask(write(tmp_path), name="x.png")


@pytest.mark.parametrize(("stored", "expected"), [
    ([[0, 127, 128, 129, 255]], [[0, 0, 0, 1, 1]]),  # above 128, as in the published metrics
    ([[0, 1, 1, 0]], [[0, 1, 1, 0]]),
    ([[0, 0]], [[0, 0]]),
])  # fmt: skip
def test_binary_masks(tmp_path: Path, stored: list[list[int]], expected: list[list[int]]) -> None:
    found = open_train(write_dataset(tmp_path, "train/Imgs", "train/GT", content=stored, classes=None), BINARY)
    assert found.classes == ("object",)
    assert found.read(0)[1].tolist() == expected
    assert "2 images" in found.describe()
    assert "binary" in found.describe()


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, content=[[0, 1, 3, 7]])
    with pytest.raises(ValueError, match=r"2 of 2\b.*0\.png: labels 3, 7\b.*0 to 2.*1\.png: labels 3, 7\b"):
        open_train(root)
    root = write_dataset(tmp_path / "few", count=200)
    write_labels(root / "labels/train/150.png", np.full((2, 4), 200))  # not in the sample that is checked on opening
    found = open_train(root)
    bad = [found.id(i) for i in range(200)].index("150.jpg")
    with pytest.raises(UnreadableImage, match=r"150\.png: labels 200\b.*0 to 2.*255"):
        found.read(bad)
    found.check(count=3)
    with pytest.raises(ValueError, match=r"1 of 200\b.*150\.png"):
        found.check(count=200)


def test_label_map_of_another_size_is_named(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    write_image(root / "images/train/1.jpg", 5, 2)
    with pytest.raises(ValueError, match=r"1 of 2\b.*1\.jpg: 5 x 2\b.*4 x 2\b"):
        open_train(root)


def test_unreadable_label_map_is_an_error_and_unreadable_image_is_not(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    (root / "images/train/1.jpg").write_bytes(b"rubbish")
    assert len(open_train(root)) == 2
    (root / "labels/train/0.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"1 of 2\b.*0\.png"):
        open_train(root)


def test_unpaired_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_dataset(tmp_path)
    write_labels(root / "labels/train/spare.png", LABELS)
    (root / "labels/train/._0.png").write_bytes(b"metadata of a file manager")
    assert len(open_train(root)) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search(rf"\b1 .*{root / 'labels/train'}.*: spare\.png\b", warning)  # hidden files do not count
    for i in range(7):
        write_image(root / f"images/train/new{i}.jpg", 4, 2)
    with pytest.raises(ValueError, match=r"\b7 .*: new0\.jpg, .*new4\.jpg \.\.\."):
        open_train(root)
    write_image(root / "labels/train/0.jpg", 4, 2)
    with pytest.raises(ValueError, match=r"labels/train/0\.png"):
        open_train(root)


def test_files_of_tools_are_passed_over_and_unknown_files_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path)
    write_image(root / "images/train/2.WEBP", 4, 2)
    write_labels(root / "labels/train/2.PNG", LABELS)
    for name in ("Thumbs.db", "._0.jpg", "@eaDir/0.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/._0.jpg"):
        (root / "images/train" / name).parent.mkdir(exist_ok=True)
        (root / "images/train" / name).write_bytes(b"x")
    (root / "__MACOSX" / "images").mkdir(parents=True)
    (root / ".images").mkdir()
    assert [open_train(root).id(i) for i in range(3)] == ["0.jpg", "1.jpg", "2.WEBP"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    for name in ("images/train/a.heic", "labels/train/0.json", "labels/train/1.json", "labels/train/list"):
        (root / name).write_bytes(b"x")
    assert len(open_train(root)) == 3
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2
    assert any(
        message.startswith(f"{root / 'images/train'}: ignored 1 files") and "1 .heic" in message for message in told
    )
    assert any(
        message.startswith(f"{root / 'labels/train'}: ignored 3 files") and "2 .json, 1 with" in message
        for message in told
    )


def test_unknown_image_files_only_are_named(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, count=0)
    for name in ("images/train/1.heic", "labels/train/1.heic"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no images \(1 \.heic\)"):
        open_train(root)


def test_images_with_two_suffixes_are_named(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    write_image(root / "images/train/0.png", 4, 2)
    with pytest.raises(ValueError, match=r"two suffixes: .*images/train/0\.png"):
        open_train(root)


def test_folders_of_one_meaning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_dataset(tmp_path / "a", "images/val", "labels/val")
    for folder in ("depth-images", "images/valid", "images/test"):
        (root / folder).mkdir()
    assert open_segmentation(str(root), "val", SegmentConfig()).images == root / "images/val"
    assert f"{root / 'images'}: uses val, ignores valid, test" in caplog.text
    root = write_dataset(tmp_path / "b", "DUTS-Image/train", "DUTS-Mask/train")
    (root / "Edge-Mask").mkdir()
    (root / "gt").mkdir()
    with pytest.raises(ValueError, match=r"several folders for mask: DUTS-Mask, Edge-Mask"):
        open_train(root)


def test_color_label_map_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    write_image(root / "labels/train/0.png", 4, 2)
    with pytest.raises(ValueError, match=r"0\.png: .*\bRGB\b"):
        open_train(root)


def test_too_large_and_missing_label_maps(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "wide.png")
    with pytest.raises(UnreadableImage, match=r"wide: 2 x 2.*max_pixels=3"):
        decode_labels(tmp_path / "wide.png", name="wide", max_pixels=3)
    with pytest.raises(UnreadableImage, match="missing: "):
        decode_labels(tmp_path / "missing.png", name="missing")


def test_two_class_maps_of_0_and_255_are_refused(tmp_path: Path) -> None:
    """Masks of 0 and 255 opened as label maps: every object pixel would be ignored."""
    root = write_dataset(tmp_path, content=[[0, 255, 0, 255]], classes=["background", "object"])
    with pytest.raises(
        ValueError, match=r"the 2 label maps are 0 and 255\b.*object.*--segment\.kind binary.*ignore_index"
    ):
        open_train(root)
    assert open_train(root, BINARY).read(0)[1].tolist() == [[0, 1, 0, 1]]
    (root / "classes.json").write_text('{"classes": ["background", "object"], "ignore_index": 255}')
    assert open_train(root).read(0)[1].tolist() == [[0, 255, 0, 255]]
    write_labels(root / "labels/train/1.png", [[0, 255, 1, 1]])
    (root / "classes.json").write_text('["background", "object"]')
    assert open_train(root).read(1)[1].tolist() == [[0, 255, 1, 1]]


def test_label_maps_that_are_entirely_ignored_are_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, content=[[255, 255]])
    with pytest.raises(ValueError, match=r"every pixel of the 2 label maps is ignored.*0 to 2"):
        open_train(root)
    with pytest.raises(ValueError, match=r"every pixel of the 2 label maps is ignored.*1 to 3"):
        open_train(write_dataset(tmp_path / "ade", content=[[255, 0]]), ADE20K)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


def test_classes_that_occur_in_no_label_map_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_dataset(tmp_path, content=[[0, 2, 255]], classes=["sky", "road", "car", "bike"])
    open_train(root)
    (warning,) = warnings_of(caplog)
    assert re.search(r"images/train/: 2 of 4 classes occur in none of the 2 label maps: road, bike;", warning)
    open_train(write_dataset(tmp_path / "many", content=[[0, 1]], count=70))
    (warning,) = warnings_of(caplog)
    assert "1 of 3 classes occur in none of the 64 label maps checked of 70: car;" in warning


def test_masks_without_objects_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_dataset(tmp_path, "train/Imgs", "train/GT", content=[[0, 100]], classes=None)
    with pytest.raises(ValueError, match=r"2 of 2 masks .*none above 128.*0\.png \(at most 100\).*1 or 255"):
        open_train(root, BINARY)
    write_labels(root / "train/GT/1.png", [[0, 255]])
    assert open_train(root, BINARY).read(0)[1].tolist() == [[0, 0]]
    (warning,) = warnings_of(caplog)
    assert re.search(r"1 of 2 masks .*0\.png \(at most 100\); .*without an object", warning)
    open_train(write_dataset(tmp_path / "black", "train/Imgs", "train/GT", content=[[0, 0]], classes=None), BINARY)
    (warning,) = warnings_of(caplog)
    assert "no object in the 2 masks" in warning


def test_lossy_label_maps_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_dataset(tmp_path, content=np.zeros((16, 16)), count=1)
    (root / "labels/train/0.png").unlink()
    Image.new("L", (16, 16), 1).save(root / "labels/train/0.jpg")
    open_train(root)
    assert any(
        "1 of 1 checked label maps are in a format of lossy" in warning and "0.jpg" in warning
        for warning in warnings_of(caplog)
    )


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("Imgs", "GT"),
        ("Image", "Mask"),
        ("image", "gt"),
        ("DUTS-TE-Image", "DUTS-TE-Mask"),
        ("images", "ground_truth_mask"),
        ("Image", "GT_Object"),
        ("imgs/pascal", "masks/pascal"),
        ("im", "gt"),  # DIS5K
        ("RGB", "GT"),  # NLPR, beside depth
    ],
)
def test_test_sets_without_splits_are_opened_whole(tmp_path: Path, images: str, labels: str) -> None:
    root = write_dataset(tmp_path / "CAMO", images, labels, content=[[0, 255]], classes=None)
    write_labels(root / "GT_Instance" / "0.png", [[0, 0]])
    found = open_segmentation(str(root), "val", BINARY)
    assert len(found) == 2
    assert found.read(1)[0] == root / images / "1.jpg"
    assert found.read(1)[1].tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"for train\b"):
        open_train(root, BINARY)
    parts = [open_segmentation(str(root), split, BINARY, 0.5) for split in ("train", "val")]
    assert sorted(Path(part.id(0)).name for part in parts) == ["0.jpg", "1.jpg"]


def test_splits_of_images_with_one_folder_of_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in CAMO: Images/Train, Images/Test and GT."""
    root = write_dataset(tmp_path, "Images/Train", "GT", content=[[0, 255]], classes=None)
    write_image(root / "Images/Test/2.jpg", 2, 1)
    write_labels(root / "GT/2.png", [[255, 0]])
    assert [open_train(root, BINARY).id(i) for i in range(2)] == ["0.jpg", "1.jpg"]
    found = open_segmentation(str(root), "val", BINARY)
    assert len(found) == 1
    assert found.read(0)[0] == root / "Images/Test/2.jpg"
    assert found.read(0)[1].tolist() == [[1, 0]]
    assert not warnings_of(caplog)
    write_labels(root / "GT/3.png", [[255, 0]])
    open_train(root, BINARY)
    assert any(re.search(r"\b1 .*without an image: 3\.png", warning) for warning in warnings_of(caplog))
    write_image(root / "Images/Test/1.jpg", 2, 1)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"same label map in .*GT: 1\.jpg and .*1\.jpg"):
            open_segmentation(str(root), split, BINARY)


@pytest.mark.parametrize("folder", ["Test", "TestDataset", "DUTS-TE"])
def test_test_set_in_a_folder_of_its_split(tmp_path: Path, folder: str) -> None:
    root = write_dataset(tmp_path, f"{folder}/Imgs", f"{folder}/GT", content=[[0, 255]], classes=None)
    for path in (root, root / folder):
        assert open_segmentation(str(path), "val", BINARY).read(0)[0] == root / folder / "Imgs/0.jpg"


def test_several_test_sets_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("CAMO", "NC4K"):
        write_dataset(tmp_path / "TestDataset" / name, "Imgs", "GT", content=[[0, 255]], classes=None)
    for root in (tmp_path, tmp_path / "TestDataset"):
        with pytest.raises(ValueError, match=r"for val; .*TestDataset/CAMO, .*TestDataset/NC4K: set --data"):
            open_segmentation(str(root), "val", BINARY)


def test_part_of_the_training_images_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in the usual download of camouflaged objects, whose test folder has several sets."""
    root = write_dataset(tmp_path, "TrainDataset/Imgs", "TrainDataset/GT", [[0, 255]], classes=None, count=20)
    for name in ("CAMO", "NC4K"):
        write_dataset(root / "TestDataset" / name, "Imgs", "GT", content=[[0, 255]], classes=None)

    def ids(path: Path, split: Literal["train", "val"], seed: int = 0) -> set[str]:
        images = open_segmentation(str(path), split, BINARY, 0.1, seed)
        assert images.images == root / "TrainDataset/Imgs"
        return {images.id(i) for i in range(len(images))}

    train, val = (ids(root, split) for split in ("train", "val"))
    assert (len(train), len(val), len(train | val)) == (18, 2, 20)
    assert val == ids(root / "TrainDataset", "val") != ids(root, "val", seed=1)
    assert len(open_segmentation(str(root), "train", BINARY, 0.0)) == 20  # of a cross-validation
    assert not warnings_of(caplog)


def test_incomplete_validation_folder_is_an_error(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    write_image(root / "images/val/9.jpg", 4, 2)
    with pytest.raises(ValueError, match=r"for val\b"):
        open_segmentation(str(root), "val", SegmentConfig(), 0.1)


@pytest.mark.parametrize(("name", "told"), [("test", True), ("val", False)])
def test_selection_on_a_test_split_is_told(
    name: str, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(write_dataset(tmp_path), f"images/{name}", f"labels/{name}")
    for fraction in (None, 1.0):  # evaluation
        open_segmentation(str(root), "val", SegmentConfig(), fraction)
    assert "best weights" not in caplog.text
    for split in ("train", "val"):
        open_segmentation(str(root), split, SegmentConfig(), 0.1)
    assert caplog.text.count("best weights are selected on it") == told


def test_folder_with_one_split_is_not_used_for_the_other(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, "images/train", "labels/train")
    write_image(root / "images" / "stray.jpg", 4, 2)
    write_labels(root / "labels" / "stray.png", LABELS)
    with pytest.raises(ValueError, match=r"for val\b"):
        open_segmentation(str(root), "val", SegmentConfig())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"ignore_index": "255"}, r"'ignore_index': \"255\"; expected .*integer"),
        ({"ignore_index": None}, r"'ignore_index': null; expected .*integer"),
        ({"ignore_index": True}, r"'ignore_index': true; expected .*integer"),
        ({"ignore_index": 255.0}, r"'ignore_index': 255\.0; expected .*integer"),
        ({"ignore_index": [255]}, r"'ignore_index': \[255\]; expected .*integer"),
        ({"ignore_label": 0}, r"'ignore_label': 0; expected 'ignore_index'"),
        ({"classes": {"0": "a", "1": "b"}}, r"expected a list of names"),
        ({"classes": ["a", 1]}, r"expected a list of names"),
        ({"classes": ["a", None]}, r"expected a list of names"),
        ({"classes": ["a", " "]}, r"one is empty"),
        ({"classes": ["a", "b", "a "]}, r"repeated: a\b"),
        ({"0": "a", "1": "b"}, r"expected a list of names"),
    ],
)
def test_invalid_fields_of_classes_json_are_refused(fields: dict[str, object], match: str, tmp_path: Path) -> None:
    content = fields if "0" in fields else {"classes": ["a", "b"], **fields}
    root = write_dataset(tmp_path, content=[[0, 1]], classes=content)
    with pytest.raises(ValueError, match=rf"classes\.json: .*{match}"):
        open_train(root)


@pytest.mark.parametrize(("ignore", "dtype"), [(-1, "int32"), (65535, "uint16"), (0, "uint8"), (-100, "float32")])
def test_ignored_labels_of_any_integer(ignore: int, dtype: str, tmp_path: Path) -> None:
    classes = {"classes": ["a", "b", "c"], "ignore_index": ignore, "source": "a survey"}
    root = write_dataset(tmp_path, content=[[0, 0, 0, 0]], classes=classes, count=1)
    file = root / "labels/train/0.png"
    for label, expected in ((ignore, [[1, 2, 255, 1]]), (255, None)):
        # Pillow recognizes TIFF, which holds all these types, by its content.
        Image.fromarray(np.array([[1, 2, label, 1]], dtype=dtype)).save(file, "TIFF")
        if expected:
            assert open_train(root).read(0)[1].tolist() == expected
    with pytest.raises(ValueError, match=rf"labels 255, expected 0 to 2 .*or {ignore} for ignored.*ignore_index"):
        open_train(root)


def test_invalid_class_names_are_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, classes=None)
    with pytest.raises(ValueError, match=r"classes\.json"):
        open_train(root)
    file = root / "classes.json"
    for text, match in (
        ("[", r"classes\.json: .*JSON"),
        ("{}", r"classes\.json: .*'classes'"),
        ("[1, 2]", r"classes\.json: .*'classes'"),
        ('["a"]', r"\b1 .*\b1 .*2 to 255"),
        ('["a", "b", "a"]', r"\b3 .*\b2 .*2 to 255"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=match):
            open_train(root)
    with pytest.raises(ValueError, match=r"'/nowhere'.*images/train/NAME\.jpg.*labels/train"):
        open_train(Path("/nowhere"))
    (root / "images/val").mkdir()
    (root / "labels/val").mkdir()
    with pytest.raises(ValueError, match=r"images/val: "):
        open_segmentation(str(root), "val", BINARY)


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_voc_s_layout_of_cvat(mode: str, tmp_path: Path) -> None:
    """Colors of labelmap.txt, of color images or palettes; gray values are indices."""
    colors = {"background": (0, 0, 0), "road": (128, 64, 128), "car": (0, 0, 142)}
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    labels = np.random.default_rng(0).integers(0, 3, (4, 12, 16))
    for i, label in enumerate(labels):
        write_image(tmp_path / "JPEGImages" / f"{i}.jpg", 16, 12, seed=i)
        shown = Image.fromarray(np.array(list(colors.values()), dtype=np.uint8)[label])
        stored = {
            "RGB": shown,
            "P": shown.quantize(3, dither=Image.Dither.NONE),
            "L": Image.fromarray(label.astype(np.uint8)),
        }
        stored[mode].save(tmp_path / "SegmentationClass" / f"{i}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.joinpath("train.txt").write_text("1\n3\n0\n")
    lists.joinpath("val.txt").write_text("2\n")
    lines = "".join(f"{name}:{','.join(map(str, color))}::\n" for name, color in colors.items())
    (tmp_path / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{lines}")
    train, val = (open_segmentation(str(tmp_path), split, SegmentConfig()) for split in ("train", "val"))
    assert train.classes == ("background", "road", "car")
    assert [train.id(i) for i in range(len(train))] == ["0.jpg", "1.jpg", "3.jpg"]
    for i, k in enumerate((0, 1, 3)):
        assert np.array_equal(train.read(i)[1], labels[k])
    assert np.array_equal(val.read(0)[1], labels[2])
    assert find_splits(str(tmp_path)) == ["train", "val"]
    with pytest.raises(ValueError, match="no folders of images and label maps for test"):
        open_segmentation(str(tmp_path), "test", SegmentConfig())
    lists.joinpath("val.txt").write_text("2\n7\n")
    with pytest.raises(ValueError, match=r"val\.txt: .*7"):
        open_segmentation(str(tmp_path), "val", SegmentConfig())
    if mode == "RGB":
        (tmp_path / "labelmap.txt").write_text(lines.replace("142", "143"))
        with pytest.raises(ValueError, match=r"other colors than the classes, e\.g\. \(0, 0, 142\)"):
            open_segmentation(str(tmp_path), "train", SegmentConfig())
    (tmp_path / "labelmap.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"labelmap\.txt, line 1: found 'cat'; expected a class, e\.g\. cat:128,0,0::"):
        open_segmentation(str(tmp_path), "train", SegmentConfig())


def test_voc_s_own_classes_and_a_set_without_splits(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    write_image(tmp_path / "JPEGImages" / "a.jpg", 4, 1, seed=0)
    label = Image.fromarray(np.array([[0, 15, 20, 255]], dtype=np.uint8))
    label.putpalette(list(range(256)) * 3)
    label.save(tmp_path / "SegmentationClass" / "a.png")
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").write_text("a\n")
    found = open_segmentation(str(tmp_path), "val", SegmentConfig())
    assert (len(found.classes), found.classes[15]) == (21, "person")
    assert found.read(0)[1].tolist() == [[0, 15, 20, 255]]
    with pytest.raises(ValueError, match="for train"):
        open_segmentation(str(tmp_path), "train", SegmentConfig())


def test_a_test_split_without_label_maps_does_not_matter_in_training(tmp_path: Path) -> None:
    """As of VOC 2012, whose test set is downloaded into the same folder."""
    for i in range(3):
        write_image(tmp_path / f"JPEGImages/{i}.jpg", 4, 2, seed=i)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for i, name in enumerate(("train", "val", "test")):
        (lists / f"{name}.txt").write_text(f"{i}\n")
        if name != "test":
            write_labels(tmp_path / "SegmentationClass" / f"{i}.png", np.full((2, 4), 1))
    for split in ("train", "val"):
        assert len(open_segmentation(str(tmp_path), split, SegmentConfig(), 0.1)) == 1


def test_voc_with_the_annotations_of_sbd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        write_image(tmp_path / f"JPEGImages/{i}.jpg", 4, 2, seed=i)
    for folder, stems, label in (("SegmentationClass", (0, 2), 1), ("SegmentationClassAug", (0, 1), 2)):
        for i in stems:
            write_labels(tmp_path / folder / f"{i}.png", np.full((2, 4), label))
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in (("train", "0"), ("trainaug", "0 1"), ("val", "2")):
        (lists / f"{name}.txt").write_text("\n".join(stems.split()))
    train, val = (open_segmentation(str(tmp_path), split, SegmentConfig()) for split in ("train", "val"))
    assert ([train.id(i) for i in range(len(train))], val.id(0)) == (["0.jpg", "1.jpg"], "2.jpg")
    assert (train.read(0)[1][0, 0], val.read(0)[1][0, 0]) == (2, 1)
    (tmp_path / "SegmentationClassAug").rename(tmp_path / "other")
    caplog.clear()
    assert len(open_train(tmp_path)) == 1
    assert any("trainaug.txt is not used" in message for message in warnings_of(caplog))


def test_cityscapes(tmp_path: Path) -> None:
    for split, city, label in (("train", "aachen", 1), ("val", "lindau", 18)):
        stem = f"{split}/{city}/{city}_000000_000019"
        write_image(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", 4, 2)
        for kind in ("color", "instanceIds", "labelIds", "labelTrainIds"):
            value = label if kind == "labelTrainIds" else 33
            write_labels(tmp_path / "gtFine" / f"{stem}_gtFine_{kind}.png", np.full((2, 4), value))
        found = open_segmentation(str(tmp_path), split, SegmentConfig())  # type: ignore[arg-type]
        assert (len(found), len(found.classes)) == (1, 19)
        assert found.read(0)[1].tolist() == [[label] * 4] * 2
        assert found.id(0) == f"{city}/{city}_000000_000019_leftImg8bit.png"


def test_camvid(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not (shared / "data" / "camvid").is_dir():
        pytest.skip("camvid is not among the reference files")
    found = [open_segmentation(str(shared / "data" / "camvid"), split, SegmentConfig()) for split in ("train", "val")]
    assert [len(images) for images in found] == [367, 101]
    assert found[0].classes[:4] == ("Sky", "Building", "Pole", "Road")
    assert "367 images" in found[0].describe()
    assert "11 classes" in found[0].describe()
    labels = found[0].read(0)[1]
    assert labels.shape == (360, 480)
    assert set(np.unique(labels)) <= {*range(11), 255}
    # the sky is at the top, the road at the bottom
    assert np.bincount(labels[:60].ravel(), minlength=256)[:11].argmax() in (0, 1, 5)
    assert np.bincount(labels[-60:].ravel(), minlength=256)[:11].argmax() == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
