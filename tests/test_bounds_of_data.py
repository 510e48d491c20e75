"""Files of a dataset that claim, or expand to, far more than they hold: refused early, with a clear error."""

import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smt_vision.data.archive import open_tar
from smt_vision.data.decode import UnreadableImage, decode
from smt_vision.data.region import Region
from smt_vision.deploy.errors import is_out_of_memory
from smt_vision.recipe import Input
from smt_vision.spec import ModelSpec
from smt_vision.tasks import predictor as predictors
from smt_vision.tasks.classification.data.shards import expand_shards, open_shards
from smt_vision.tasks.detection.data import masks
from smt_vision.tasks.detection.data.masks import clip_polygon, rasterize_masks
from smt_vision.tasks.detection.data.voc import open_voc
from smt_vision.tasks.detection.results import coco_ids
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.data.sources import open_segmentation

# --- images ---


def png_of_claimed_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
def test_images_of_huge_claimed_size_are_unreadable(size) -> None:
    with pytest.raises(UnreadableImage, match=r"bomb\.png"):
        decode(png_of_claimed_size(*size), 3, name="bomb.png")


def test_image_that_does_not_fit_in_memory_is_unreadable(monkeypatch) -> None:
    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(UnreadableImage, match=r"large\.png: not enough memory"):
        decode(png_of_claimed_size(9, 9), 3, name="large.png")


def allocation_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    return raised.value


def test_allocation_errors_are_recognized() -> None:
    assert is_out_of_memory(allocation_error())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    for message in ("MPS backend out of memory (MPS allocated: 9 GB)", "CUDA error: out of memory",
                    "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"):  # fmt: skip
        assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError("invalid shape"))


class Squares(predictors.Predictor[tuple[str, str | None]]):
    """Predicts nothing; a batch with an image wider than 50 pixels runs out of memory."""

    save = draw = row = to_dict = input_description = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.device = torch.device("cpu")
        self.spec = ModelSpec("classify", "none", (), Input())
        self.transform = lambda image: torch.zeros(3, image.height, image.width)

    def _make_transform(self):
        raise NotImplementedError

    def _predict_batch(self, batch, **options):
        self.batches.append(len(batch))
        if any(image.size[1] > 50 for image in batch):
            raise allocation_error()
        return [(image.id, None) for image in batch]

    def _unreadable(self, source, id, error):
        return id, error


def test_prediction_goes_on_after_an_image_that_does_not_fit_in_memory() -> None:
    predictor = Squares()
    images = [Image.new("RGB", (side, 8)) for side in (10, 60, 20, 30)]
    results = predictor(images, batch_size=3)
    assert [id for id, _ in results] == ["0", "1", "2", "3"]
    assert [error is None for _, error in results] == [True, False, True, True]
    assert "60 x 8" in str(results[1][1])
    assert predictor.batches == [3, 1, 1, 1, 1]


def test_large_images_are_predicted_in_smaller_batches(monkeypatch) -> None:
    predictor = Squares()
    monkeypatch.setattr(predictors, "MAX_VALUES", 2 * 3 * 20 * 20)
    list(predictor.stream([Image.new("RGB", (20, 20))] * 5, batch_size=4))
    assert predictor.batches == [2, 2, 1]


def test_padding_counts_as_the_size_of_a_batch(monkeypatch) -> None:
    """A wide and a high image together would be padded to many times the size of both."""
    predictor = Squares()
    monkeypatch.setattr(predictors, "MAX_VALUES", 3 * 40 * 40)
    images = [Image.new("RGB", size) for size in ((40, 2), (38, 4), (2, 40), (2, 30), (40, 40), (1, 1))]
    found = [id for id, _ in predictor.stream(images, batch_size=4)]
    assert found == ["0", "1", "2", "3", "4", "5"]
    assert predictor.batches == [2, 2, 1, 1]


# --- polygons ---


@pytest.mark.parametrize("far", [1e7, 1e18, 1e300])
def test_polygons_far_outside_of_their_picture_cover_the_same_pixels(far) -> None:
    region = Region(0, 0, 50, 40, 50, 40)
    near = [[0, 0, 50, 0, 50, 40, 0, 40]]
    everything = [[-far, -far, far, -far, far, far, -far, far]]
    right_half = [[25, -far, far, -far, far, far, 25, far]]
    nothing = [[far, far, 2 * far, far, far, 2 * far]]
    found = rasterize_masks([near, everything, right_half, nothing], region, 40, 50)
    assert found[0].all()
    assert found[1].all()
    assert np.array_equal(found[2], np.tile(np.arange(50) >= 25, (40, 1)))
    assert not found[3].any()


def test_polygons_near_their_picture_are_not_changed() -> None:
    points = np.random.default_rng(0).uniform(-15 * 40, 16 * 40, (30, 2))
    assert clip_polygon(points, 50, 40) is points
    clipped = clip_polygon(points * 100, 50, 40)
    assert clipped[:, 0].min() >= -50 * masks.FAR
    assert clipped[:, 1].max() <= 40 * (1 + masks.FAR)


# --- archives and shards ---


@pytest.mark.parametrize(
    "pattern", ["a-{0..999999999}.tar", "{0..999}/{0..999}/{0..999}.tar", f"a-{{0..{'9' * 5000}}}.tar", "a-{9..1}.tar"]
)
def test_ranges_of_shards_are_bounded(pattern) -> None:
    with pytest.raises(ValueError, match=r"range"):
        expand_shards(pattern)


def test_ranges_of_shards_are_expanded_in_order() -> None:
    assert [str(path) for path in expand_shards("{0..1}-{08..10}.tar")] == [
        "0-08.tar", "0-09.tar", "0-10.tar", "1-08.tar", "1-09.tar", "1-10.tar",
    ]  # fmt: skip


def test_compressed_tar_that_expands_a_thousand_times_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SMT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("smt_vision.data.archive.ALWAYS_UNPACKED", 1 << 20)
    packed = tmp_path / "zeros.tar.gz"
    with gzip.open(packed, "wb") as file:
        file.write(bytes(4 << 20))
    with pytest.raises(ValueError, match=r"zeros\.tar\.gz: \d+ bytes that unpack to more than 200 times"):
        open_tar(packed)
    assert not list((tmp_path / "cache" / "tars").iterdir())


def write_tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def test_chains_and_loops_of_links_take_linear_time(tmp_path: Path) -> None:
    n = 5000
    chain = {f"c{k}": f"c{k + 1}" if k < n - 1 else "file" for k in range(n)}
    loop = {f"l{k}": f"l{(k + 1) % n}" for k in range(n)}
    tar = open_tar(write_tar(tmp_path / "links.tar", {"file": b"content"}, chain | loop))
    assert len(tar) == n + 1
    assert tar.read(tar.names.index("c0")) == b"content"


@pytest.mark.parametrize("size", [b"\xff" * 12, b"-0000000001\0", b"\x80" + b"\xff" * 11, b"77777777777\0"])
def test_tar_members_of_negative_or_huge_size_are_damage(tmp_path: Path, size) -> None:
    data = bytearray(write_tar(tmp_path / "a.tar", {"a.png": b"x", "b.png": b"y"}).read_bytes())
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tar: damaged archive"):
        open_tar(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "target",
    [
        {"a.cls": str(2**31).encode()},
        {"a.cls": b"-1"},
        {"a.cls": b"0" * 17_000_000},
        {"a.json": b"[" * 100_000},
        {"a.json": b'{"label": ' + b"9" * 5000 + b"}"},
        {"a.json": b'{"label": -1}'},
        {"a.json": b'{"label": [1]}'},
        {"a.json": b"\xff"},
    ],
)
def test_targets_of_shards_are_bounded(tmp_path: Path, target) -> None:
    shard = write_tar(tmp_path / "train-0.tar", {"a.jpg": b"x", **target, "b.jpg": b"x", "b.cls": b"1"})
    with pytest.raises(ValueError, match=r"train-0\.tar:a"):
        open_shards([shard], "wds", "train", 0.5, 0, allow_damaged=False)


# --- descriptions ---


VOC = """<annotation><size><width>{width}</width><height>40</height></size><object><name>cat</name>
<bndbox><xmin>{left}</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize(("width", "left"), [("1e300", "1"), (str(2**63), "1"), ("2147483648", "1"), ("50", "-1e308")])
def test_numbers_of_voc_files_are_bounded(tmp_path: Path, width, left) -> None:
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    (tmp_path / "Annotations/a.xml").write_text(VOC.format(width=width, left=left))
    Image.new("RGB", (50, 40)).save(tmp_path / "JPEGImages/a.png")
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"a\.xml"):
        open_voc(tmp_path, tmp_path / "train.txt")


def segmentation_set(root: Path) -> Path:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
            Image.new("L", (8, 8)).save(root / kind / split / "a.png")
    return root


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, json.dumps([str(i) for i in range(50_000)]).encode(), b"\xff", b"9" * 5000, b"null"]
)
def test_class_lists_are_bounded(tmp_path: Path, content) -> None:
    (segmentation_set(tmp_path) / "classes.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"classes\.json"):
        open_segmentation(str(tmp_path), "train", SegmentConfig())


def test_class_list_of_ade20k_that_is_not_text(tmp_path: Path) -> None:
    (segmentation_set(tmp_path) / "objectInfo150.txt").write_bytes(b"Idx\tName\n1\t\xff\n")
    with pytest.raises(ValueError, match=r"objectInfo150\.txt: not text"):
        open_segmentation(str(tmp_path), "train", SegmentConfig())


def test_nested_annotations_are_not_coco(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": ' + b"[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json: not a COCO annotation file"):
        coco_ids(tmp_path / "a.json", [tmp_path / "a.png"], ["cat"])
