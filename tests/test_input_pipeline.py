"""The speed of the input: what is measured, and that it adds up."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from input_pipeline import PipelineSpeed, SyntheticJpegs, measure_input, timm_transforms
from smt_vision.data.loaders import seed_all
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationInput
from smt_vision.tasks.classification.data.transforms import eval_transform, train_transform

SMALL = ClassificationInput(size=32, val_fraction=0.2)


def test_a_folder_is_measured(colored: Path) -> None:
    threads = torch.get_num_threads()
    speed = measure_input(str(colored), SMALL, ClassificationAugment(), workers=0, batch_size=8, seconds=0.2)
    assert speed.source == str(colored)
    assert speed.mean_bytes == pytest.approx(
        np.mean([file.stat().st_size for file in (colored / "train").rglob("*.*")]), abs=1
    )
    assert (speed.workers, speed.batch_size) == (0, 8)
    assert speed.images_per_s > 1
    assert torch.get_num_threads() == threads
    plain = speed.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    for name, side in (("train", speed.train), ("evaluation", speed.evaluation)):
        assert side.timm is not None
        assert side.ours > 1
        assert side.full is None  # the images are small
        assert plain[name] == {"ours": side.ours, "full": None, "timm": side.timm, "ratio": side.ours / side.timm}


def test_workers_are_counted_and_ended(colored: Path) -> None:
    speed = measure_input(
        str(colored), SMALL, ClassificationAugment(auto_augment=None), workers=1, batch_size=8, seconds=0.1
    )
    assert speed.workers == 1
    assert speed.images_per_s > 1
    assert not torch.multiprocessing.active_children()


def test_timm_has_no_padded_crop(colored: Path) -> None:
    speed = measure_input(str(colored), SMALL, ClassificationAugment(crop="pad"), workers=0, batch_size=8, seconds=0.05)
    assert speed.train == PipelineSpeed(speed.train.ours, None, None)
    assert speed.train.ratio is None
    assert speed.evaluation.timm is not None


def test_large_images_are_measured_at_full_resolution_too() -> None:
    speed = measure_input(
        None, SMALL, ClassificationAugment(), workers=0, batch_size=2, seconds=0.05, image_size=(1200, 900)
    )
    for side in (speed.train, speed.evaluation):
        assert side.full is not None
        assert side.ours > side.full > 1


def test_a_broken_image_is_named(colored: Path, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "1.jpg").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"1\.jpg: not an image .*; the benchmark needs readable images"):
        measure_input(
            str(tmp_path),
            replace(SMALL, val_fraction=0.5),
            ClassificationAugment(),
            workers=0,
            batch_size=2,
            seconds=0.05,
        )


def test_both_sides_of_the_comparison_do_the_same() -> None:
    given, augment = ClassificationInput(size=32, exact=True), ClassificationAugment(random_erasing=0.5)
    theirs_train, theirs_eval = timm_transforms(given, augment)
    with Image.open(io.BytesIO(SyntheticJpegs(1).read(0)[0])) as file:
        image = file.convert("RGB")
    assert torch.equal(eval_transform(given)(image), theirs_eval(image))
    ours = train_transform(given, augment)
    for seed in range(5):
        seed_all(seed)
        expected = theirs_train(image)
        seed_all(seed)
        assert torch.equal(ours(image), expected)


def test_synthetic_jpegs() -> None:
    images = SyntheticJpegs(20)
    raw = [images.read(row)[0] for row in range(20)]
    assert len(images) == 20
    assert len(set(raw)) == 16
    assert raw[0] == raw[16] == SyntheticJpegs(1).read(0)[0]
    assert all(50_000 < len(data) < 70_000 for data in raw)
    with Image.open(io.BytesIO(SyntheticJpegs(1, (64, 32)).files[0])) as image:
        assert (image.format, image.size) == ("JPEG", (64, 32))
    with Image.open(io.BytesIO(raw[5])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (500, 375))
