"""Detection and segmentation in images of any number of bands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

import smt_vision
from command import answer, run
from drawn_sets import scenes_recipe, shapes_recipe, write_scenes, write_shapes
from smt_vision.data.bands import read_array
from smt_vision.data.decode import decode_input
from smt_vision.data.region import Region
from smt_vision.engine.loop import train
from smt_vision.recipe import BandsInput
from smt_vision.tasks.detection.config import DetectionAugment, DetectionInput
from smt_vision.tasks.detection.data.dataset import stored_size
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.segmentation.config import SegmentationInput

Capture = pytest.CaptureFixture[str]
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def five_bands(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Red, green and blue as 16 bits, their mean, and noise."""
    pixels = 257 * picture.astype(np.uint16)
    noise = np.random.default_rng(1).integers(0, 65536, picture.shape[:2], dtype=np.uint16)
    return np.dstack([pixels, pixels.mean(axis=2).astype(np.uint16), noise])


def mode_and_pixels(path: Path) -> tuple[str, npt.NDArray[Any]]:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def as_bands(folder: Path, suffix: str) -> None:
    """Replace the pictures of a folder by files of five bands."""
    for path in sorted(folder.rglob("*.png")):
        bands = five_bands(mode_and_pixels(path)[1])
        path.unlink()
        if suffix == ".npy":
            np.save(path.with_suffix(suffix), bands)
        else:
            tifffile.imwrite(path.with_suffix(suffix), bands, photometric="minisblack", planarconfig="contig")


@pytest.mark.parametrize("region", [
    Region(0, 0, 60, 40, 60, 40), Region(10, 5, 50, 35, 40, 30), Region(3, 2, 57, 38, 90, 61, hflip=True),
    Region(0, 0, 60, 40, 21, 14, hflip=True, vflip=True),
])  # fmt: skip
def test_region_of_bands_is_that_of_a_picture(region: Region) -> None:
    picture = region.image(Image.fromarray(PICTURE), "bilinear", exact=False)
    bands = region.image(torch.from_numpy(PICTURE).permute(2, 0, 1) / 255, "bilinear", exact=False)
    assert isinstance(bands, torch.Tensor)
    assert bands.shape == (3, region.height, region.width)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    assert (bands - expected).abs().max() <= 2 / 255


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_sizes_of_files_of_bands(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    as_bands(tmp_path, suffix)
    assert stored_size(tmp_path / f"a{suffix}") == (40, 60)
    (tmp_path / f"b{suffix}").write_bytes((tmp_path / f"a{suffix}").read_bytes()[:20])
    assert stored_size(tmp_path / f"b{suffix}") is None


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_segmentation(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    data = write_scenes(tmp_path / "scenes")
    as_bands(data / "images", suffix)
    recipe = replace(scenes_recipe(data), input=SegmentationInput(channels=5, interpolation="bilinear", workers=0))
    finished = train(recipe, tmp_path / "run", display=False)
    assert finished.metrics["count"] == 4
    for name in ("samples/epoch_001.png", "worst.png"):
        assert (tmp_path / "run" / name).is_file()
    images = sorted((data / "images" / "val").iterdir())
    rows = answer(capsys, "predict", tmp_path / "run", *images, "--out", tmp_path / "out")
    assert [row["error"] for row in rows] == [None] * 4
    assert mode_and_pixels(tmp_path / "out" / "labels" / "0.png")[1].shape == (64, 80)
    assert mode_and_pixels(tmp_path / "out" / "drawn" / "0.png")[0] == "RGB"
    metrics = answer(capsys, "eval", tmp_path / "run", "--workers", "0")
    assert metrics["miou"] == pytest.approx(finished.metrics["miou"])
    report = smt_vision.inspect(data, overrides={"input": {"channels": 5}})
    assert len(report["splits"]["train"]["mean"]) == 5


def test_bands_keep_all_their_bits(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes")
    as_bands(data / "images", ".npy")
    path = sorted((data / "images" / "val").iterdir())[0]
    pixels = decode_input(path, BandsInput(channels=5), name="x")
    assert isinstance(pixels, torch.Tensor)
    assert torch.equal(pixels[4], torch.from_numpy(np.load(path)[..., 4] / np.float32(65535)))


def as_detection(folder: Path, suffix: str) -> Path:
    data = write_shapes(folder)
    for split in ("train", "val"):
        as_bands(data / split, suffix)
        path = data / "annotations" / f"instances_{split}.json"
        path.write_text(path.read_text().replace(".png", suffix))
    return data


@pytest.mark.usefixtures("no_report")
def test_detection(tmp_path: Path, capsys: Capture) -> None:
    data = as_detection(tmp_path / "shapes", ".npy")
    recipe = shapes_recipe(data)
    recipe = replace(
        recipe,
        input=DetectionInput(channels=5, interpolation="bilinear", workers=0),
        augment=DetectionAugment(hflip=0.5, vflip=0.5, iou_crop=1.0, scale_jitter=(0.5, 1.5)),
    )
    finished = train(recipe, tmp_path / "run", display=False)
    assert finished.metrics["count"] == 4
    assert (tmp_path / "run" / "samples" / "epoch_001.png").is_file()
    images = sorted((data / "val").iterdir())
    options = ["--detect.score_threshold", "0"]
    rows = answer(capsys, "predict", tmp_path / "run", *images, "--out", tmp_path / "out", "--score", "0", *options)
    assert all(row["error"] is None and row["objects"] for row in rows)
    assert mode_and_pixels(tmp_path / "out" / "drawn" / "0.png")[0] == "RGB"
    metrics = answer(capsys, "eval", tmp_path / "run", "--workers", "0")
    assert metrics["mask_ap"] == pytest.approx(finished.metrics["mask_ap"])
    tiles = ["--detect.tiles", "48"]
    assert all(row["objects"] for row in answer(capsys, "predict", tmp_path / "run", *images, *options, *tiles,
                                                "--score", "0", "--out", tmp_path / "tiled"))  # fmt: skip
    assert answer(capsys, "eval", tmp_path / "run", "--workers", "0", *tiles)["count"] == 4


def test_yolo_folder_of_bands(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        np.save(tmp_path / "images" / split / "a.npy", five_bands(PICTURE))
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.25\n")
    (tmp_path / "data.yaml").write_text("names: [a, b]\ntrain: images/train\nval: images/val\n")
    images = open_detection(str(tmp_path), "train")
    _, target, _ = images.read(0)
    assert target["size"] == (40, 60)
    assert target["boxes"].tolist() == [[15.0, 15.0, 45.0, 25.0]]


@pytest.mark.usefixtures("no_report")
def test_export_takes_the_bands(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    data = as_detection(tmp_path / "shapes", ".tif")
    recipe = replace(
        shapes_recipe(data, "fcos"), model="test_resnet", model_args={},
        input=DetectionInput(channels=5, interpolation="bilinear", workers=0),
    )  # fmt: skip
    train(recipe, tmp_path / "run", display=False)
    images = sorted((data / "val").iterdir())
    words = ["export", tmp_path / "run", "--format", "onnx", "--out", tmp_path / "onnx", "--images", *images]
    assert run(*words, "--detect.score_threshold", "0.001") == 0
    manifest = json.loads((tmp_path / "onnx" / "manifest.json").read_text())
    assert manifest["parity"]["cases"][0]["shape"][1] == 5


def test_memory_of_a_damaged_header_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 5), dtype=np.float64))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(4, 5), }    ", b"(9999, 9999)}"))
    assert path.read_bytes() != content
    with pytest.raises(ValueError, match=r"truncated: an array of shape \(9999, 9999\).* needs 799840008 bytes"):
        read_array(path)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda: replace(shapes_recipe(Path("x")), augment=DetectionAugment(color_jitter=0.5, mosaic=1.0),
                         input=DetectionInput(channels=5)), r"augment\.color_jitter=0\.5 and augment\.mosaic=1\.0"),
        (lambda: replace(scenes_recipe(Path("x"), photometric=True), input=SegmentationInput(channels=5)),
         r"segment\.photometric=true for input\.channels=5"),
        (lambda: BandsInput(channels=5, interpolation="lanczos"), r"input\.interpolation=lanczos"),
        (lambda: DetectionInput(max_value=3.0, exact=True), r"input\.exact=True"),
    ],
)  # fmt: skip
def test_what_bands_do_not_have_is_an_error(recipe: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe()
