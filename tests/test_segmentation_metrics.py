"""Segmentation metrics: known answers, agreement with torchmetrics, reduction over processes."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import py_sod_metrics
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from processes import run_on_processes
from smt_vision.tasks.bootstrap import resampled_counts
from smt_vision.tasks.segmentation.metrics import BinaryMetrics, SegmentationMetrics
from smt_vision.tasks.segmentation.task import SegmentationMetric

CLASSES = 5


def random_maps(images: int = 6, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """(prediction, label) pairs of different sizes; 10 % of the pixels are ignored, 68 % of the others correct."""
    rng = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(images):
        size = (11 + i, 17 - i)
        label = torch.randint(CLASSES, size, generator=rng)
        guess = torch.randint(CLASSES, size, generator=rng)
        prediction = torch.where(torch.rand(size, generator=rng) < 0.6, label, guess)
        label[torch.rand(size, generator=rng) < 0.1] = 255
        pairs.append((prediction, label))
    return pairs


def accumulate(pairs: list[tuple[Tensor, Tensor]], classes: int = CLASSES) -> SegmentationMetrics:
    metrics = SegmentationMetrics(classes)
    for prediction, label in pairs:
        metrics.update(prediction, label)
    return metrics


def test_known_answer():
    label = torch.tensor([[0, 0, 0, 0], [1, 1, 255, 255]])
    prediction = torch.tensor([[0, 0, 0, 1], [1, 1, 0, 2]])
    found = accumulate([(prediction, label)], classes=4).compute()
    assert found["confusion"].tolist() == [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert [row["iou"] for row in found["per_class"]] == [pytest.approx(75), pytest.approx(200 / 3), None, None]
    assert [row["accuracy"] for row in found["per_class"]] == [75, 100, None, None]
    assert [row["pixels"] for row in found["per_class"]] == [4, 2, 0, 0]
    assert found["miou"] == pytest.approx((75 + 200 / 3) / 2)
    assert found["pixel_accuracy"] == pytest.approx(500 / 6)
    assert found["mean_class_accuracy"] == pytest.approx(87.5)
    assert found["count"] == 1


def test_class_that_is_only_predicted_counts_in_miou():
    found = accumulate([(torch.tensor([[0, 2]]), torch.tensor([[0, 0]]))], classes=4).compute()
    assert [row["iou"] for row in found["per_class"]] == [50, None, 0, None]
    assert found["miou"] == 25


def test_agrees_with_torchmetrics():
    pairs = random_maps()
    prediction, label = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    found = accumulate(pairs).compute()
    assert 40 < found["miou"] < 60
    iou = multiclass_jaccard_index(prediction, label, CLASSES, average=None, ignore_index=255)
    assert [row["iou"] for row in found["per_class"]] == pytest.approx((100 * iou).tolist(), abs=1e-4)
    mean = multiclass_jaccard_index(prediction, label, CLASSES, ignore_index=255)
    assert found["miou"] == pytest.approx(100 * mean.item(), abs=1e-4)
    for name, average in (("pixel_accuracy", "micro"), ("mean_class_accuracy", "macro")):
        expected = multiclass_accuracy(prediction, label, CLASSES, average=average, ignore_index=255)
        assert found[name] == pytest.approx(100 * expected.item(), abs=1e-4)


def test_iou_is_over_all_pixels_not_a_mean_over_images():
    correct, wrong = torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
    found = accumulate([(correct, correct), (wrong, torch.zeros_like(wrong))], classes=2).compute()
    assert found["per_class"][0]["iou"] == pytest.approx(90)


def test_reduced_shards_give_the_metrics_of_one_process():
    pairs = random_maps()
    shards = [accumulate(pairs[:1]), accumulate(pairs[1:])]
    total = shards[0]._sums + shards[1]._sums
    expected = accumulate(pairs).compute()
    confusion = expected.pop("confusion")
    for shard in shards:
        shard.reduce(lambda _: total)
        found = shard.compute()
        assert torch.equal(found.pop("confusion"), confusion)
        assert found == expected


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_bootstrap_interval_is_that_of_evaluations_of_resampled_images(binary: bool, world: int) -> None:
    pairs, resamples = random_maps(), 5 if binary else 40
    if binary:
        pairs = [((prediction / 8).float(), (label == 1).long()) for prediction, label in pairs]
    expected = []
    for counts in next(resampled_counts(len(pairs), resamples)):
        metrics = BinaryMetrics() if binary else SegmentationMetrics(CLASSES)
        for pair, count in zip(pairs, counts, strict=True):
            for _ in range(count):
                metrics.update(*pair)
        expected.append(metrics.compute()["s_measure" if binary else "miou"])

    def work(rank: int, all_gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        metric = SegmentationMetric(tuple("abcde"), binary, torch.device("cpu"), resamples=resamples)
        for i in range(len(pairs) - 1 - rank, -1, -world):  # in another order
            metric.update([pairs[i][0]], {"label": [pairs[i][1]], "index": torch.tensor([i])})
        metric.reduce(lambda value: all_gather(value).sum(0), all_gather)
        return metric.compute()["interval"]

    low, high = np.percentile(expected, [2.5, 97.5])
    assert high - low > 0.1
    for interval in run_on_processes(work, world):
        assert (interval["low"], interval["high"]) == pytest.approx((low, high), rel=1e-9)
        assert (interval["metric"], interval["resamples"]) == ("s_measure" if binary else "miou", resamples)


@pytest.mark.parametrize("label", [-1, CLASSES, 254])
def test_invalid_labels_are_named(label):
    labels = torch.tensor([[0, label, 255]])
    with pytest.raises(ValueError, match=rf"labels \[{label}\].*0 to 4.*255"):
        SegmentationMetrics(CLASSES).update(torch.zeros(1, 3, dtype=torch.long), labels)


@pytest.mark.parametrize("metrics", [SegmentationMetrics(2), BinaryMetrics()], ids=["classes", "binary"])
def test_mismatched_shapes_and_empty_metrics_are_errors(metrics):
    with pytest.raises(ValueError, match=r"prediction.*\(2, 3\).*label.*\(3, 2\)"):
        metrics.update(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="evaluated"):
        metrics.compute()


def disc(height: int, width: int, radius: float, shift: int = 0) -> Tensor:
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy((y - height / 2) ** 2 + (x - width / 2 - shift) ** 2 < radius**2)


def test_binary_known_answers():
    mask = disc(40, 60, 12).long()
    perfect = BinaryMetrics()
    assert perfect.update(mask.float(), mask) == 0
    found = perfect.compute()
    expected = {"s_measure": 100, "weighted_f": 100, "max_f": 100, "adaptive_f": 100}
    expected |= dict.fromkeys(("max_e", "adaptive_e"), 100 * 2400 / 2399)  # E-measure divides by one pixel less
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert (found["mae"], found["count"]) == (0, 1)
    # At threshold 0, one of 256, all pixels are predicted: precision is the area of the object, recall is 1.
    area = float(mask.double().mean())
    assert found["mean_f"] == pytest.approx(100 * (255 + 1.3 * area / (0.3 * area + 1)) / 256, abs=1e-6)
    assert 99.6 < found["mean_e"] < 100
    curves = found["curves"]
    assert {len(curve) for curve in curves.values()} == {256}
    assert curves["precision"] == pytest.approx([area] + [1.0] * 255, abs=1e-4)
    assert curves["recall"] == [1.0] * 256
    assert curves["f"] == pytest.approx([1.3 * area / (0.3 * area + 1)] + [1.0] * 255, abs=1e-4)
    assert max(curves["e"]) == pytest.approx(found["max_e"] / 100, abs=1e-4)

    inverse = BinaryMetrics()
    assert inverse.update(1 - mask.float(), mask) == 1
    found = inverse.compute()
    assert found["mae"] == 100
    assert found["weighted_f"] < 1
    assert found["s_measure"] < 1

    shifted = BinaryMetrics()
    moved = disc(40, 60, 12, shift=6)
    shifted.update(moved.float(), mask)
    found = shifted.compute()
    assert found["mae"] == pytest.approx(100 * float((moved.long() != mask).double().mean()), abs=1e-6)
    assert 40 < found["weighted_f"] < 90
    assert 40 < found["s_measure"] < 95


def test_binary_metrics_are_means_over_images_for_any_number_of_processes():
    mask = disc(40, 60, 12).long()
    probabilities = [disc(40, 60, 12, shift=shift).float() for shift in (0, 3, 9)]
    shards = [BinaryMetrics(), BinaryMetrics()]
    for i, probability in enumerate(probabilities):
        shards[i % 2].update(probability, mask)
    total = shards[0]._sums + shards[1]._sums
    shards[1].reduce(lambda _: total)
    per_image = []
    for probability in probabilities:
        metrics = BinaryMetrics()
        metrics.update(probability, mask)
        per_image.append(metrics.compute())
    metrics_of_all = shards[1].compute()
    curves = metrics_of_all.pop("curves")
    for name, values in curves.items():
        expected = np.mean([found["curves"][name] for found in per_image], axis=0)
        assert values == pytest.approx(expected, abs=1e-4)
    for name, value in metrics_of_all.items():
        if not name.startswith("max"):  # the maximum is that of the mean curve
            expected = 3 if name == "count" else np.mean([found[name] for found in per_image])
            assert value == pytest.approx(expected, rel=1e-12)


def test_binary_metrics_equal_those_of_pysodmetrics_over_the_whole_set():
    rng = np.random.default_rng(0)
    library = {
        "mae": py_sod_metrics.MAE(),
        "wfm": py_sod_metrics.WeightedFmeasure(),
        "sm": py_sod_metrics.Smeasure(),
        "em": py_sod_metrics.Emeasure(),
    }
    with warnings.catch_warnings():  # its successor, which BinaryMetrics uses, has other code
        warnings.simplefilter("ignore")
        library["fm"] = py_sod_metrics.Fmeasure()
    shards = [BinaryMetrics() for _ in range(3)]
    for i in range(10):
        height, width = 30 + i, 50 - i
        mask = disc(height, width, 3 + i).numpy()
        mask[:] = {3: 0, 4: 1}.get(i, mask)  # no object, and nothing else
        noise = rng.normal(0.2, 0.2, mask.shape).astype(np.float32)
        probability = np.clip(0.6 * mask + noise, 0, 1, dtype=np.float32)
        probability[:] = {5: 0.0, 6: 0.5}.get(i, probability)  # constant predictions
        for metric in library.values():
            metric.step(pred=np.rint(255 * probability).astype(np.uint8), gt=(255 * mask).astype(np.uint8))
        shards[i % 3].update(torch.from_numpy(probability), torch.from_numpy(mask).long())
    total = torch.stack([shard._sums for shard in shards]).sum(dim=0)
    shards[1].reduce(lambda _: total)
    results = {name: metric.get_results()[name] for name, metric in library.items()}
    expected = {"mae": results["mae"], "weighted_f": results["wfm"], "s_measure": results["sm"]}
    for name in ("e", "f"):
        found = results[f"{name}m"]
        expected[f"mean_{name}"] = found["curve"].mean()
        expected[f"max_{name}"] = found["curve"].max()
        expected[f"adaptive_{name}"] = found["adp"]
    metrics = shards[1].compute()
    assert metrics.pop("count") == 10
    curves = metrics.pop("curves")
    for name in ("e", "f"):
        assert curves[name] == pytest.approx(results[f"{name}m"]["curve"][::-1], abs=1e-4)
    assert metrics == pytest.approx({name: 100 * value for name, value in expected.items()}, rel=1e-13)
    assert len({round(value, 3) for value in metrics.values()}) == 9


def test_binary_accepts_half_precision_and_counts_ignored_pixels_as_background():
    mask = disc(40, 60, 12).long()
    label = torch.where(disc(40, 60, 3, shift=25), 255, mask)
    half, full = BinaryMetrics(), BinaryMetrics()
    half.update(0.75 * mask.to(torch.bfloat16), label)
    full.update(0.75 * mask.float(), mask)
    assert torch.equal(half._sums, full._sums)
