"""Inspection of datasets, and self-contained pages: known answers, and names that are shown and nothing else."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smt_vision
from command import answer, refusal
from drawn_sets import write_scenes, write_shapes
from smt_vision.inspection.duplicates import near_duplicates
from smt_vision.inspection.inspect import inspect
from smt_vision.inspection.measure import measure, measures
from smt_vision.pages import PICTURE_SIZE, POLICY, html_page
from smt_vision.tasks import recipe_class
from smt_vision.tasks.classification.data.hub import ArrayDataset
from smt_vision.tasks.classification.inspection import ClassificationInspection
from smt_vision.text import markdown, printable
from test_names import HOSTILE, unprintable
from tiny_run import write_split

pytestmark = pytest.mark.pictures

Capture = pytest.CaptureFixture[str]
# What a page may consist of: none of these loads, executes or submits anything.
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "ul", "li", "img", "table",
    "thead", "tbody", "tr", "th", "td", "pre", "code", "strong",
}  # fmt: skip


class Page(HTMLParser):
    """The tags, attributes and text of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check_page(path: Path) -> Page:
    """Read a page that is self-contained: only known tags, its policy, and pictures that are part of it."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags <= TAGS
    assert {name for name, _ in page.attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "alt", "src", "align", "class"
    }  # fmt: skip
    assert ("content", POLICY) in page.attributes
    assert all(str(value).startswith("data:image/") for name, value in page.attributes if name == "src")
    assert not unprintable(text)
    return page


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Three classes of 8 and 4 images, of which one of val is a copy from train, one nearly so, and one is damaged."""
    folder = write_split(tmp_path / "set")
    shutil.copy(folder / "train" / "red" / "0.png", folder / "val" / "red" / "copy.png")
    ramp = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    ramp[10:40, 20:30] = 250
    picture = Image.fromarray(ramp)
    picture.save(folder / "train" / "blue" / "ramp.png")
    picture.resize((100, 100)).save(folder / "val" / "blue" / "smaller.jpg", quality=70)
    (folder / "val" / "green" / "damaged.png").write_bytes(b"not an image")
    return folder


def test_classes_duplicates_and_damaged_images(classes: Path, tmp_path: Path, capsys: Capture) -> None:
    report = answer(capsys, "inspect", classes, "--out", tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert report["task"] == "classify"
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert [(row["class"], row["images"]) for row in train["classes"]] == [("blue", 9), ("green", 8), ("red", 8)]
    assert [row["images"] for row in val["classes"]] == [5, 5, 5]
    assert [(each["id"], "damaged.png" in each["error"]) for each in val["unreadable"]] == [("green/damaged.png", True)]
    assert (train["images"], train["read"], val["images"], val["read"]) == (25, 25, 15, 15)
    assert train["width"] == {"min": 40, "median": 46, "max": 64}
    assert train["height"]["max"] == 36 + 5 * 7
    same, near = report["duplicates"], report["near_duplicates"]
    assert [[(i["split"], i["id"]) for i in group] for group in same["listed"]] == [
        [("train", "red/0.png"), ("val", "red/copy.png")]
    ]
    assert same["between_splits"] == [{"split": "val", "in": "train", "images": 1}]
    assert [(i["split"], i["id"]) for i in near["listed"][0]] == [
        ("train", "blue/ramp.png"), ("val", "blue/smaller.jpg")
    ]  # fmt: skip
    assert any("1 image of val: the same file as" in text for text in report["findings"])
    text = "".join(check_page(tmp_path / "out" / "inspect.html").text)
    assert "damaged.png" in text
    assert "val: red/copy.png" in text


def test_splits_with_categories_of_their_own(tmp_path: Path, capsys: Capture) -> None:
    """The rows of a class are of that class in each split, as training matches them by name."""
    data = write_shapes(tmp_path / "set")
    path = data / "annotations" / "instances_val.json"
    before = answer(capsys, "inspect", data, "--out", tmp_path / "before")["splits"]["val"]["classes"]
    content = json.loads(path.read_text())
    content["categories"].reverse()  # in another order
    path.write_text(json.dumps(content))
    assert answer(capsys, "inspect", data, "--out", tmp_path / "reversed")["splits"]["val"]["classes"] == before
    used = {annotation["category_id"] for annotation in content["annotations"]}
    gone = next(category for category in content["categories"] if category["id"] in used)
    content["categories"].remove(gone)
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] != gone["id"]]
    path.write_text(json.dumps(content))
    after = answer(capsys, "inspect", data, "--out", tmp_path / "fewer")["splits"]["val"]["classes"]
    assert [row["class"] for row in after] == [row["class"] for row in before]
    assert {row["class"]: row["objects"] for row in after}[gone["name"]] == 0
    content["categories"].append({"id": 99, "name": "hexagon"})
    content["annotations"].append({**content["annotations"][0], "id": 999, "category_id": 99})
    path.write_text(json.dumps(content))
    report = answer(capsys, "inspect", data, "--out", tmp_path / "more")
    assert any(text.startswith("val: ") and "hexagon" in text for text in report["findings"])
    assert "hexagon" not in [row["class"] for row in report["splits"]["train"]["classes"]]
    assert (tmp_path / "more" / "inspect.html").is_file()


def test_group_of_many_images_shows_those_of_other_splits(tmp_path: Path, capsys: Capture) -> None:
    folder = write_split(tmp_path / "set")
    picture = folder / "train" / "red" / "0.png"
    for i in range(30):
        shutil.copy(picture, folder / "train" / "red" / f"copy{i:02}.png")
    shutil.copy(picture, folder / "val" / "red" / "leaked.png")
    report = answer(capsys, "inspect", folder, "--out", tmp_path / "out")
    (group,) = report["duplicates"]["listed"]
    assert [image["split"] for image in group[:3]] == ["train", "val", "train"]
    assert group[1]["id"] == "red/leaked.png"
    assert len(group) == 20
    assert report["duplicates"]["images"] == 32
    assert "val: red/leaked.png" in "".join(check_page(tmp_path / "out" / "inspect.html").text)


def test_copies_of_images_that_are_not_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    pixels[4] = pixels[1]
    images = ArrayDataset(pixels, ["a", "b"], np.array([0, 1] * 3), "digit ")
    monkeypatch.setattr(ClassificationInspection, "open", lambda *args: {"train": images})
    report = inspect("auto", task="classify")
    assert [[image["index"] for image in group] for group in report["duplicates"]["listed"]] == [[1, 4]]


def test_channel_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for k in range(2):
            (tmp_path / "set" / split / str(k)).mkdir(parents=True)
            Image.fromarray(pixels[k]).save(tmp_path / "set" / split / str(k) / "0.png")
    train = smt_vision.inspect(tmp_path / "set")["splits"]["train"]
    values = pixels.reshape(-1, 3) / 255
    assert train["mean"] == pytest.approx(values.mean(axis=0), abs=1e-9)
    assert train["std"] == pytest.approx(values.std(axis=0), abs=1e-9)
    gray = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels]) / 255
    assert (train["gray_mean"], train["gray_std"]) == pytest.approx((gray.mean(), gray.std()), abs=1e-9)
    assert train["brightness"]["min"] == pytest.approx(gray.mean(axis=(1, 2)).min(), abs=1e-9)
    assert train["contrast"]["max"] == pytest.approx(gray.std(axis=(1, 2)).max(), abs=1e-9)
    assert train["gray_images"] == 0


def test_gray_images_have_equal_channels_in_every_pixel(tmp_path: Path) -> None:
    stripes = np.zeros((30, 30, 3), dtype=np.uint8)
    for channel in range(3):  # equal histograms
        stripes[:, 10 * channel : 10 * channel + 10, channel] = 255
    for split in ("train", "val"):
        for name, pixels in (("a", stripes), ("b", stripes[..., :1].repeat(3, axis=2))):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "set" / split / name / "0.png")
    assert smt_vision.inspect(tmp_path / "set")["splits"]["train"]["gray_images"] == 1


def write_boxes(folder: Path, boxes: list[tuple[int, int, int, int]]) -> Path:
    """One image of 200 x 200 pixels per split with these boxes (x, y, width, height), and one without."""
    annotations = [
        {"id": k + 1, "image_id": 1, "category_id": 1 + k % 2, "bbox": box, "area": box[2] * box[3], "iscrowd": k == 0}
        for k, box in enumerate(boxes)
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in (1, 2)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "none"}]
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).mkdir()
        for i in (1, 2):
            noise = np.random.default_rng((i, len(split))).integers(0, 256, (200, 200, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / split / f"{i}.png")
        (folder / "annotations" / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return folder


def test_advice_for_imbalance_names_fields_that_the_task_has(tmp_path: Path) -> None:
    folder = write_boxes(tmp_path / "set", [(5 * i, 5, 4, 4) for i in range(22)])
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        row["category_id"] = 1 + (row["id"] == 2)
    path.write_text(json.dumps(content))
    (found,) = [text for text in smt_vision.inspect(folder)["findings"] if "rarest" in text]
    advice = "see loss.class_weights and sampling.method"
    assert found == f"train: the most frequent class has 20 times the objects of the rarest: {advice}"
    groups = recipe_class("detect").groups()
    assert "class_weights" in groups["loss"].__dataclass_fields__
    assert "method" in groups["sampling"].__dataclass_fields__


def test_objects_by_size_and_place(tmp_path: Path, capsys: Capture) -> None:
    boxes = [(0, 0, 200, 200), (0, 0, 31, 31), (10, 10, 32, 32), (100, 100, 95, 95), (90, 100, 96, 96)]  # one crowd
    report = answer(capsys, "inspect", write_boxes(tmp_path / "set", boxes), "--out", tmp_path / "out")
    train = report["splits"]["train"]
    assert (report["task"], train["objects"], train["crowds"], train["images_without_objects"]) == ("detect", 4, 1, 1)
    assert train["object_sizes"] == {"small": 1, "medium": 2, "large": 1}
    assert train["objects_per_image"] == {"mean": 2.0, "max": 4}
    assert [(row["class"], row["images"], row["objects"]) for row in train["classes"]] == [
        ("a", 1, 2), ("b", 1, 2), ("none", 0, 0)
    ]  # fmt: skip
    centers = np.array(train["centers"])  # rows from the top, cells of 12.5 pixels
    assert {(y, x): n for (y, x), n in np.ndenumerate(centers) if n} == {(1, 1): 1, (2, 2): 1, (11, 11): 2}
    assert "train: 1 class without objects: none" in report["findings"]
    check_page(tmp_path / "out" / "inspect.html")


@pytest.mark.parametrize("binary", [False, True])
def test_pixels_of_label_maps(tmp_path: Path, binary: bool, capsys: Capture) -> None:
    data = write_scenes(tmp_path / "set", binary=binary)
    broken = data / ("masks" if binary else "labels") / "train" / "0.png"
    Image.new("L", (5, 5)).save(broken)  # another size than its image
    options = ("--segment.kind", "binary") if binary else ()
    report = answer(capsys, "inspect", data, "--out", tmp_path / "out", *options)
    train = report["splits"]["train"]
    assert report["task"] == "segment"
    assert [each["id"] for each in train["unreadable"]] == ["0.png"]
    maps = [np.asarray(Image.open(broken.with_name(f"{i}.png"))) for i in (1, 2, 3)]
    together = np.concatenate([labels.ravel() for labels in maps])
    labeled = together if binary else together[together != 255]
    ids = [255] if binary else [0, 1, 2]
    assert [row["pixels"] for row in train["classes"]] == pytest.approx([100 * (labeled == k).mean() for k in ids])
    assert [row["images"] for row in train["classes"]] == [3] * len(ids)
    assert train["ignored_pixels"] == pytest.approx(0 if binary else 100 * (together == 255).mean())
    check_page(tmp_path / "out" / "inspect.html")


def test_what_is_known_of_a_sample_of_label_maps_is_not_said_of_the_split(tmp_path: Path) -> None:
    """The last class is in one label map of eight, which the sample lacks."""
    for split in ("train", "val"):
        for i in range(8):
            for kind in ("images", "labels"):
                (tmp_path / "set" / kind / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(tmp_path / "set" / "images" / split / f"{i}.png")
            labels = np.full((8, 8), 255, dtype=np.uint8)
            labels[0, :4] = 0
            labels[1, 0] = 2 if i == 7 else 1
            Image.fromarray(labels).save(tmp_path / "set" / "labels" / split / f"{i}.png")
    (tmp_path / "set" / "classes.json").write_text(json.dumps(["road", "car", "rare"]))
    report = smt_vision.inspect(tmp_path / "set", tmp_path / "out", max_images=3, seed=1)
    sample = "in a sample of 3 of its 8 images"
    assert report["splits"]["train"]["label_maps"] == 3
    assert f"train: 1 class without pixels ({sample}): rare" in report["findings"]
    assert f"train: 92.2 % of the pixels are ignored ({sample})" in report["findings"]
    page = (tmp_path / "out" / "inspect.html").read_text()
    assert "train: classes are counted in the label maps of 3 of 8 images" in page
    every = smt_vision.inspect(tmp_path / "set")
    assert "train: 92.2 % of the pixels are ignored" in every["findings"]
    assert not [text for text in every["findings"] if "sample" in text or "without pixels" in text]


def test_a_sample_is_seeded_and_stated(tmp_path: Path, capsys: Capture) -> None:
    data = write_split(tmp_path / "set")
    first = answer(capsys, "inspect", data, "--out", tmp_path / "a", "--max_images", "5")
    again = smt_vision.inspect(data, max_images=5)
    other = smt_vision.inspect(data, max_images=5, seed=1)
    assert first == again
    assert first["splits"]["train"]["mean"] != other["splits"]["train"]["mean"]
    assert (first["splits"]["train"]["images"], first["splits"]["train"]["read"]) == (24, 5)
    assert [row["images"] for row in first["splits"]["train"]["classes"]] == [8, 8, 8]  # in all images
    assert "5 images were read, sampled at random with seed 0" in (tmp_path / "a" / "inspect.html").read_text()


def test_other_layouts_and_sources(tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "set"), "gztar", write_split(tmp_path / "folder"))
    seen: list[tuple[int, int]] = []
    report = smt_vision.inspect(archive, on_progress=lambda *numbers: seen.append(numbers))
    assert report["splits"]["train"]["images"] == 24
    assert seen[-1] == (36, 36)
    only_val = write_scenes(tmp_path / "scenes")
    for kind in ("images", "labels"):
        shutil.rmtree(only_val / kind / "train")
    report = smt_vision.inspect(only_val)
    assert list(report["splits"]) == ["val"]
    assert [text.partition(":")[0] for text in report["findings"] if "no images in this split" in text] == ["train"]
    only_train = write_scenes(tmp_path / "more")
    for kind in ("images", "labels"):
        shutil.rmtree(only_train / kind / "val")
    findings = smt_vision.inspect(only_train)["findings"]
    assert [text.partition(":")[0] for text in findings if "no images in this split" in text] == ["val"]
    only_train = write_shapes(tmp_path / "shapes", images=10)
    (only_train / "annotations" / "instances_val.json").unlink()
    report = smt_vision.inspect(only_train, overrides={"input": {"val_fraction": 0.2}})
    assert [facts["images"] for facts in report["splits"].values()] == [8, 2]  # held out, as in training
    assert report["duplicates"]["groups"] == 0


def test_a_label_file_of_several_labels_and_images_of_bands(tmp_path: Path, capsys: Capture) -> None:
    bands = np.random.default_rng(0).integers(0, 60_000, (6, 20, 24, 5), dtype=np.uint16)
    lines = ["path,label,split"]
    for i, image in enumerate(bands):
        np.save(tmp_path / f"{i}.npy", image)
        lines.append(f"{i}.npy,{'a|b' if i % 2 else 'a'},{'val' if i > 3 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = ("--classify.multi_label", "true", "--input.channels", "5")
    report = answer(capsys, "inspect", tmp_path / "labels.csv", "--out", tmp_path / "out", *options)
    train = report["splits"]["train"]
    assert [(row["class"], row["images"]) for row in train["classes"]] == [("a", 4), ("b", 2)]
    values = bands[:4].reshape(-1, 5) / 65535
    assert train["mean"] == pytest.approx(values.mean(axis=0), abs=1e-6)
    assert train["std"] == pytest.approx(values.std(axis=0), abs=1e-6)
    assert not train["unreadable"]
    check_page(tmp_path / "out" / "inspect.html")


def test_a_set_without_a_readable_image(tmp_path: Path, capsys: Capture) -> None:
    data = write_split(tmp_path / "set", train=2, val=1)
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    report = answer(capsys, "inspect", data, "--out", tmp_path / "out")
    assert "train: no image can be used" in report["findings"]
    assert len(report["splits"]["train"]["unreadable"]) == 6
    check_page(tmp_path / "out" / "inspect.html")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing"], r"nothing.*does not exist"),
        (
            ["set", "--segment.kind", "binary"],
            r"segment.kind does not apply to task classify: expected one of input.val_fraction",
        ),
        (["set", "--task", "detect"], r"has no annotations for train; expected COCO layout"),
        (["set", "--task", "segment"], r"no folders of images and label maps"),
        (["set", "--max_images", "0"], r"invalid --max_images 0: expected"),
        (["set", "--input.val_fraction", "2"], r"input\.val_fraction[ =]2"),
    ],
)
def test_refused(
    arguments: list[str], expected: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_split(tmp_path / "set", train=1, val=1)
    write_scenes(tmp_path / "scenes")
    error = refusal(capsys, 1, "inspect", *arguments)
    assert re.search(expected, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "inspect").exists()


def test_hostile_names_are_shown_and_nothing_else(tmp_path: Path, capsys: Capture) -> None:
    names = [name.replace("/", "_") for name in (*HOSTILE.values(), 'x"><script>alert(1)<_script>', 'src="0.png"')]
    noise = np.random.default_rng(0)
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            pixels = noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}{name}.png")
        shutil.copy(tmp_path / "set" / name / f"0{name}.png", tmp_path / "set" / name / f"copy{name}.png")
        (tmp_path / "set" / name / f"damaged{name}.png").write_bytes(b"")
    report = answer(capsys, "inspect", tmp_path / "set", "--out", tmp_path / "out")
    assert {row["class"] for row in report["splits"]["train"]["classes"]} == set(names)
    page = check_page(tmp_path / "out" / "inspect.html")
    assert {printable(name) for name in names} <= set(page.text)
    assert sum(len(facts["unreadable"]) for facts in report["splits"].values()) == len(names)


def test_near_duplicates_of_flat_and_of_different_pictures() -> None:
    noise = np.random.default_rng(0)
    cells = [Image.fromarray(noise.integers(0, 256, (8, 9, 3), dtype=np.uint8)) for _ in range(30)]
    pictures = [each.resize((180, 160), Image.Resampling.BICUBIC) for each in cells]
    pictures += [each.resize((70, 60), Image.Resampling.BILINEAR) for each in pictures[:3]]
    pictures += [Image.new("RGB", (50, 50), (level,) * 3) for level in (0, 5, 200)]
    values = np.array([measure(picture) for picture in pictures], dtype=measures(3))
    groups = [group.tolist() for group in near_duplicates(values["hash"], values["cells"])]
    assert groups == [[0, 30], [1, 31], [2, 32], [33, 34]]


def test_thousands_of_frames_of_a_still_camera_are_one_group_in_no_time() -> None:
    noise = np.random.default_rng(0)
    frames = (noise.integers(30, 220, 72) + noise.integers(-1, 2, (5000, 72))).astype(np.uint8)
    rows = frames.reshape(-1, 8, 9)
    hashes = np.packbits(rows[:, :, 1:] > rows[:, :, :-1], axis=2).reshape(-1, 8).copy().view(np.uint64)[:, 0]
    assert [len(group) for group in near_duplicates(hashes, frames)] == [5000]  # not a loop over 12 million pairs


# Pages


def test_pictures_are_part_of_a_page_and_reduced(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 4000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    (tmp_path / "chart.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    forged = markdown('<img alt="" src="large.png">')
    text = f'![a large "one"](large.png)\n\n![chart](chart.svg)\n\n{forged}'
    page = html_page("<title>\n", text, tmp_path)
    pictures: list[Any] = re.findall(r'src="data:image/([\w+]+);base64,([^"]*)"', page)
    assert [kind for kind, _ in pictures] == ["jpeg", "svg+xml"]
    with Image.open(io.BytesIO(base64.b64decode(pictures[0][1]))) as image:
        assert image.size == (PICTURE_SIZE[0], 160)
    assert "<title>&lt;title&gt;\\n</title>" in page
