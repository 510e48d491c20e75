"""Augmentation policies: timm's random draws and operations, with posterize replaced."""

import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

from sample_images import levels, picture
from smt_vision.data.loaders import seed_all
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationInput
from smt_vision.tasks.classification.data.operations import posterize, replace_posterize
from smt_vision.tasks.classification.data.transforms import train_transform

HPARAMS = dict(translate_const=100, img_mean=(124, 116, 104), interpolation=Image.Resampling.BICUBIC)


def test_posterize_zero_bits_is_black() -> None:
    image = picture()
    assert np.asarray(posterize(image, 0)).max() == 0
    assert posterize(image, 0).size == image.size
    assert levels(posterize(image, 3), ImageOps.posterize(image, 3)).max() == 0
    assert posterize(image, 8) is image


@pytest.mark.parametrize("exact", [False, True])
def test_largest_randaugment_magnitude(exact: bool) -> None:
    """At magnitude 10, which the paper's magnitude of 9 +- 0.5 reaches, timm posterizes to 0 bits."""
    transform = train_transform(
        ClassificationInput(size=16, exact=exact), ClassificationAugment(auto_augment="rand-m10-n15-p1-inc1")
    )
    seed_all(0)
    for _ in range(10):
        assert transform(picture(20, 20)).isfinite().all()


def replaced(operation: Any) -> Any:
    return posterize if operation is auto_augment.posterize else operation


def recorded_operations(policy: Any, seeds: int) -> list[list[tuple[str, tuple[float, ...]]]]:
    """Operations that a policy draws with each seed, with their amounts; they are recorded, not applied."""
    operations: list[tuple[str, tuple[float, ...]]] = []

    def record(name: str) -> Any:
        def operation(image: Image.Image, *args: float, **_: Any) -> Image.Image:
            operations.append((name, args))
            return image

        return operation

    for op in policy.ops:
        op.aug_fn = record(op.name)
    image, runs = picture(8, 8), []
    for seed in range(seeds):
        seed_all(seed)
        policy(image)
        runs.append(list(operations))
        operations.clear()
    return runs


def test_randaugment_draws_match_timm() -> None:
    """The same seeds give the same operations in the same order, with the same magnitudes."""
    reference = rand_augment_transform("rand-m9-mstd0.5-inc1", dict(HPARAMS))
    (ours,) = [
        step
        for step in train_transform(ClassificationInput(), ClassificationAugment()).transforms
        if isinstance(step, type(reference))
    ]
    assert [op.aug_fn for op in ours.ops] == [replaced(op.aug_fn) for op in reference.ops]
    assert [(op.name, op.prob, op.magnitude, op.magnitude_std) for op in ours.ops] == [
        (op.name, op.prob, op.magnitude, op.magnitude_std) for op in reference.ops
    ]
    assert ours.ops[0].kwargs == reference.ops[0].kwargs
    runs = recorded_operations(ours, 3000)
    assert runs[:500] == recorded_operations(reference, 500)
    # By definition: two layers of probability 1/2 and 15 equally likely operations, within 4 standard deviations.
    counts = np.bincount([len(run) for run in runs], minlength=3)
    assert np.abs(counts - [750, 1500, 750]).max() < 4 * np.sqrt(3000 / 4)
    names = [name for run in runs for name, _ in run]
    per_operation = np.array([names.count(op.name) for op in reference.ops])
    assert np.abs(per_operation - len(names) / 15).max() < 4 * np.sqrt(len(names) / 15)


def test_posterize_is_replaced_in_every_policy() -> None:
    hparams = dict(HPARAMS, translate_pct=0.3)
    rand = rand_augment_transform("rand-m9", dict(hparams))
    mix = augment_and_mix_transform("augmix-m3", dict(hparams))
    auto = auto_augment_transform("original", dict(hparams))
    for policy, ops in ((rand, rand.ops), (mix, mix.ops), (auto, [op for chain in auto.policy for op in chain])):
        before = [op.aug_fn for op in ops]
        assert auto_augment.posterize in before
        replace_posterize(policy)
        assert [op.aug_fn for op in ops] == [replaced(op) for op in before]
    replace_posterize(object())  # any other transform is left unchanged


def test_train_transform_can_be_pickled() -> None:
    transform = train_transform(ClassificationInput(size=16), ClassificationAugment())
    unpickled = pickle.loads(pickle.dumps(transform))
    for seed in range(5):
        seed_all(seed)
        expected = transform(picture(20, 20))
        seed_all(seed)
        assert unpickled(picture(20, 20)).equal(expected)
