"""The operations of timm's policies in our form: timm's results within a level, and timm's draws."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

from sample_images import levels, picture
from smt_vision.data.loaders import seed_all
from smt_vision.recipe import Augment, Input
from smt_vision.tasks.classification.data.operations import ACCELERATED, PATCHED, Move, replace_operations
from smt_vision.tasks.classification.data.transforms import train_transform

MOVES = {name: op for op, name in ((op, op.__name__) for op in ACCELERATED) if isinstance(ACCELERATED[op], Move)}
FILL = (124, 116, 104)
HPARAMS = dict(translate_const=100, img_mean=FILL, interpolation=Image.Resampling.BICUBIC)


def amounts(name: str) -> tuple[float, ...]:
    return (41.3, -30.0, 0.5, 200.0) if name.endswith("abs") else (0.2713, -0.3, 0.0, 0.45, -0.017)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_a_move_is_timms_within_a_level(name: str, resample: Image.Resampling) -> None:
    theirs, image = MOVES[name], picture(75, 100)
    for amount in amounts(name):
        options: dict[str, Any] = dict(resample=resample, fillcolor=FILL)
        off = levels(ACCELERATED[theirs](image, amount, **options), theirs(image, amount, **options))
        assert off.max() <= 1, amount
        assert off.mean() < 0.05, amount  # weights of a tenth make whole numbers, which rounding may leave below


@pytest.mark.parametrize("name", MOVES)
def test_moves_that_are_left_to_timm_equal_it(name: str) -> None:
    theirs = MOVES[name]
    for image, fill, resample in (
        (picture(), FILL, Image.Resampling.NEAREST),
        (picture().convert("L"), (116,), Image.Resampling.BICUBIC),
    ):
        ours = ACCELERATED[theirs](image, 0.2, resample=resample, fillcolor=fill)
        assert levels(ours, theirs(image, 0.2, resample=resample, fillcolor=fill)).max() == 0


def test_a_move_keeps_flat_colours_and_fills_beyond_the_image() -> None:
    image = Image.new("RGB", (20, 10), (255, 3, 200))
    options: dict[str, Any] = dict(resample=Image.Resampling.BICUBIC, fillcolor=FILL)
    moved = np.asarray(ACCELERATED[auto_augment.translate_x_abs](image, 4.3, **options))
    assert (moved[:, :16] == (255, 3, 200)).all()  # the last pixel's centre, 15.5, is at 19.8
    assert (moved[:, 16:] == FILL).all()
    moved = np.asarray(ACCELERATED[auto_augment.translate_y_rel](image, -0.3, **options))
    assert (moved[:3] == FILL).all()
    assert (moved[3:] == (255, 3, 200)).all()


def test_a_move_draws_its_filter_as_timm_does() -> None:
    both = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    options: dict[str, Any] = dict(resample=both, fillcolor=FILL)
    for seed in range(8):
        random.seed(seed)
        theirs, after = auto_augment.shear_x(picture(), 0.21, **options), random.random()
        random.seed(seed)
        assert levels(ACCELERATED[auto_augment.shear_x](picture(), 0.21, **options), theirs).max() <= 1
        assert random.random() == after


def test_posterizing_to_no_bits_is_black() -> None:
    ours, image = PATCHED[auto_augment.posterize], picture()
    assert np.asarray(ours(image, 0)).max() == 0
    assert ours(image, 0).size == image.size
    assert levels(ours(image, 3), ImageOps.posterize(image, 3)).max() == 0
    assert ours(image, 8) is image


@pytest.mark.parametrize("exact", [False, True])
def test_the_strongest_magnitude_can_be_drawn(exact: bool) -> None:
    """timm draws 0 bits at magnitude 10, which the magnitude of the paper's recipe, 9 +- 0.5, reaches."""
    transform = train_transform(Input(size=16, exact=exact), Augment(auto_augment="rand-m10-n15-p1-inc1"))
    seed_all(0)
    for _ in range(10):
        assert transform(picture(20, 20)).isfinite().all()


def recorded(policy: Any, seeds: int) -> list[list[tuple[str, tuple[float, ...]]]]:
    """For each seed the operations that a policy drew, with their amounts; images are left as they are."""
    drawn: list[tuple[str, tuple[float, ...]]] = []

    def record(name: str) -> Any:
        def operation(image: Image.Image, *args: float, **_: Any) -> Image.Image:
            drawn.append((name, args))
            return image

        return operation

    for op in policy.ops:
        op.aug_fn = record(op.name)
    image, runs = picture(8, 8), []
    for seed in range(seeds):
        seed_all(seed)
        policy(image)
        runs.append(list(drawn))
        drawn.clear()
    return runs


def test_randaugment_draws_what_timm_draws() -> None:
    """Operations, their order, probabilities and magnitudes, from the same seeds."""
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", dict(HPARAMS))
    (ours,) = [
        step for step in train_transform(Input(), Augment()).transforms if isinstance(step, type(theirs))
    ]  # fmt: skip
    assert [op.aug_fn for op in ours.ops] == [ACCELERATED.get(op.aug_fn, op.aug_fn) for op in theirs.ops]
    assert [(op.name, op.prob, op.magnitude, op.magnitude_std) for op in ours.ops] == [
        (op.name, op.prob, op.magnitude, op.magnitude_std) for op in theirs.ops
    ]
    assert ours.ops[0].kwargs == theirs.ops[0].kwargs
    runs = recorded(ours, 3000)
    assert runs[:500] == recorded(theirs, 500)
    # Against the definition: two layers of probability 1/2, and 15 operations alike; 4 standard deviations.
    counts = np.bincount([len(run) for run in runs], minlength=3)
    assert np.abs(counts - [750, 1500, 750]).max() < 4 * np.sqrt(3000 / 4)
    names = [name for run in runs for name, _ in run]
    each = np.array([names.count(op.name) for op in theirs.ops])
    assert np.abs(each - len(names) / 15).max() < 4 * np.sqrt(len(names) / 15)


def test_every_kind_of_policy_gets_our_operations() -> None:
    hparams = dict(HPARAMS, translate_pct=0.3)
    rand = rand_augment_transform("rand-m9", dict(hparams))
    mix = augment_and_mix_transform("augmix-m3", dict(hparams))
    auto = auto_augment_transform("original", dict(hparams))
    for policy, ops in ((rand, rand.ops), (mix, mix.ops), (auto, [op for chain in auto.policy for op in chain])):
        before = [op.aug_fn for op in ops]
        assert any(op in ACCELERATED for op in before)
        replace_operations(policy, ACCELERATED)
        assert [op.aug_fn for op in ops] == [ACCELERATED.get(op, op) for op in before]
    replace_operations(object(), ACCELERATED)  # any other step is left alone


def test_the_pipeline_can_be_sent_to_a_process() -> None:
    transform = train_transform(Input(size=16), Augment())
    again = pickle.loads(pickle.dumps(transform))
    for seed in range(5):
        seed_all(seed)
        expected = transform(picture(20, 20))
        seed_all(seed)
        assert again(picture(20, 20)).equal(expected)
