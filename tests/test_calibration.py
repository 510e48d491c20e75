"""Temperature scaling: the fit, ``smt calibrate``, and where the temperature goes from there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import smt_vision
from blank_pictures import without_report
from command import answer, refusal, run
from smt_vision import checkpoints
from smt_vision.engine.lock import FolderLock
from smt_vision.engine.loop import train
from smt_vision.tasks.classification.calibration import CalibrationMetric, fit_temperature
from smt_vision.tasks.classification.config import ClassifyConfig
from tiny_run import COLORS, tiny, write_images

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(multi_label: bool, images: int = 20_000, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Calibrated logits, and targets that are drawn from their scores."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(images, classes, generator=generator)
    if multi_label:
        return logits, torch.bernoulli(logits.sigmoid(), generator=generator).long()
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


# --- the fit


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_factor_of_the_logits_is_found(multi_label: bool, factor: float) -> None:
    logits, target = drawn(multi_label)
    assert fit_temperature(factor * logits, target) == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("multi_label", [False, True])
def test_loss_is_lowest_at_the_temperature(multi_label: bool) -> None:
    logits, target = drawn(multi_label, images=300)

    def loss(temperature: float) -> float:
        z = logits.double() / temperature
        return float(
            F.binary_cross_entropy_with_logits(z, target.double()) if multi_label else F.cross_entropy(z, target)
        )

    best = fit_temperature(logits, target)
    assert loss(best) < min(loss(0.999 * best), loss(1.001 * best))


def test_metrics_before_and_after() -> None:
    logits, target = drawn(False)
    metric = CalibrationMetric(4, ClassifyConfig(temperature=2.0), torch.device("cpu"))
    metric.update(5 * logits, {"target": target, "index": torch.arange(len(logits))})
    found = metric.compute()
    assert found["temperature"] == pytest.approx(5, rel=0.03)
    assert found["before"]["loss"] == pytest.approx(F.cross_entropy(2.5 * logits, target).item(), rel=1e-5)
    assert found["before"]["ece"] > 5 > 1 > found["after"]["ece"]
    assert found["before"]["top1"] == found["after"]["top1"]


def test_no_temperature_fits() -> None:
    target = torch.tensor([0, 1, 0])
    right = torch.eye(2)[target]
    with pytest.raises(ValueError, match=r"3 images.*incorrectly"):
        fit_temperature(right, target)
    with pytest.raises(ValueError, match=r"3 images.*chance"):
        fit_temperature(-right, target)
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(right * float("nan"), target)


# --- the command


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of each of three classes; a quarter has the color of another class, so that some are mistaken."""
    folder = write_images(tmp_path_factory.mktemp("images") / "all", COLORS, [40] * 3)
    generator = np.random.default_rng(7)
    for name, other in zip(COLORS, (*list(COLORS)[1:], "blue"), strict=True):
        for i in range(10):
            noise = generator.integers(-40, 41, (40, 40, 3))
            pixels = np.clip(np.array(COLORS[other]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out a third of the images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with without_report():
        train(tiny(images, epochs=2, batch_size=16, input={"val_fraction": 0.33}), folder, display=False)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_run_is_calibrated_on_the_images_that_it_held_out(
    copy: Path, tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    before = answer(capsys, "eval", copy, "--workers", "0")
    assert before["calibrated_on"] == 0
    weights = checkpoints.load(copy).weights
    found = answer(capsys, "calibrate", copy, "--workers", "0")
    assert found["file"] == str(copy / "best.pt")
    assert found["count"] == before["count"]
    assert found["before"] == {name: pytest.approx(before[name], rel=1e-6) for name in ("top1", "loss", "ece")}
    assert abs(found["temperature"] - 1) > 0.01
    stored = checkpoints.load(copy)
    assert stored.spec is not None
    assert stored.spec["head"]["temperature"] == found["temperature"]
    assert all(torch.equal(value, weights[name]) for name, value in stored.weights.items())

    after = answer(capsys, "eval", copy, "--workers", "0")
    assert found["after"] == {name: pytest.approx(after[name], rel=1e-6) for name in ("top1", "loss", "ece")}
    assert after["top1"] == before["top1"]
    assert after["loss"] < before["loss"]
    assert after["calibrated_on"] == after["count"]
    assert "calibrated on" in caplog.text

    # The scores of predictions are calibrated too.
    image = next(Path(found["data"]).rglob("*.png"))
    model = smt_vision.load(copy)
    with torch.no_grad():
        logits = model.model(model.transform(Image.open(image))[None])
    scores = (logits / found["temperature"]).softmax(-1)
    assert model([image])[0].score == pytest.approx(float(scores.max()), rel=1e-5)
    # A second time, nothing changes.
    assert answer(capsys, "calibrate", copy, "--workers", "0")["temperature"] == found["temperature"]


def test_run_that_is_calibrated_can_be_resumed(copy: Path, capsys: Capture, no_report: None) -> None:
    answer(capsys, "calibrate", copy, "--workers", "0")
    assert answer(capsys, "train", "--resume", copy)["step"] > 0


def test_other_file(
    copy: Path,
    images: Path,
    tmp_path: Path,
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = (copy / "best.pt").read_bytes()
    found = answer(capsys, "calibrate", copy, "--workers", "0", "--out", tmp_path / "new.pt")
    assert "fitted on 39 images and depends on chance" in caplog.text
    caplog.clear()
    monkeypatch.setattr("smt_vision.engine.calibration.FEW_IMAGES", 39)
    assert (copy / "best.pt").read_bytes() == original
    loaded = smt_vision.load(tmp_path / "new.pt")
    assert loaded.config.temperature == found["temperature"]
    assert loaded.used_images is not None
    assert run("calibrate", tmp_path / "new.pt", "--data", images, "--workers", "0") == 0  # in place
    assert "temperature" in capsys.readouterr().out
    assert "chance" not in caplog.text


def test_published_weights_are_written_to_a_new_file(tmp_path: Path, capsys: Capture) -> None:
    data, source = tmp_path / "images", smt_vision.load("smt_femto.cifar10")
    for i, color in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (120, 120, 120), (230, 230, 230)]):
        (file,) = write_images(tmp_path / str(i), {"x": color}, [1], seed=i).rglob("*.png")
        predicted = source([file])[0].top
        label = predicted[1 if i == 0 else 0][0]  # one is wrong
        (data / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, data / label / f"{i}.png")
    error = refusal(capsys, 1, "calibrate", "smt_femto.cifar10", "--data", data, "--workers", "0")
    assert "--out" in error
    new = tmp_path / "new.pt"
    found = answer(capsys, "calibrate", "smt_femto.cifar10", "--data", data, "--workers", "0", "--out", new)
    loaded = smt_vision.load(new)
    assert loaded.config.temperature == found["temperature"]
    assert loaded.classes == source.classes
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.model(image), source.model(image))


def test_images_that_were_trained_on_are_refused(copy: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    seen = tmp_path / "seen"
    for name in COLORS:
        shutil.copytree(images / name, seen / "sub" / name)
    shutil.copytree(seen / "sub", seen / "more")  # twice, so that it is not the run's dataset
    state = checkpoints.load(copy).state
    used = {**state["images"], "val": torch.zeros(0, dtype=torch.int64)}
    checkpoints.save({**state, "images": used}, copy / "best.pt")
    error = refusal(capsys, 1, "calibrate", copy, "--data", seen / "sub", "--workers", "0")
    assert "trained on 81 of the 120 images" in error
    assert checkpoints.load(copy).spec["head"]["temperature"] == 1.0  # type: ignore[index]


def test_models_and_files_that_cannot_be_calibrated(copy: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    def error(*arguments: str | Path) -> str:
        return refusal(capsys, 1, "calibrate", *arguments, "--workers", "0")

    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "manifest.json").write_text("{}")  # nothing of it is read
    assert "is an export" in error(tmp_path / "exported", "--data", images)
    for name in ("new.safetensors", "new"):
        assert "expected a .pt file" in error(copy, "--out", tmp_path / name)
    assert "exists" in error(copy, "--out", copy / "last.pt")
    assert "no folder" in error(copy, "--out", tmp_path / "missing" / "new.pt")
    assert "neither" in error(tmp_path / "nothing", "--data", images, "--out", tmp_path / "new.pt")
    with FolderLock(copy):
        assert "in this folder" in error(copy)
    assert not (tmp_path / "new.pt").exists()


def test_detector_has_no_temperature(detector_run: Path, capsys: Capture) -> None:
    assert "a detector" in refusal(capsys, 1, "calibrate", detector_run, "--workers", "0")
