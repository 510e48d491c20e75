"""Imbalanced classes: sampling, class weights and losses, with known answers."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

import smt_vision
from dense_sets import annotation, write_coco, write_labels
from drawn_sets import scenes_recipe, shapes_recipe
from same_run import assert_same_run
from smt_vision.data.loaders import DecodedImages, train_loader
from smt_vision.data.samplers import TrainSampler
from smt_vision.data.sampling import Draws, image_draws
from smt_vision.recipe import Input, Loss, Sampling
from smt_vision.tasks import get_task, read_recipe
from smt_vision.tasks.class_weights import class_weights
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationLoss, ClassifyConfig
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.losses import classification_loss
from smt_vision.tasks.detection.config import DetectionLoss
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.detection.heads.class_loss import WeightsClasses
from smt_vision.tasks.segmentation.config import IGNORE_INDEX, SegmentationLoss, SegmentConfig
from smt_vision.tasks.segmentation.data.sources import open_segmentation
from smt_vision.tasks.segmentation.losses import binary_losses, class_losses, dice_loss
from tiny_run import COLORS, tiny, write_images

NAMES = ("a", "b", "c")


class Noise(ImageDataset):
    """Random images in memory."""

    def __init__(self, targets: list[int], classes: int) -> None:
        super().__init__([str(k) for k in range(classes)], targets, [str(i) for i in range(len(targets))], "noise/")

    def _read(self, row: int, name: str) -> Image.Image:
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8))


class SeveralClasses(Noise):
    """Images with any number of classes."""

    def __init__(self, labels: list[list[int]], classes: int) -> None:
        super().__init__([0] * len(labels), classes)
        self.labels = labels

    def presence(self) -> tuple[np.ndarray, np.ndarray]:
        pairs = sorted((k, i) for i, labels in enumerate(self.labels) for k in labels)
        label, image = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return image, label


def draws(images: Any, method: str, **fields: Any) -> Draws:
    found = image_draws(images, Sampling(method, **fields))  # type: ignore[arg-type]
    assert found is not None
    return found


def epochs(of: Draws, count: int = 20) -> list[np.ndarray]:
    return [of.sample(np.random.default_rng([0, epoch])) for epoch in range(count)]


# Sampling

LONG_TAIL = [0] * 30 + [1] * 9 + [2] * 1


def test_uniform_sampling_is_a_permutation_as_before() -> None:
    assert image_draws(Noise(LONG_TAIL, 3), Sampling()) is None


@pytest.mark.parametrize(
    ("method", "shares"),
    [("balanced", [40 / 3] * 3), ("sqrt", [40 * n**0.5 / (30**0.5 + 3 + 1) for n in (30, 9, 1)])],
)
def test_classes_have_their_share_in_every_epoch(method: str, shares: list[float]) -> None:
    images = Noise(LONG_TAIL, 4)  # the last class does not occur
    found = draws(images, method)
    assert len(found) == 40
    assert found.per_image() == pytest.approx([shares[k] / LONG_TAIL.count(k) for k in LONG_TAIL])
    for epoch in epochs(found):
        counts = np.bincount(images.targets[epoch % 40], minlength=4)
        assert len(epoch) == 40
        assert (np.abs(counts[:3] - shares) < 1).all()
        assert counts[3] == 0
        each = np.bincount(epoch % 40, minlength=40)
        assert (np.abs(each - found.per_image()) < 1).all()


def test_draws_are_on_average_what_is_expected_of_each_image() -> None:
    found = draws(Noise(LONG_TAIL, 3), "balanced")
    means = np.mean([np.bincount(epoch % 40, minlength=40) for epoch in epochs(found, 2000)], axis=0)
    assert means == pytest.approx(found.per_image(), abs=0.05)


def test_balanced_sampling_of_images_with_several_classes() -> None:
    # Class 0 in images 0 to 3, class 1 in 3 and 4, and image 5 without a class.
    images = SeveralClasses([[0], [0], [0], [0, 1], [1], []], 2)
    assert draws(images, "balanced").per_image() == pytest.approx([0.625, 0.625, 0.625, 1.875, 1.25, 1.0])
    assert len(draws(images, "balanced")) == 6
    # Of 5 images with a class, 5 * sqrt(4) / (sqrt(4) + sqrt(2)) for class 0.
    share = 5 * 2 / (2 + 2**0.5)
    expected = [share / 4] * 3 + [share / 4 + (5 - share) / 2, (5 - share) / 2, 1]
    assert draws(images, "sqrt").per_image() == pytest.approx(expected)


def test_repeat_factors_of_lvis() -> None:
    # Frequencies 0.8, 0.2 and 0.05 of 20 images; the last image has none, and image 0 the rarest class too.
    labels = [[0, 2], *([0] for _ in range(15)), *([1] for _ in range(3)), []]
    labels[1] = [0, 1]
    found = draws(SeveralClasses(labels, 3), "repeat_factor", threshold=0.45)
    assert found.per_image() == pytest.approx([3.0, 1.5, *[1.0] * 14, *[1.5] * 3, 1.0])
    assert len(found) == 24
    for epoch in epochs(found):
        counts = np.bincount(epoch % 20, minlength=20)
        assert counts[0] == 3
        assert set(counts[[1, 16, 17, 18]]) <= {1, 2}
        assert counts[[1, 16, 17, 18]].sum() == 6
        assert counts.sum() == 24
    assert draws(SeveralClasses(labels, 3), "repeat_factor").per_image().tolist() == [1.0] * 20  # none below 0.001


def test_repeats_of_an_image_are_augmented_differently() -> None:
    images = Noise([0] * 9 + [1], 2)
    epoch = draws(images, "balanced").sample(np.random.default_rng(0))
    assert len(np.unique(epoch)) == 10
    assert sorted(epoch[epoch % 10 == 9]) == [9, 19, 29, 39, 49]

    def augment(image: Any, target: int, name: str) -> dict[str, Any]:
        return {"image": torch.rand(1), "target": target}

    dataset = DecodedImages(images, augment, Input(), seed=0)
    items = dataset.__getitems__([(0, 9), (0, 19), (0, 29), (1, 9)])
    assert [item["index"] for item in items] == [9] * 4
    assert len({item["image"].item() for item in items}) == 4
    assert dataset.__getitems__([(0, 19)])[0]["image"] == items[1]["image"]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("method", ["balanced", "repeat_factor"])
def test_sampled_epoch_over_ranks_groups_and_a_resume(method: str, world: int) -> None:
    images = Noise([0] * 80 + [1] * 18 + [2] * 2, 3)
    groups = np.arange(100) % 5 == 0
    of = draws(images, method, threshold=0.5)
    assert len(of) == (100 if method == "balanced" else 80 + 30 + 10)
    ranks = [TrainSampler(100, 6 // world, rank, world, 0, groups=groups, draws=of) for rank in range(world)]
    for epoch in range(5):
        batches = [[*itertools.chain(*shares)] for shares in zip(*(rank.batches(epoch) for rank in ranks), strict=True)]
        assert len(batches) == len(ranks[0]) == len(of) // 6
        drawn = [i for batch in batches for i in batch]
        assert len(set(drawn)) == len(drawn)
        kinds = [set(groups[np.array(batch) % 100].tolist()) for batch in batches]
        assert sum(len(kind) == 2 for kind in kinds) <= 1
        assert list(ranks[0].batches(epoch, start_batch=5)) == list(ranks[0].batches(epoch))[5:]
    assert list(ranks[0].batches(0)) != list(ranks[0].batches(1))


def test_batches_do_not_depend_on_the_workers() -> None:
    def stack(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {"image": torch.stack([item["image"] for item in items])}

    seen = []
    for workers in (0, 1):
        input = replace(tiny(Path(), sampling=Sampling("balanced")).input, workers=workers)
        loader = train_loader(
            Noise([0] * 9 + [1], 2), _crop, stack, input, 4, seed=0, sampling=Sampling("balanced")
        )  # fmt: skip
        seen.append([(batch["index"].tolist(), batch["image"]) for batch in loader.epoch(0)])
        loader.close()
    for (index, image), (other_index, other_image) in zip(*seen, strict=True):
        assert index == other_index
        assert torch.equal(image, other_image)


def _crop(image: Any, target: int, name: str) -> dict[str, Any]:
    return {"image": torch.rand(3)}


def test_presence_in_a_detection_set(tmp_path: Path) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)],
        "annotations": [
            annotation(1, 0, 1, (1, 2, 10, 10)), annotation(2, 0, 1, (9, 2, 10, 10)), annotation(3, 1, 1, (1, 2, 9, 9)),
            annotation(4, 2, 2, (1, 2, 10, 10)), annotation(5, 2, 1, (1, 2, 10, 10), iscrowd=1),
        ],
        "categories": [{"id": k, "name": NAMES[k]} for k in (1, 2)],
    }  # fmt: skip
    images = open_detection(str(write_coco(tmp_path, content)), "train")
    image, label = images.presence()
    assert (image.tolist(), label.tolist()) == ([0, 1, 2], [0, 0, 1])
    assert draws(images, "repeat_factor", threshold=1.0).per_image() == pytest.approx([2**0.5, 2**0.5, 2, 1])


def write_maps(folder: Path, maps: list[list[list[int]]]) -> Path:
    for split in ("train", "val"):
        for i, labels in enumerate(maps):
            write_labels(folder / "labels" / split / f"{i}.png", labels)
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", np.array(labels).shape[::-1]).save(folder / "images" / split / f"{i}.png")
    (folder / "classes.json").write_text('["a", "b", "c"]')
    return folder


MAPS = [[[0, 0, 0, 0]], [[0, 0, 0, 1]], [[0, 0, 1, 2]], [[0, 255, 255, 255]]]


def test_pixels_and_presence_in_a_segmentation_set(tmp_path: Path) -> None:
    images = open_segmentation(str(write_maps(tmp_path, MAPS)), "train", SegmentConfig())
    assert images.count_pixels().tolist() == [[4, 0, 0], [3, 1, 0], [2, 1, 1], [1, 0, 0]]
    image, label = images.presence()
    assert (image.tolist(), label.tolist()) == ([0, 1, 2, 3, 1, 2, 2], [0, 0, 0, 0, 1, 1, 2])
    assert draws(images, "repeat_factor", threshold=1.0).per_image() == pytest.approx([1, 2**0.5, 2, 1])
    subset = images.select(np.array([2, 0]))
    (tmp_path / "labels" / "train" / "2.png").unlink()  # counted once
    assert subset.count_pixels().tolist() == [[2, 1, 1], [4, 0, 0]]
    relabeled = images.relabel(["c", "b"], [IGNORE_INDEX, 1, 0])
    assert relabeled.count_pixels().tolist() == [[0, 0], [0, 1], [0, 0], [0, 0]]  # 2.png cannot be read
    masks = open_segmentation(str(tmp_path), "val", SegmentConfig(kind="binary"))
    assert masks.count_pixels().tolist() == [[4, 0], [3, 1], [4, 0], [1, 3]]  # level 2 is no object
    assert masks.presence()[0].tolist() == [1, 3]


# Class weights


def weights_of(loss: Loss, counts: list[int], samples: list[int] | None = None) -> list[float]:
    found = class_weights(loss, NAMES[: len(counts)], np.array(counts), None if samples is None else np.array(samples))
    assert found is not None
    return found.tolist()


def test_weights_by_hand() -> None:
    assert class_weights(Loss(), NAMES, np.array([1, 2, 3])) is None
    assert weights_of(Loss("balanced"), [90, 10]) == pytest.approx([100 / 180, 100 / 20])  # as scikit-learn's
    assert weights_of(Loss("balanced"), [60, 30, 0]) == pytest.approx([0.75, 1.5, 1.0])  # a class without images
    # Effective numbers for beta = 0.9: 1, 1.9 and 2.71.
    inverse = np.array([1, 1 / 1.9, 1 / 2.71])
    assert weights_of(Loss("effective", beta=0.9), [1, 2, 3]) == pytest.approx(inverse * 6 / (inverse @ [1, 2, 3]))
    assert weights_of(Loss("effective", beta=0.0), [1, 2, 3]) == pytest.approx([1, 1, 1])
    assert weights_of(Loss("effective", beta=1 - 1e-12), [1, 2, 3]) == pytest.approx([2, 1, 2 / 3], rel=1e-3)
    assert weights_of(Loss((1, 0, 3)), [5, 5, 5]) == [1, 0, 3]
    # Pixels of which images are the samples.
    assert weights_of(Loss("effective", beta=0.0), [900, 100], [2, 1]) == pytest.approx([1, 1])
    assert weights_of(Loss("effective", beta=0.5), [900, 100], [2, 1]) == pytest.approx([1.5 / 1.05 / 1.5, 1.5 / 1.05])
    assert weights_of(Loss("balanced"), [900, 100], [2, 1]) == pytest.approx([5 / 9, 5])
    assert weights_of(Loss("balanced"), [0, 0]) == [1, 1]


@pytest.mark.parametrize("kind", ["balanced", "effective"])
def test_computed_weights_have_a_mean_of_one_over_the_images(kind: Any) -> None:
    counts = [5000, 400, 50]
    assert np.dot(weights_of(Loss(kind, beta=0.999), counts), counts) == pytest.approx(sum(counts))


def test_given_weights_must_fit_the_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train", COLORS, [2] * 3)
    write_images(tmp_path / "val", COLORS, [1] * 3)
    recipe = tiny(tmp_path, loss=ClassificationLoss((1.0, 2.0)))
    with pytest.raises(ValueError, match=r"loss\.class_weights has 2 values for 3 classes \(blue, green, red\)"):
        get_task("classify").training(recipe)
    for wrong in ((), (0.0, 0.0)):
        with pytest.raises(ValueError, match=r"loss\.class_weights.*above 0"):
            Loss(wrong)
    assert read_recipe(replace(recipe, loss=ClassificationLoss((1, 2, 3))).to_dict()).loss.class_weights == (1, 2, 3)  # type: ignore[attr-defined]


# Losses

K = 5


def same(value: Tensor, expected: Any) -> None:
    torch.testing.assert_close(value, torch.as_tensor(expected))


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    index = torch.tensor([0, 4, 2, 2, 1, 0, 3])
    return {
        "logits": torch.randn(7, K, generator=rng) * 3,
        "index": index,
        "soft": torch.rand(7, K, generator=rng).softmax(dim=1),
        "hot": (torch.rand(7, K, generator=rng) < 0.4).float(),
    }


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0, 4.0])


def criterion(
    name: Any, weighted: bool = False, multi_label: bool = False, smoothing: float = 0.0, **fields: Any
) -> Any:
    loss = ClassificationLoss(tuple(WEIGHTS.tolist()) if weighted else "none", name=name, **fields)
    counts = np.ones(K, dtype=np.int64)
    return classification_loss(loss, "abcde", counts, multi_label=multi_label, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target", ["index", "soft"])
def test_cross_entropy_is_pytorchs(batch: dict[str, Tensor], target: str, smoothing: float) -> None:
    logits, labels = batch["logits"], batch[target]
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert criterion("auto", smoothing=smoothing)(logits, labels) == expected
    dense = F.one_hot(labels, K).float() if target == "index" else labels
    each = F.cross_entropy(logits, dense, label_smoothing=smoothing, reduction="none")
    naive = ((dense @ WEIGHTS) * each).mean()
    same(criterion("cross_entropy", weighted=True, smoothing=smoothing)(logits, labels), naive)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["focal", "asymmetric"])
def test_the_lowest_loss_is_at_the_labels(name: Any, multi_label: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="smt_vision"):
        compute = criterion(name, multi_label=multi_label, smoothing=ClassificationAugment().label_smoothing)
    assert len(re.findall(rf"loss\.name={name}: augment\.label_smoothing=0\.1", caplog.text)) == 1
    for target in (torch.eye(K)[:1], torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]])):  # the second one of mixup
        grid = [torch.where(target > 0, a, b) for a, b in itertools.product(torch.arange(-9.0, 10.0), repeat=2)]
        lowest = min(grid, key=lambda logits, target=target: float(compute(logits, target)))
        scores = lowest.softmax(1) if name == "focal" and not multi_label else lowest.sigmoid()
        assert scores[target == 0].max() < 0.05
        if target.max() == 1:
            assert scores.max() > 0.95


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "focal", "asymmetric"])
def test_a_rare_class_has_no_weight_in_the_smoothed_target_of_other_images(name: str) -> None:
    """Of an image of a frequent class, the rare one would else be the larger part of the target."""
    loss = ClassificationLoss((0.25, 25.0), name=name)  # type: ignore[arg-type]
    compute = classification_loss(loss, ("frequent", "rare"), np.array([99, 1]), label_smoothing=0.1)
    logits = torch.zeros(1, 2, requires_grad=True)
    compute(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_loss_of_index_targets_is_that_of_the_same_soft_targets(batch: dict[str, Tensor]) -> None:
    hot = F.one_hot(batch["index"], K)
    for name, smoothing in itertools.product(("cross_entropy", "bce", "focal", "asymmetric"), (0.0, 0.1)):
        compute = criterion(name, weighted=True, smoothing=smoothing)
        same(compute(batch["logits"], batch["index"]), compute(batch["logits"], hot.float()))


@pytest.mark.parametrize("weighted", [False, True])
def test_weighted_loss_does_not_depend_on_how_images_are_distributed(batch: dict[str, Tensor], weighted: bool) -> None:
    for name, target in itertools.product(("cross_entropy", "bce", "focal", "asymmetric"), ("index", "soft")):
        compute = criterion(name, weighted=weighted)
        whole = compute(batch["logits"][:6], batch[target][:6])
        parts = [compute(batch["logits"][i:j], batch[target][i:j]) for i, j in ((0, 3), (3, 6))]
        same(whole, sum(parts) / 2)


@pytest.mark.parametrize("target", ["soft", "hot"])
def test_bce_is_pytorchs(batch: dict[str, Tensor], target: str) -> None:
    logits, labels = batch["logits"], batch[target]
    for weighted in (False, True):
        expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=WEIGHTS if weighted else None)
        same(criterion("bce", weighted)(logits, labels), expected)
        same(criterion("auto", weighted, multi_label=True)(logits, labels), expected)
    smoothed = F.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1)
    same(criterion("bce", multi_label=True, smoothing=0.2)(logits, labels), smoothed)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_torchvisions_for_multi_label_and_that_of_the_softmax_otherwise(
    batch: dict[str, Tensor], gamma: float
) -> None:
    logits, hot, index = batch["logits"], batch["hot"], batch["index"]
    expected = sigmoid_focal_loss(logits, hot, alpha=-1, gamma=gamma)
    same(criterion("focal", multi_label=True, gamma=gamma)(logits, hot), expected.mean())
    weighted = criterion("focal", True, multi_label=True, gamma=gamma)(logits, hot)
    same(weighted, (expected * torch.where(hot == 1, WEIGHTS, 1.0)).mean())
    p = logits.softmax(1)[torch.arange(7), index]
    terms = (1 - p) ** gamma * -p.log()
    same(criterion("focal", gamma=gamma)(logits, index), terms.mean())
    same(criterion("focal", True, gamma=gamma)(logits, index), (WEIGHTS[index] * terms).mean())


@pytest.mark.parametrize(("positive", "negative", "clip"), [(0.0, 4.0, 0.05), (1.0, 4.0, 0.05), (1.0, 2.0, 0.0)])
def test_asymmetric_loss_is_timms(batch: dict[str, Tensor], positive: float, negative: float, clip: float) -> None:
    theirs = AsymmetricLossMultiLabel(negative, positive, clip)  # sums over the classes, and the images or their mean
    each = [
        theirs(logits, target) for logits, target in zip(batch["logits"].split(1), batch["hot"].split(1), strict=True)
    ]
    ours = criterion("asymmetric", gamma_positive=positive, gamma_negative=negative, clip=clip)
    same(ours(batch["logits"], batch["hot"]), torch.stack(each).mean() / K)


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "focal", "asymmetric"])
def test_losses_and_gradients_are_finite_at_extreme_logits(name: str) -> None:
    exponents = dict(gamma=0.5, gamma_positive=0.5, gamma_negative=0.5)
    values = [[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0], [0.0, 0.0, 0.0], [-2.9444389, 0.0, 20.0]]
    for dtype, clip in itertools.product((torch.float32, torch.bfloat16), (0.0, 0.05)):
        logits = torch.tensor(values, dtype=dtype, requires_grad=True)
        loss = ClassificationLoss(name=name, clip=clip, **exponents)  # type: ignore[arg-type]
        value = classification_loss(loss, NAMES, np.ones(3, dtype=np.int64))(logits, torch.tensor([0, 0, 1, 2]))
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_cross_entropy_is_refused_for_several_classes_per_image(tmp_path: Path) -> None:
    several = ClassifyConfig(multi_label=True)
    with pytest.raises(ValueError, match=r"loss\.name=cross_entropy.*multi_label.*bce"):
        tiny(tmp_path, classify=several, loss=ClassificationLoss(name="cross_entropy"))
    tiny(tmp_path, classify=several)
    with pytest.raises(ValueError, match=r"loss\.name=cross_entropy"):
        criterion("cross_entropy", multi_label=True)


def test_segmentation_losses_by_hand() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    label[0, :2] = IGNORE_INDEX
    weight, known = torch.tensor([0.5, 1.0, 3.0]), label != IGNORE_INDEX
    p = logits.softmax(1).movedim(1, -1)[known][torch.arange(24), label[known]]
    w = weight[label[known]]
    same(class_losses(logits, label)["cross_entropy"], -p.log().mean())
    same(class_losses(logits, label, weight=weight)["cross_entropy"], (-p.log() * w).mean())
    terms = (1 - p) ** 2 * -p.log()
    same(class_losses(logits, label, gamma=2.0)["focal"], terms.mean())
    same(class_losses(logits, label, gamma=2.0, weight=weight)["focal"], (terms * w).mean())
    nothing = torch.full_like(label, IGNORE_INDEX)
    assert class_losses(logits, nothing, gamma=2.0, weight=weight)["focal"] == 0


def test_pixels_count_the_same_on_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over processes of the losses is the mean over the labeled pixels of all of them."""
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    label[1, :3] = IGNORE_INDEX  # 16 labeled pixels on the first process, 4 on the second
    expected = float(class_losses(logits, label)["cross_entropy"])
    binary = float(binary_losses(logits[:, :1], label.where(label == IGNORE_INDEX, label % 2))["bce"])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    found, found_binary = [], []
    for i, other in ((0, 4), (1, 16)):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda total, other=other: total.add_(other))
        own, of = logits[i : i + 1], label[i : i + 1]
        found.append(float(class_losses(own, of)["cross_entropy"]))
        found_binary.append(float(binary_losses(own[:, :1], of.where(of == IGNORE_INDEX, of % 2))["bce"]))
    assert sum(found) / 2 == pytest.approx(expected)
    assert sum(found_binary) / 2 == pytest.approx(binary)


def test_binary_segmentation_losses_by_hand() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))
    label[0, :2] = IGNORE_INDEX
    known, weight = label != IGNORE_INDEX, torch.tensor([0.5, 3.0])
    z, t = logits[:, 0][known], label[known].float()
    plain, weighted = binary_losses(logits, label), binary_losses(logits, label, weight=weight)
    same(plain["bce"], F.binary_cross_entropy_with_logits(z, t))
    w = weight[t.long()]
    same(weighted["bce"], F.binary_cross_entropy_with_logits(z, t, weight=w))
    focal = sigmoid_focal_loss(z, t, alpha=-1, gamma=2.0)
    same(binary_losses(logits, label, gamma=2.0)["focal"], focal.mean())
    same(binary_losses(logits, label, 2.0, weight)["focal"], (focal * w).mean())
    same(plain["iou"], weighted["iou"])


@pytest.mark.parametrize("binary", [False, True])
def test_dice_loss_by_hand(binary: bool) -> None:
    logits = torch.randn(2, 1 if binary else 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.arange(32).reshape(2, 4, 4) % 2  # of three classes, the last does not occur
    label[0, :2] = IGNORE_INDEX
    known = label != IGNORE_INDEX
    p = logits.sigmoid() if binary else logits.softmax(1)
    of_class = [(p[:, 0], 1)] if binary else [(p[:, k], k) for k in range(2)]
    dice = [
        1 - 2 * score[known & (label == k)].sum() / (score[known].sum() + (label == k).sum()) for score, k in of_class
    ]
    same(dice_loss(binary)(logits, label), sum(dice) / logits.shape[1])


# Runs


@pytest.mark.usefixtures("no_report")
def test_run_with_sampling_and_weights_is_resumed_bitwise(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", COLORS, [12, 4, 2])
    write_images(tmp_path / "data" / "val", COLORS, [2] * 3)
    recipe = tiny(
        tmp_path / "data",
        sampling=Sampling("balanced"),
        loss=ClassificationLoss("effective", name="focal"),
        augment={"hflip": 0.5, "crop": "pad", "mixup": 0.2},
    )
    whole = smt_vision.train(recipe, tmp_path / "whole", display=False)
    assert whole.total_steps == 2 * (18 // 4)
    smt_vision.train(recipe, tmp_path / "parts", display=False, max_steps=3)
    smt_vision.train(recipe, tmp_path / "parts", display=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_weights_of_a_classification_run_are_those_of_its_training_images(tmp_path: Path) -> None:
    write_images(tmp_path / "train", COLORS, [12, 4, 2])
    write_images(tmp_path / "val", COLORS, [3] * 3)
    task: Any = get_task("classify").training(tiny(tmp_path, loss=ClassificationLoss("balanced"), train_fraction=0.5))
    counts = np.bincount(task.train_set.targets)  # in alphabetical order
    assert sorted(counts) == [1, 2, 6]
    logits, target = torch.randn(3, 3), torch.arange(3)
    terms = F.cross_entropy(logits, target, reduction="none") * torch.from_numpy(9 / (3 * counts))
    assert task.criterion(logits, target) == pytest.approx(terms.mean().item())


def test_dense_tasks_take_sampling_and_weights(shapes: Path, scenes: Path) -> None:
    sampling = Sampling("repeat_factor", threshold=1.0)
    detection: Any = get_task("detect").training(replace(shapes_recipe(shapes), sampling=sampling))
    batch = next(iter(detection.train_loader(0, 1).epoch(0)))
    assert len(batch["targets"]) == 4
    balanced = replace(shapes_recipe(shapes), loss=DetectionLoss("balanced"))
    detection = get_task("detect").training(balanced)
    counts = np.bincount(detection.train_set.objects()["labels"])
    found = [module.class_weights for module in detection.model.modules() if isinstance(module, WeightsClasses)]
    assert [weights.numpy() for weights in found] == [pytest.approx(counts.sum() / (len(counts) * counts))]
    with pytest.raises(ValueError, match=r"loss\.class_weights has 3 values for 2 classes"):
        get_task("detect").training(replace(balanced, loss=DetectionLoss((1, 2, 3))))
    recipe = scenes_recipe(scenes)
    plain: Any = get_task("segment").training(recipe)
    weighted: Any = get_task("segment").training(
        replace(recipe, sampling=sampling, loss=SegmentationLoss("balanced", name="focal", dice=0.5))
    )
    pixels = weighted.train_set.count_pixels().sum(axis=0)
    assert weighted.class_weights.numpy() == pytest.approx(pixels.sum() / (len(pixels) * pixels))
    assert plain.class_weights is None
    batch = next(iter(weighted.train_loader(0, 1).epoch(0)))
    assert set(weighted.loss(weighted.model, batch)) == {"focal", "dice", "auxiliary"}
    assert set(plain.loss(plain.model, batch)) == {"cross_entropy", "auxiliary"}
