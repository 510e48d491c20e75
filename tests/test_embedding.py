"""Features of images, and the duplicates that they find."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import smt_vision
from command import answer, refusal
from drawn_sets import write_scenes, write_shapes
from smt_vision import checkpoints, load
from smt_vision.data.fingerprint import UsedImages
from smt_vision.embedding.embeddings import embed
from smt_vision.embedding.report import search, write_report
from smt_vision.engine.loop import train
from smt_vision.tasks.classification.data.hub import ArrayDataset
from tiny_run import COLORS, tiny, write_images, write_split

pytestmark = pytest.mark.pictures


def textured(path: Path, seed: int) -> Path:
    """An image that is unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((48, 48), Image.Resampling.BICUBIC).save(path)
    return path


def test_features_are_what_the_classifier_reads(trained: Path, colored: Path) -> None:
    progress: list[tuple[int, int]] = []
    found = smt_vision.embed(trained, colored, batch_size=5, on_progress=lambda *done: progress.append(done))
    assert progress[-1] == (36, 36)
    assert (found.splits.count("train"), found.splits.count("val"), found.unreadable) == (24, 12, ())
    assert set(found.labels) == set(COLORS)
    assert all(label == id.partition("/")[0] for label, id in zip(found.labels, found.ids, strict=True))
    model = load(trained).model
    paths = [colored / split / id for split, id in zip(found.splits, found.ids, strict=True)]
    with torch.no_grad():
        logits = model.head.fc(torch.from_numpy(found.features))
    predictions = load(trained)(paths, top_k=3)
    for row, prediction in zip(logits.softmax(1).tolist(), predictions, strict=True):
        assert max(row) == pytest.approx(prediction.score, abs=1e-5)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_files_of_features(
    suffix: str, trained: Path, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 40), COLORS["red"]).save(tmp_path / "photos" / "sub" / "a.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    for i in range(3):
        Image.new("RGB", (40, 40), COLORS["blue"]).save(tmp_path / "photos" / f"{i}.png")
    out = tmp_path / f"features{suffix}"
    result = answer(capsys, "embed", trained, tmp_path / "photos", "--out", out)
    assert (result["images"], result["features"]) == ({"all": 4}, 64)
    assert "broken.jpg" in result["unreadable"][0]
    if suffix == ".npz":
        with np.load(out) as content:
            ids, features = content["ids"].tolist(), content["features"]
            assert content["labels"].tolist() == [""] * 4
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out).to_pydict()
        ids, features = table["ids"], np.array(table["features"], np.float32)
    assert ids == ["0.png", "1.png", "2.png", "sub/a.png"]
    assert (features.shape, features.dtype) == ((4, 64), np.float32)
    assert np.array_equal(features, embed(trained, tmp_path / "photos").features)


def test_a_copy_and_a_slightly_changed_image_are_found_between_splits(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    for label in ("cat", "dog"):
        for i in range(4):
            textured(root / "train" / label / f"{i}.png", seed=100 * (label == "dog") + i)
        textured(root / "val" / label / "v.png", seed=50 + (label == "dog"))
    (root / "val" / "cat" / "copy.png").write_bytes((root / "train" / "cat" / "2.png").read_bytes())
    pixels = np.asarray(Image.open(root / "train" / "dog" / "1.png")).astype(int)
    changed = np.clip(pixels + 2, 0, 255).astype(np.uint8)
    Image.fromarray(changed).save(root / "val" / "dog" / "brighter.png")
    folder = tmp_path / "report"
    result = answer(
        capsys, "embed", trained, root, "--out", tmp_path / "f.npz", "--report", folder, "--threshold", "0.998",
        "--top_k", "3",
    )  # fmt: skip
    assert result["report"] == {
        "exact_duplicates": 1,
        "exact_duplicates_between_splits": 1,
        "near_duplicates_within_splits": 0,
        "near_duplicates_between_splits": 2,
    }
    report = json.loads((folder / "report.json").read_text())
    copied = {(image["split"], image["id"]) for image in report["exact_duplicates"][0]}
    assert copied == {("train", "cat/2.png"), ("val", "cat/copy.png")}
    pairs = [{image["id"] for image in pair["images"]} for pair in report["near_duplicates_between_splits"]]
    assert pairs == [{"cat/2.png", "cat/copy.png"}, {"dog/1.png", "dog/brighter.png"}]
    assert report["near_duplicates_between_splits"][0]["similarity"] == pytest.approx(1, abs=1e-6)
    nearest = report["neighbors"]["val/dog/brighter.png"]
    assert (len(nearest), nearest[0]["image"]) == (3, "train/dog/1.png")
    page = (folder / "report.md").read_text()
    assert "val/cat/copy.png" in page
    assert "pairs.png" in page
    with Image.open(folder / "pairs.png") as picture:
        assert picture.width > 100


def test_search_in_chunks_finds_what_the_whole_matrix_has(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
    splits = ["train"] * 15 + ["val"] * 8
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    monkeypatch.setattr("smt_vision.embedding.report.MAX_SIMILARITIES", 23 * 4)  # four rows at a time
    monkeypatch.setattr("smt_vision.embedding.report.MAX_PAIRS", 5)
    found = search(features, splits, threshold=0.5, top_k=4)
    pairs = [(cosine[i, j], i, j) for i in range(23) for j in range(i + 1, 23) if cosine[i, j] >= 0.5]
    for similar, same in ((found.within, True), (found.between, False)):
        expected = sorted((pair for pair in pairs if (splits[pair[1]] == splits[pair[2]]) == same), reverse=True)
        assert similar.count == len(expected) > 5
        assert similar.pairs.tolist() == [[i, j] for _, i, j in expected[:5]]
        assert similar.similarities == pytest.approx([value for value, _, _ in expected[:5]], abs=1e-6)
    np.fill_diagonal(cosine, -2)
    assert np.array_equal(found.neighbors.indices, np.argsort(-cosine, axis=1)[:, :4])


def test_images_of_every_layout(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = embed(trained, write_shapes(tmp_path / "shapes"))
    assert set(found.splits) == {"train", "val"}
    assert any("|" in label for label in found.labels)  # objects of several classes
    (tmp_path / "shapes" / "annotations" / "instances_val.json").unlink()
    held_out = embed(trained, tmp_path / "shapes")  # one of four images, as in training
    assert (held_out.splits.count("train"), held_out.splits.count("val")) == (3, 1)
    write_scenes(tmp_path / "scenes")
    scenes = embed(trained, tmp_path / "scenes")
    assert set(scenes.splits) == {"train", "val"}  # no label maps among them
    assert not [id for id in scenes.ids if "label" in id or "mask" in id]
    voc = tmp_path / "voc"
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass"):
        (voc / folder).mkdir()
        for i in range(3):
            textured(voc / folder / f"{i}.png", i)
    for split, names in (("train", "0\n1\n"), ("val", "2\n")):
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    in_voc = embed(trained, voc)
    assert (in_voc.splits, len(set(in_voc.ids))) == (("train", "train", "val"), 3)
    write_split(tmp_path / "set", train=2, val=1)
    two = embed(trained, [tmp_path / "set" / "train", tmp_path / "set" / "val"])
    assert two.splits.count(str(tmp_path / "set" / "train")) == 6
    textured(tmp_path / "one" / "deep" / "a.png", 0)
    assert embed(trained, tmp_path / "one").ids == ("a.png",)
    assert "without labels and splits" in caplog.text


@pytest.mark.usefixtures("no_report")
def test_splits_are_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another path of the same folder, and of a fold."""
    root = write_images(tmp_path / "set", COLORS, [6, 6, 6])
    monkeypatch.chdir(tmp_path)
    train(tiny(Path("set"), epochs=1, seed=3, input=dict(val_fraction=0.3)), tmp_path / "run", display=False)
    held_out = set(embed("run", "set").ids[-6:])
    for data in (root, "./set"):
        found = embed("run", data)
        assert {id for id, split in zip(found.ids, found.splits, strict=True) if split == "val"} == held_out
    recipe = replace(tiny(root, epochs=1), folds=3, fold=2)
    train(recipe, tmp_path / "fold", display=False)
    found = embed("fold", root)
    used = UsedImages.from_checkpoint(checkpoints.load(tmp_path / "fold"))
    assert used is not None
    assert len(found) == 18
    assert found.splits.count("val") == 6
    assert set(found.datasets["val"].identities()) == set(used.val)
    for split in ("train", "val"):  # folds of the training images, beside which there is a validation split
        write_images(tmp_path / "own" / split, COLORS, [6, 6, 6] if split == "train" else [2, 2, 2], seed=7)
    train(replace(recipe, data=str(tmp_path / "own")), tmp_path / "beside", display=False)
    found = embed("beside", tmp_path / "own")
    counts = {split: found.splits.count(split) for split in found.datasets}
    assert counts == {"train": 12, "val": 6, "val of the dataset": 6}


@pytest.mark.usefixtures("no_report")
def test_report_of_images_with_bands(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for name in ("a", "b"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                np.save(folder / f"{i}.npy", np.full((32, 32, 5), 1000 * (i + 1), dtype=np.uint16))
    input = dict(channels=5, max_value=10_000.0, mean=(0.5,) * 5, std=(0.5,) * 5)
    train(tiny(tmp_path / "set", epochs=1, batch_size=2, input=input), tmp_path / "run", display=False)
    found = embed(tmp_path / "run", tmp_path / "set")
    report = write_report(found, tmp_path / "report", threshold=0.0)
    assert report["counts"]["exact_duplicates"] == 3
    assert (tmp_path / "report" / "report.md").is_file()
    assert (tmp_path / "report" / "pairs.png").is_file()


def test_copies_among_images_that_are_not_files(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    pixels[3] = pixels[1]
    images = ArrayDataset(pixels, ["a", "b"], np.array([0, 1] * 2), "digit ")
    monkeypatch.setattr("smt_vision.embedding.embeddings.open_splits", lambda *args: {"all": images})
    hashes = embed(trained, "auto").fingerprints
    assert hashes[3] == hashes[1]
    assert len(set(hashes.tolist())) == 3


@pytest.mark.parametrize("fixture", ["detector_run", "segmenter_run"])
def test_backbones_of_detectors_and_segmenters(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = request.getfixturevalue(fixture)
    images = [textured(tmp_path / f"{i}.png", i) for i in range(3)]
    found = embed(run, images, batch_size=2)
    assert found.features.shape[0] == 3
    assert np.isfinite(found.features).all()
    assert len({tuple(row) for row in found.features.tolist()}) == 3


def test_what_cannot_be_embedded_is_one_error(
    trained: Path, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = textured(tmp_path / "a.png", 0)
    for arguments, named in (
        ([colored, "--out", tmp_path / "f.csv"], r"f.csv"),
        ([tmp_path / "none"], "none"),
        ([colored / "train", colored / "val", file], "a.png"),
        ([colored, "--threshold", "0.9"], "--report"),
        ([file, "--out", tmp_path / "f.npz", "--report", tmp_path / "r"], "two or more"),
    ):
        assert named in refusal(capsys, 1, "embed", trained, *arguments)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 images.*x\.png"):
        embed(trained, tmp_path / "bad")
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(ValueError, match=r"labels\.json"):
        embed(trained, tmp_path / "labels.json")
    with pytest.raises(ValueError, match="two or more"):
        write_report(embed(trained, file), tmp_path / "r")
