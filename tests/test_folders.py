"""Files in directories and archives: which are images, which are passed over, and what the folders mean."""

import io
import logging
import os
import random
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, features
from timm.utils.misc import natural_key

from smt_vision import RECIPES
from smt_vision.cli.export import build_parser as export_parser
from smt_vision.cli.train import build_parser as train_parser
from smt_vision.data.decode import UnreadableImage, decode
from smt_vision.data.files import find_images, is_hidden, is_image, list_files
from smt_vision.data.video import find_videos
from smt_vision.recipe_files import write_recipe
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.data.folders import natural_order
from smt_vision.tasks.classification.data.sources import open_dataset

OF_TOOLS = [  # left by file managers, network drives and editors
    "cat/._1.jpg", "cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/Icon\r", "cat/1.jpg:Zone.Identifier",
    "__MACOSX/cat/._1.jpg", "__MACOSX/fox/1.jpg", ".ipynb_checkpoints/1.jpg", "cat/.ipynb_checkpoints/1-checkpoint.jpg",
    "@eaDir/cat/1.jpg/SYNOPHOTO_THUMB_M.jpg", "cat/@eaDir/1.jpg", "#recycle/cat/1.jpg", "$RECYCLE.BIN/S-1/$R1.jpg",
    "System Volume Information/1.jpg", ".git/objects/1.jpg", ".Trash-1000/files/1.jpg", "lost+found/1.jpg",
    "cat/__pycache__/1.jpg",
]  # fmt: skip


def write(root: Path, names: Sequence[str]) -> Path:
    """Write a 4 x 4 image for each name with the suffix .jpg or .png, a directory for each with a slash at the end."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif name.endswith((".jpg", ".png")):
            Image.new("L", (4, 4)).save(path)
        else:
            path.write_bytes(b"no image")
    return root


@pytest.fixture(params=["directory", "tar"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> "Opener":
    return Opener(tmp_path, request.param == "tar")


class Opener:
    """Opens both splits of the given files, in a directory or in a tar without entries for directories."""

    def __init__(self, root: Path, as_tar: bool) -> None:
        self.root = root
        self.as_tar = as_tar

    def __call__(self, names: Sequence[str], val_fraction: float = 0.5) -> tuple[ImageDataset, ImageDataset]:
        source = write(self.root / "set", names)
        if self.as_tar:
            source = self.root / "set.tar"
            with tarfile.open(source, "w") as tar:
                for name in names:
                    tar.add(self.root / "set" / name, arcname=f"./{name}")
        train, val = (open_dataset(str(source), split, val_fraction=val_fraction) for split in ("train", "val"))
        return train, val


def in_classes(folder: str, *classes: str, images: int = 2) -> list[str]:
    return [f"{folder}{name}/{i}.jpg" for name in classes for i in range(images)]


def ids(images: ImageDataset) -> list[tuple[str, str]]:
    return [(images.id(i), images.classes[images.targets[i]]) for i in range(len(images))]


# Suffixes


def test_formats_that_are_read_are_images(tmp_path: Path) -> None:
    suffixes = [
        ".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
        ".jp2", ".j2k", ".ppm", ".pgm", ".pnm", ".tga",
    ]  # fmt: skip
    suffixes += [".avif"] if features.check("avif") else []
    for k, suffix in enumerate(suffixes):
        Image.new("RGB", (16, 16), (200, 200, 200)).save(tmp_path / f"{k:02d}{suffix if k % 2 else suffix.upper()}")
    found = find_images([tmp_path])
    assert [path.suffix.lower() for path in found] == suffixes
    assert {decode(path, 1, name=path.name).getpixel((8, 8)) for path in found} <= set(range(198, 203))


@pytest.mark.parametrize(
    "suffix",
    [".eps", ".ps", ".pdf", ".h5", ".grib", ".bufr", ".mpg", ".wmf", ".emf", ".palm", ".ico", ".icns", ".pcx", ".sgi",
     ".dds", ".psd", ".fits", ".blp", ".xpm"],
)  # fmt: skip
def test_formats_that_pillow_knows_and_that_are_not_read_are_not_images(suffix: str) -> None:
    assert suffix in Image.registered_extensions()
    assert not is_image(f"1{suffix}")


def test_undecodable_suffixes_are_in_fact_undecodable(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.pdf")
    (tmp_path / "1.mpg").write_bytes(b"\0\0\1\xb3\4\0\4\0" + bytes(64))  # Pillow identifies it
    for name in ("1.pdf", "1.mpg"):
        with pytest.raises(UnreadableImage):
            decode(tmp_path / name, 3, name=name)


def test_a_format_registered_by_the_application_is_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_image("1.made_up")
    monkeypatch.setitem(Image.registered_extensions(), ".made_up", "MADE_UP")
    assert not is_image("1.made_up")  # not yet readable
    monkeypatch.setitem(Image.OPEN, "MADE_UP", Image.OPEN["PNG"])
    assert is_image("1.made_up")


def test_images_of_all_suffixes_are_used(opened: Opener, tmp_path: Path) -> None:
    for k, suffix in enumerate(["jpg", "webp", "bmp", "tif", "GIF"]):
        for i in range(10):
            path = tmp_path / "set" / "cat" / f"{k}{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 10 * k).save(path)
    cats = [f"cat/{path.name}" for path in (tmp_path / "set" / "cat").iterdir()]
    assert features.check("webp")
    names = {*cats, *in_classes("", "dog")}
    source = write(tmp_path / "set", in_classes("", "dog"))
    if opened.as_tar:
        source = tmp_path / "all.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(tmp_path / "set", arcname=".")
    images = open_dataset(str(source), "val", val_fraction=1.0)
    assert {id for id, _ in ids(images)} == names
    assert Counter(images.targets.tolist()) == {0: 50, 1: 2}
    assert len(find_images([tmp_path / "set"])) == 52


# Files that are passed over


def test_files_of_tools_are_passed_over(opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = in_classes("", "cat", "dog")
    train, val = opened([*expected, *OF_TOOLS])
    assert train.classes == val.classes == ("cat", "dog")
    assert sorted(id for images in (train, val) for id, _ in ids(images)) == expected
    assert find_images([tmp_path / "set"]) == [tmp_path / "set" / name for name in expected]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert list(filter(is_hidden, expected)) == []


def test_files_of_unknown_kind_are_counted(opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unknown = ["cat/1.heic", "cat/2.HEIC", "dog/3.txt", "README", "dog/notes/4.csv"]
    names = [*in_classes("", "cat", "dog"), *unknown[:4]]
    train, _ = opened(names)
    assert "ignored 4 files that are not images in a supported format: 2 .heic, " in caplog.text
    assert "1 .txt" in caplog.text
    assert "1 without a suffix" in caplog.text
    assert len(train) == 2
    caplog.clear()
    write(tmp_path / "set", unknown)
    assert len(find_images([tmp_path / "set"])) == 4
    assert "ignored 5 files" in caplog.text
    assert "2 .heic" in caplog.text


def test_files_of_unknown_kind_are_counted_per_split(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    names = [*in_classes("train/", "a", "b"), *in_classes("val/", "a", "b"), "train/a/1.txt", "val/a/2.heic", "x.md"]
    opened(names)
    counts = [record.getMessage().partition(": ignored ")[2] for record in caplog.records]
    assert [sorted(count.partition(": ")[2].split(", ")) for count in counts] == [
        ["1 .md", "1 .txt"],
        ["1 .heic", "1 .md"],
    ]


def test_many_unknown_suffixes_are_summarized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ["1.jpg", *(f"{i}.x{i}" for i in range(12))])
    find_images([tmp_path])
    assert "ignored 12 files" in caplog.text
    assert caplog.messages[0].endswith("4 others")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.heic", "dog/2.heic", "dog/3.txt"], r"no images \(2 \.heic, 1 \.txt\)"),
        ([*in_classes("", "cat", "dog"), "fox/1.heic", "fox/2.heic"], r": fox \(2 \.heic\)"),
        ([*in_classes("train/", "a", "b"), "val/a/1.heic", "val/b/2.heic"], r"2 class .*: val/a \(1 \.heic\), val/b"),
    ],
)
def test_class_folders_with_unknown_files_only_are_refused(opened: Opener, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(names)


def test_directory_without_images_names_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, ["1.heic", "a/2.heic", "._3.jpg"])
    with pytest.raises(FileNotFoundError, match=r"\(2 \.heic\)"):
        find_images([tmp_path])


def test_links_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a" / "set", ["cat/1.jpg"])
    write(tmp_path / "b", ["1.jpg"])
    top = tmp_path / "a" / "set"
    for link, target in (("dog", tmp_path / "b"), ("cat/up", ".."), ("cat/top", tmp_path), ("self", "self")):
        os.symlink(target, top / link)
    os.symlink(top, tmp_path / "b" / "back")
    os.symlink("missing.jpg", top / "cat" / "2.jpg")
    listing = list_files(top)
    assert sorted(listing.images) == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]  # a broken link is an unreadable image
    assert listing.others == ["self"]
    assert sorted(listing.folders) == ["cat", "dog"]
    assert "ignored 3 links to a directory that contains them" in caplog.text


def test_shards_ignore_files_of_tools_and_count_samples_without_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        png = io.BytesIO()
        Image.new("L", (4, 4)).save(png, "PNG")
        for name, data in [
            *((f"{i}.PNG", png.getvalue()) for i in range(2)),
            *((f"{i}.cls", str(i).encode()) for i in range(2)),
            ("0.json", b"{}"),
            ("__MACOSX/._5.png", b"x"),
            ("6.heic", b"x"),
            ("6.cls", b"1"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "._0.tar").write_bytes(b"metadata")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    images = open_dataset(str(tmp_path), "val", val_fraction=1.0)
    assert ids(images) == [("0.tar:0", "0"), ("0.tar:1", "1")]
    assert "ignored 2 files" in caplog.text
    assert "1 .heic, 1 .cls" in caplog.text


def test_one_of_several_validation_splits_of_shards_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "PNG")
    for split in ("train", "val", "valid", "test"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            for k in range(2):
                for name, data in ((f"{k}.png", png.getvalue()), (f"{k}.cls", str(k).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    assert [id for id, _ in ids(open_dataset(str(tmp_path), "train"))] == ["train-0.tar:0", "train-0.tar:1"]
    assert [id for id, _ in ids(open_dataset(str(tmp_path), "val"))] == ["val-0.tar:0", "val-0.tar:1"]
    assert "uses val, ignores valid, test" in caplog.text


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("train_name", "val_name"),
    [("Train_0", "VAL_0"), ("train2017-0", "val2017-0"), ("train/x0", "Val/x0"), ("test/train-0", "test/val-0")],
)
def test_splits_of_shards_in_any_case_and_with_numbers(tmp_path: Path, train_name: str, val_name: str) -> None:
    names = [f"{train_name}.tar", f"{val_name}.tar"]
    for name in names:
        write_shard(tmp_path / name, {"1.png": b"1", "1.cls": b"0", "2.png": b"2", "2.cls": b"1"})
    pattern = f"wds/{tmp_path}/{'*/' * train_name.count('/')}*.tar"
    for split, name in zip(("train", "val"), names, strict=True):
        opened = open_dataset(pattern, split)
        assert [opened.name(i) for i in range(2)] == [f"{tmp_path / name}:1", f"{tmp_path / name}:2"]


def test_an_archive_left_in_a_split_does_not_make_it_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, [*in_classes("train/", "a", "b"), *in_classes("val/", "a", "b")])
    write_shard(tmp_path / "train" / "a.tar", {"a/1.jpg": b"1"})
    assert ids(open_dataset(str(tmp_path), "train"))[0] == ("a/0.jpg", "a")
    assert "ignored 1 files that are not images in a supported format: 1 .tar" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cls": b"99999999999999999999"}, "'99999999999999999999': expected an integer from 0 to 999999"),
        ({"cls": b"500000000"}, "'500000000': expected an integer from 0 to 999999"),
        ({"cls": b"1" * 5000}, "'1{100}': expected an integer from 0 to 999999"),
        ({"json": b'{"label": 1000000}'}, "'1000000': expected an integer from 0 to 999999"),
        ({"json": b'{"caption": "x"}', "txt": b"x"}, r"''.*; the sample has \.png, \.json, \.txt"),
    ],
)
def test_invalid_class_indices_of_shards(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write_shard(tmp_path / "0.tar", {"17.png": b"1"} | {f"17.{suffix}": data for suffix, data in files.items()})
    with pytest.raises(ValueError, match=f"0\\.tar:17: invalid class index {message}") as error:
        open_dataset(str(tmp_path), "train")
    assert len(str(error.value)) < 500


# What folders mean


@pytest.mark.parametrize(
    ("names", "messages"),
    [
        (
            [*in_classes("cat/", "split_1"), *in_classes("dog/", "split_1")],
            ["1 class names", "cat/split_1 and dog/split_1"],
        ),
        (
            [*in_classes("cat/", "train", "val"), *in_classes("dog/", "train", "val")],
            ["2 class names", "train (cat/train and dog/train), val (cat/val and dog/val)"],
        ),
        (
            [*in_classes("train/x/", "a", "b"), *in_classes("train/y/", "a", "c")],
            ["1 class names", "a (train/x/a and train/y/a)"],
        ),
        (
            [*in_classes("one/train/", "a", "b"), *in_classes("two/train/", "a", "b")],
            ["2 class names", "one/train/a and two/train/a"],
        ),
        ([*in_classes("", "cat", "dog"), "cat/more/1.jpg"], ["1 class folders inside", "cat/more in cat"]),
        ([*in_classes("train/", "cat", "dog"), "train/cat/a/b/1.jpg"], ["train/cat/a/b in train/cat"]),
    ],
)
def test_one_class_in_several_folders_is_refused(opened: Opener, names: list[str], messages: list[str]) -> None:
    with pytest.raises(ValueError, match="folder") as error:
        opened(names)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("names", "classes", "has_val"),
    [
        (in_classes("animals/", "cat", "dog"), ("cat", "dog"), False),
        (in_classes("", "animals/cat", "animals/dog", "plants/rose"), ("cat", "dog", "rose"), False),
        (in_classes("", "cat", "animals/dog"), ("cat", "dog"), False),
        (in_classes("", "bus", "car", "train"), ("bus", "car", "train"), False),
        (in_classes("", "bus", "test", "train", "val"), ("bus", "test", "train", "val"), False),
        (in_classes("vehicles/", "bus", "train"), ("bus", "train"), False),
        (in_classes("train/", "bus", "train"), ("bus", "train"), False),
        ([*in_classes("train/", "bus", "train"), *in_classes("val/", "bus", "train")], ("bus", "train"), True),
        ([*in_classes("train/", "train", "val"), *in_classes("val/", "train", "val")], ("train", "val"), True),
        ([*in_classes("train/", "test", "x"), *in_classes("test/", "test", "x")], ("test", "x"), True),
        ([*in_classes("set/train/", "a", "b"), *in_classes("set/val/", "a", "b")], ("a", "b"), True),
        ([*in_classes("train/im/", "a", "b"), *in_classes("val/im/", "a", "b")], ("a", "b"), True),
        ([*in_classes("Train/", "a", "b"), *in_classes("Test/", "a", "b")], ("a", "b"), True),
        ([*in_classes("Training/", "a", "b"), *in_classes("Testing/", "a", "b")], ("a", "b"), True),
        (in_classes("", "train", "tram"), ("train", "tram"), False),
        (in_classes("", "test_negative", "test_positive"), ("test_negative", "test_positive"), False),
    ],
)
def test_classes_and_splits_by_structure(
    opened: Opener, names: list[str], classes: tuple[str, ...], has_val: bool
) -> None:
    train, val = opened(names)
    assert train.classes == val.classes == classes
    used = [
        (images.name(i).replace(":", "/"), name) for images in (train, val) for i, (_, name) in enumerate(ids(images))
    ]
    assert sorted(path.partition(".tar/" if opened.as_tar else "/set/")[2] for path, _ in used) == sorted(names)
    assert [name for path, name in used if path.split("/")[-2] != name] == []
    if has_val:
        assert len(train) == len(val) == 4
        assert all("/train" in path.lower() for path, _ in used[:4])


@pytest.mark.parametrize(
    ("names", "messages"),
    [
        (in_classes("", "train", "test"), ["no class folders in train/, test/"]),
        ([*in_classes("train/", "a", "b"), "test/1.jpg"], ["no class folders in test/", "test/cat/1.jpg"]),
        ([*in_classes("train/", "a", "b"), *in_classes("", "bus")], ["in train/, but also bus/", "train/train/1.jpg"]),
        ([*in_classes("", "bus", "car"), "test/unit/1.jpg"], ["in test/, but also bus/, car/"]),
        ([*in_classes("x/train/", "a", "b"), *in_classes("x/", "bus")], ["in x/train/, but also x/bus/"]),
    ],
)
def test_ambiguous_layouts_are_refused_with_both_readings(
    opened: Opener, names: list[str], messages: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"is a split, .* is a class, ") as error:
        opened(names)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ["train/cat.0.jpg", "train/dog.0.jpg", "test1/1.jpg"],  # Kaggle's Dogs vs. Cats
        in_classes("", "train_images", "test_images"),
        in_classes("", "ISIC_2019_Training_Input", "ISIC_2019_Test_Input"),
        in_classes("set/", "seg_train", "seg_test", "seg_val2"),
    ],
)
def test_splits_without_classes_are_not_taken_for_classes(opened: Opener, names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"named like splits, not classes; expected class folders in them"):
        opened(names)


@pytest.mark.parametrize(
    ("names", "beside", "used"),
    [
        ([*in_classes("food/images/", "a", "b"), "food/meta/train.txt", "food/README"], ["food/meta"], "food/images/"),
        ([*in_classes("Images/", "a", "b"), "Annotation/a/1", "lists/x.mat"], ["Annotation", "lists"], "Images/"),
        (
            [*in_classes("I/Data/CLS/train/", "a", "b"), *in_classes("I/Data/CLS/val/", "a", "b"), "I/Sets/CLS/x.txt"],
            ["I/Sets"],
            "I/Data/CLS/",
        ),
    ],
)
def test_folders_of_metadata_beside_the_classes_are_told(
    opened: Opener, names: list[str], beside: list[str], used: str, caplog: pytest.LogCaptureFixture
) -> None:
    train, val = opened(names)
    assert train.classes == val.classes == ("a", "b")
    assert len(train) + len(val) == sum(name.endswith(".jpg") for name in names)
    assert f": uses {used}, ignores the folders without images {', '.join(beside)}" in caplog.text


def test_images_outside_of_the_splits_are_counted(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    names = [*in_classes("train/", "a", "b"), *in_classes("val/", "a", "b")]
    train, val = opened([*names, *in_classes("valid/", "a", "b"), *in_classes("extra/", "c"), "test/1.jpg", "top.jpg"])
    assert [len(images) for images in (train, val)] == [4, 4]
    (warning, _) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "ignored 8 images outside of train/ and val/: " in warning
    assert sorted(warning.rpartition(": ")[2].split(", ")) == ["1 in ./", "1 in test/", "2 in extra/", "4 in valid/"]


def test_test_split_beside_validation_split_is_no_warning(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    opened([*in_classes("train/", "a", "b"), *in_classes("val/", "a", "b"), "test/1.jpg"])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_nested_class_folders_are_told(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    opened(in_classes("", "cat/a", "cat/b", "dog/c"))
    assert "several folders: cat/a, cat/b, dog/c; only the innermost folder is the class" in caplog.text


def test_unicode_normalization_of_class_names_does_not_matter(opened: Opener) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    train, val = opened([*in_classes("train/", composed, "tea"), *in_classes("val/", decomposed, "tea")])
    assert train.classes == val.classes == (composed, "tea")
    assert ids(val)[0] == (f"{decomposed}/0.jpg", composed)
    assert not isinstance(val.read(0)[0], str)


def test_folders_that_differ_in_unicode_normalization_are_refused(opened: Opener) -> None:
    names = in_classes("", *(unicodedata.normalize(form, "café") for form in ("NFC", "NFD")))
    with pytest.raises(ValueError, match=r"'cafe\\u0301' and 'caf\\xe9'"):
        opened(names)


def test_class_names_that_differ_in_case_between_splits_are_refused(opened: Opener) -> None:
    with pytest.raises(ValueError, match=r"cat \(only in val/\), Cat \(only in train/\)"):
        opened([*in_classes("train/", "Cat", "dog"), *in_classes("val/", "cat", "dog")])


def test_order_of_numbers_in_names_is_timms_at_any_length() -> None:
    names = ["b10", "B2", "a", "a02", "a2", "10", "9", "a-1", "x9y10", "x9y9", "٣", "2²", ""]
    assert sorted(names, key=natural_order) == sorted(names, key=lambda name: (timm_order(name), name))
    generator = random.Random(0)
    parts = [*"aAb01239/-_. é٣", "\udc80", "10", "007", "Straße"]
    names = ["".join(generator.choices(parts, k=generator.randint(0, 9))) for _ in range(5000)]
    assert sorted(names, key=natural_order) == sorted(names, key=lambda name: (timm_order(name), name))
    long = ["a" + "9" * 5000, "a1" + "0" * 5000, "a²"]  # longer than what Python reads as a decimal number
    assert sorted(long, key=natural_order) == long


def timm_order(name: str) -> list[str | int]:
    order: list[str | int] = natural_key(name.replace("²", "_"))
    return order


def test_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of images from Python, and of paths of commands: the shell does not see ~ in --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "set" / "1.png")
    (tmp_path / "clip.mp4").touch()
    for path in ("~/set", Path("~/set/1.png")):
        assert find_images([path]) == [tmp_path / "set" / "1.png"]
    assert find_videos(["~/clip.mp4"]) == [tmp_path / "clip.mp4"]
    words = ["m", "--format", "onnx", "--out=~/out", "--images", "~/a", "b"]
    args = export_parser(words).parse_args(words)
    assert (args.out, args.images) == (tmp_path / "out", [tmp_path / "a", Path("b")])
    assert train_parser(["quickstart"]).parse_args(["quickstart", "--run=~/r"]).run == tmp_path / "r"
    write_recipe(RECIPES["quickstart"], tmp_path / "recipe.yaml")
    for words in (["--resume=~/."], ["--resume", "~"]):
        assert train_parser(words).parse_args(words).augment.pad == 3  # the recipe's value
    (tmp_path / "cut.yaml").write_text("optim: [")
    with pytest.raises(SystemExit):
        train_parser(["quickstart", "--config=~/cut.yaml"])
    assert f"--config {tmp_path / 'cut.yaml'}: not valid YAML" in capsys.readouterr().err
