"""A trained classifier in use from Python: images of every kind, order, batches, sources."""

import csv
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import smt_vision
from command import run
from smt_vision import checkpoints, load
from smt_vision.data.files import find_images
from smt_vision.precision import has_bf16
from smt_vision.registry import CIFAR10_CLASSES
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task, predictor
from smt_vision.tasks.classification.config import ClassificationInput, ClassifyConfig
from smt_vision.tasks.classification.predictor import Classifier
from tiny_run import COLORS, tiny


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    found = load(trained)
    assert isinstance(found, Classifier)
    return found


def picture(color: str = "red", size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.new("RGB", size, COLORS[color])


def test_images_that_are_too_small_for_the_network(trained: Path, colored: Path) -> None:
    with pytest.raises(ValueError, match=r"input\.size=1: .*larger"):
        load(trained, overrides={"input": {"size": 1}})
    with pytest.raises(ValueError, match=r"input\.size=1: .*larger"):
        get_task("classify").training(tiny(colored, input=dict(size=1)))
    assert load(trained, overrides={"input": {"size": 2}})([picture()])[0].label in COLORS


def test_what_is_loaded(classifier: Classifier, trained: Path) -> None:
    assert classifier.classes == tuple(COLORS)
    assert (classifier.input.size, classifier.input.channels) == (32, 3)
    assert not classifier.model.training
    last = load(str(trained / "last.pt"))
    assert last.classes == classifier.classes


@pytest.mark.parametrize("color", COLORS)
def test_pictures_and_paths(classifier: Classifier, color: str, colored: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture(color).save(path)
    by_path, by_text, by_image = classifier([path, str(path), picture(color)])
    assert by_path.label == by_image.label == color
    assert by_path.id == by_text.id == str(path)
    assert by_image.id == "2"  # its index
    for one, other in zip(by_path.top, by_image.top, strict=True):
        assert one[0] == other[0]
        assert one[1] == pytest.approx(other[1], rel=1e-5)
    assert sum(value for _, value in by_path.top) == pytest.approx(1, abs=1e-5)
    assert [value for _, value in by_path.top] == sorted((value for _, value in by_path.top), reverse=True)
    assert (by_path.label, by_path.score) == by_path.top[0]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16"]
)
def test_images_of_any_mode(classifier: Classifier, mode: str) -> None:
    gray = mode in ("1", "L", "LA", "I", "I;16")
    image = Image.new("L", (20, 30), 90) if gray else picture("green", (20, 30))
    if mode == "LAB":
        image = Image.new("LAB", (20, 30), (180, 40, 190))  # a green
    else:
        image = image.convert("RGBA" if mode == "PA" else image.mode).convert(mode)
    (prediction,) = classifier([image])
    assert prediction.error is None
    assert prediction.label in classifier.classes
    if not gray:
        assert prediction.label == "green"


@pytest.mark.parametrize("orientation", [3, 6])
def test_image_in_memory_gives_the_result_of_its_file(classifier: Classifier, orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        by_path, by_image = classifier([tmp_path / "x.png", image], batch_size=1)
    assert by_path.top == by_image.top
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as image:
        by_path, by_image = classifier([tmp_path / "cut.png", image])
    assert by_image.error is not None
    assert by_image.error.removeprefix("1: ") == str(by_path.error).removeprefix(f"{tmp_path / 'cut.png'}: ")


def test_unreadable_image_has_an_error_and_the_rest_are_predicted(classifier: Classifier) -> None:
    floats = Image.new("F", (8, 8))  # no agreed range
    first, second, third = classifier([picture("red"), floats, picture("blue")])
    assert (first.label, second.label, third.label) == ("red", None, "blue")
    assert second.error is not None
    assert second.error.startswith("1: ")
    assert (second.score, second.top) == (0.0, ())


def test_only_unreadable_images(classifier: Classifier, tmp_path: Path) -> None:
    predictions = classifier([tmp_path / "none.png"] * 3, batch_size=2)
    assert [p.label for p in predictions] == [None] * 3
    assert all("no such file" in str(p.error) for p in predictions)
    assert classifier([]) == []


def test_tiny_and_long_images(classifier: Classifier) -> None:
    sizes = [(1, 1), (1, 400), (400, 1), (33, 31)]
    predictions = classifier([picture("blue", size) for size in sizes])
    assert [p.label for p in predictions] == ["blue"] * 4


def test_batch_size_changes_only_rounding_and_order_is_kept(classifier: Classifier, colored: Path) -> None:
    paths = sorted((colored / "val").rglob("*.png"), key=lambda path: path.name)
    expected = classifier(paths)
    assert [p.id for p in expected] == [str(path) for path in paths]
    assert [p.label for p in expected] == [path.parent.name for path in paths]
    for batch_size in (1, 5, 12):
        for one, other in zip(classifier(paths, batch_size), expected, strict=True):
            assert (one.id, one.label) == (other.id, other.label)
            assert one.score == pytest.approx(other.score, rel=1e-4)


def test_stream_reads_no_more_than_a_batch_ahead(classifier: Classifier) -> None:
    read = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            read.append(1)
            yield picture()

    stream = classifier.stream(endless(), batch_size=4)
    assert [next(stream).label for _ in range(6)] == ["red"] * 6
    assert len(read) == 8


@pytest.mark.parametrize("broken", [None, 3])
def test_files_are_prepared_by_threads_in_order(
    classifier: Classifier, colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int | None
) -> None:
    threads: set[str] = set()
    prepare = Classifier._prepare

    def recorded(self: Classifier, i: int, image: Any) -> Any:
        threads.add(threading.current_thread().name)
        return prepare(self, i, image)

    monkeypatch.setattr(Classifier, "_prepare", recorded)
    files = sorted((colored / "val").rglob("*.png"))[:7]
    if broken is not None:
        files[broken] = tmp_path / "missing.png"
    found = classifier(files, batch_size=2)
    assert [result.id for result in found] == list(map(str, files))
    assert [result.error is not None for result in found] == [i == broken for i in range(7)]
    assert any(name.startswith("images") for name in threads)
    threads.clear()
    one_by_one = classifier(iter(files), batch_size=2)  # may close or remove them
    assert threads == {threading.main_thread().name}
    assert [(result.label, result.score) for result in found] == [(each.label, each.score) for each in one_by_one]
    threads.clear()
    opened = picture()
    classifier([opened, opened])  # which only one thread may decode
    assert threads == {threading.main_thread().name}


@pytest.mark.parametrize(("top_k", "returned"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_top_k_is_at_most_the_number_of_classes(classifier: Classifier, top_k: int, returned: int) -> None:
    (prediction,) = classifier([picture()], top_k=top_k)
    assert len(prediction.top) == returned


def test_device(trained: Path) -> None:
    classifier = load(trained, device="cpu")
    assert classifier.device == torch.device("cpu")
    for precision in (None, "auto"):
        with pytest.raises(ValueError, match="invalid device='nonsense'"):
            load(trained, device="nonsense", precision=precision)  # type: ignore[arg-type]
    for device in ("xpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device={device} cannot be used here .*; use cpu"):
            load(trained, device=device)


def test_model_on_another_device_is_exported_from_the_cpu(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load(trained)
    own = classifier.model
    classifier.device = torch.device("meta")  # as if it were a GPU
    seen: list[Any] = []
    monkeypatch.setattr(predictor, "export_model", lambda form, *args, **options: seen.append(form.model))
    classifier.export(tmp_path / "x", "torch")
    assert seen[0] is not own
    assert {parameter.device.type for parameter in seen[0].parameters()} == {"cpu"}


def test_outputs_that_are_not_finite_are_errors(trained: Path, tmp_path: Path) -> None:
    """In the file, and where an image or a precision makes them so."""
    state = torch.load(trained / "best.pt", weights_only=True)
    name = next(name for name, value in state["model"].items() if value.ndim == 4)
    state["model"][name][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=rf"nan\.pt: 1 weights are infinite or NaN, e\.g\. {re.escape(name)}"):
        load(tmp_path / "nan.pt")
    state = torch.load(trained / "best.pt", weights_only=True)
    statistic = next(name for name in state["model"] if name.endswith("running_var"))
    state["model"][statistic][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=rf"nan\.pt: 1 weights are infinite or NaN, e\.g\. {re.escape(statistic)}"):
        load(tmp_path / "nan.pt")
    classifier = load(trained)
    model = classifier.model
    classifier.model = torch.nn.Identity()
    outputs = torch.tensor([[0.0, 1.0, 2.0], [0.0, torch.nan, 2.0]])
    classifier.model.forward = lambda images: outputs[: len(images)]
    good, bad = classifier([picture(), picture()])
    assert (good.class_id, good.error) == (2, None)
    assert (bad.label, bad.class_id, bad.top) == (None, None, ())
    assert (
        bad.error == "1: the model's outputs are not finite; its weights may be damaged, or its training may "
        "have diverged"
    )
    classifier.model = model


def test_grayscale_models_take_color_images() -> None:
    model = timm.create_model("smt_atto", in_chans=1, num_classes=2, stem_stride=2)
    input = ClassificationInput(size=32, channels=1, mean=(0.5,), std=(0.5,))
    classifier = Classifier(model, ModelSpec("classify", "smt_atto", ("a", "b"), input, head=ClassifyConfig()))
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    color = Image.fromarray(noise)
    found, expected = classifier([color, color.convert("L")])
    assert (found.label, found.score) == (expected.label, pytest.approx(expected.score, abs=1e-6))


def test_unusable_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_model"):
        load("no_such_model")
    with pytest.raises(FileNotFoundError, match=r"best\.pt"):
        load(tmp_path)
    torch.save({"w": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        load(tmp_path / "other.pth")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pt"):
        load(tmp_path / "text.pt")


def test_find_images(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/1.jpg", "a.webp", "b/c/3.tiff"]
    for name in [*names, "b/notes.txt", "b/noending"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.webp", "b/1.jpg", "b/2.PNG", "b/c/3.tiff"]
    # each file once, however it is spelled
    again = find_images([tmp_path / "b" / "c" / ".." / "1.jpg", tmp_path, tmp_path / "b", os.path.relpath(tmp_path)])
    assert [os.path.realpath(p) for p in again] == [str(found[k].resolve()) for k in (1, 0, 2, 3)]
    # files are taken whatever their suffix, in the order given
    assert find_images([tmp_path / "b" / "notes.txt", str(tmp_path / "a.webp")])[0].name == "notes.txt"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"/empty\b"):
        find_images([tmp_path / "a.webp", tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match=r"/none\b"):
        find_images([tmp_path / "none"])


def _no_network(*args: object, **kwargs: object) -> None:
    raise AssertionError("the network was used")


def test_packaged_weights_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    model = timm.create_model("smt_femto.cifar10", pretrained=True)
    assert sum(p.numel() for p in model.parameters()) <= 3e6
    classifier = load("smt_femto.cifar10")
    assert classifier.classes == CIFAR10_CLASSES
    assert (classifier.input.size, classifier.input.crop_pct) == (32, 1.0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    (prediction,) = classifier([image], top_k=10)
    assert {label for label, _ in prediction.top} == set(CIFAR10_CLASSES)


def test_packaged_weights_classify_cifar10(shared: Path) -> None:
    images: list[Image.Image] = []
    labels: list[str] = []
    with tarfile.open(shared / "data" / "cifar10.tar.gz") as archive:
        for member in archive:
            split, _, rest = member.name.removeprefix("./").partition("/")
            label = rest.partition("/")[0]
            if split.endswith("test") and member.isfile() and labels.count(label) < 20:
                images.append(Image.open(io.BytesIO(archive.extractfile(member).read())))
                labels.append(label)
    assert len(images) == 200
    predicted = [prediction.label for prediction in load("smt_femto.cifar10")(images)]
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    assert right >= 155  # 85 % on the full test set; three standard deviations below that on 200 images


@pytest.mark.pictures
def test_save_predictions(classifier: Classifier, colored: Path, tmp_path: Path) -> None:
    paths = [next((colored / "val" / color).iterdir()) for color in COLORS]
    results = classifier([*paths, tmp_path / "missing.png", picture("red")])
    table, sheet = classifier.save(results, tmp_path / "found")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [*map(str, paths), str(tmp_path / "missing.png"), "4"]
    assert [row["label"] for row in rows] == ["blue", "green", "red", "", "red"]
    assert [row["class_id"] for row in rows] == ["0", "1", "2", "", "2"]
    assert float(rows[0]["score"]) == pytest.approx(results[0].score, abs=1e-6)
    assert "missing.png" in rows[3]["error"]
    with Image.open(sheet) as image:
        assert image.width > 100


def test_predict_in_one_call(trained: Path) -> None:
    (prediction,) = smt_vision.predict(trained, [picture("green")], top_k=1)
    assert (prediction.label, prediction.class_id, len(prediction.top)) == ("green", 1, 1)


def test_evaluate_from_python(trained: Path, colored: Path, tmp_path: Path) -> None:
    best = checkpoints.load(trained / "best.pt").state["metrics"]
    progress: list[tuple[int, int]] = []
    metrics = smt_vision.evaluate(
        trained, batch_size=5, workers=0, on_progress=lambda done, total: progress.append((done, total))
    )
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert (metrics["data"], metrics["count"], metrics["top1"]) == (str(colored), 12, best["top1"])
    assert metrics["loss"] == pytest.approx(best["loss"], rel=1e-5)
    (tmp_path / "val").symlink_to(colored / "train")
    other = smt_vision.evaluate(trained, str(tmp_path), workers=0, overrides={"input": {"size": 48}})
    assert (other["data"], other["count"]) == (str(tmp_path), 24)
    assert other["input"].startswith("48 px")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "red").symlink_to(colored / "val" / "red")
    assert smt_vision.evaluate(trained, str(tmp_path / "one"), workers=0)["count"] == 4
    with pytest.raises(ValueError, match=r"smt_femto\.cifar10.*data"):
        smt_vision.evaluate("smt_femto.cifar10", workers=0)


def test_overrides(trained: Path) -> None:
    classifier = load(trained, overrides={"input": {"size": 64, "crop_pct": None}})
    assert isinstance(classifier, Classifier)
    assert (classifier.input.size, classifier.input.crop_pct) == (64, 1.0)  # None keeps the model's own
    assert classifier.transform(picture()).shape == (3, 64, 64)
    for group, name in (("input", "interpolation"), ("input", "speed"), ("detect", "score_threshold")):
        with pytest.raises(ValueError, match=rf"{group}\.{name}\b.*'classify'.*input\.size"):
            load(trained, overrides={group: {name: 1}})


def test_public_names_are_imported_on_first_use() -> None:
    code = (
        "import sys, smt_vision\n"
        "heavy = {'lightning_fabric', 'matplotlib', 'smt_vision.tasks.load', 'smt_vision.engine.loop'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "assert all(getattr(smt_vision, name) is not None for name in smt_vision.__all__)\n"
        "assert sorted(smt_vision.__all__) == sorted(dir(smt_vision))\n"
        "import smt_vision.engine.loop\n"
        "assert not [name for name in sys.modules if 'tensorboard.summary' in name]  # until something is written\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        smt_vision.nothing  # noqa: B018


def test_inference_in_bfloat16(trained: Path, colored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`auto` takes bfloat16 on a processor that has instructions for it, and says so."""
    paths = sorted((colored / "val").rglob("*.png"))[:4]
    exact, half, auto = (smt_vision.load(trained, precision=precision) for precision in ("fp32", "bf16", "auto"))
    assert [predictor.precision for predictor in (exact, half)] == ["fp32", "bf16"]
    assert auto.precision == ("bf16" if has_bf16() else "fp32")
    differences = [abs(a.score - b.score) for a, b in zip(exact(paths), half(paths), strict=True)]
    assert 0 < max(differences) < 0.02
    assert smt_vision.load(trained)(paths) == exact(paths)
    with pytest.raises(ValueError, match=r"loaded in torch\.bfloat16; load it without precision"):
        half.export(colored / "no", "torch")
    with pytest.raises(ValueError, match="precision='fp16': expected one of auto, fp32, bf16"):
        smt_vision.load(trained, precision="fp16")  # type: ignore[arg-type]
    metrics = smt_vision.evaluate(trained, colored, precision="bf16", workers=0)
    assert (metrics["precision"], metrics["count"]) == (
        "bf16",
        smt_vision.evaluate(trained, colored, workers=0)["count"],
    )
    for command in (["predict", trained, paths[0]], ["eval", trained, "--data", colored, "--workers", "0"]):
        assert run(*command, "--precision", "auto") == 0
        has = "has" if has_bf16() else "has no"
        assert f"precision: {auto.precision} (this cpu {has} instructions for bfloat16)" in capsys.readouterr().out
