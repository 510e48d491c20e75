"""Classification metrics: agreement with torchmetrics and timm, independence of batching, reduction over processes."""

import pytest
import torch
from timm.utils import accuracy
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from smt_vision.tasks.classification.metrics import ClassificationMetrics

CLASSES = 7


def sample(images: int = 500, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits and targets with an accuracy of about 50 %, so that no count is trivial."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (images,), generator=generator)
    logits = 1.5 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), target] += 2.0
    return logits, target


def accumulate(logits: Tensor, target: Tensor, *sizes: int) -> ClassificationMetrics:
    """The metrics after batches of these sizes; by default one batch of all images."""
    metrics = ClassificationMetrics(logits.shape[1])
    splits = list(sizes or [len(logits)])
    for part, truth in zip(logits.split(splits), target.split(splits), strict=True):
        metrics.update(part, truth)
    return metrics


@pytest.mark.parametrize("classes", [2, 5, CLASSES, 40])
def test_agrees_with_torchmetrics(classes):
    logits, target = sample(classes=classes)
    found = accumulate(logits, target, 100, 1, 399).compute()
    assert 20 < found["top1"] < 98
    for name, k in (("top1", 1), ("top5", min(5, classes))):
        expected = multiclass_accuracy(logits, target, classes, average="micro", top_k=k)
        assert found[name] == pytest.approx(100 * expected.item(), abs=1e-4)
    ece = multiclass_calibration_error(logits.softmax(1), target, classes, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(100 * ece.item(), abs=1e-4)
    mean = multiclass_accuracy(logits, target, classes, average="macro")
    assert found["mean_class_accuracy"] == pytest.approx(100 * mean.item(), abs=1e-4)
    assert torch.equal(found["confusion"], multiclass_confusion_matrix(logits, target, classes))
    assert found["confusion"].dtype == torch.int64
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), abs=1e-5)
    assert found["count"] == 500


def test_confidence_of_one_is_binned_as_in_torchmetrics():
    logits = torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0], [2.0, 1.9, 0.0]])  # softmax of 200: exactly 1.0
    target = torch.tensor([0, 1, 0])
    expected = multiclass_calibration_error(logits.softmax(1), target, 3, n_bins=15, norm="l1")
    assert accumulate(logits, target).compute()["ece"] == pytest.approx(100 * expected.item(), abs=1e-4)


def test_per_class_rows_match_the_confusion_matrix():
    found = accumulate(*sample()).compute()
    rows = found["per_class"]
    assert [row["class"] for row in rows] == list(range(CLASSES))
    for row, counts in zip(rows, found["confusion"], strict=True):
        assert row["count"] == counts.sum()
        assert row["accuracy"] == pytest.approx(100 * (counts[row["class"]] / counts.sum()).item(), abs=1e-4)


def test_sums_do_not_depend_on_batch_sizes_and_order():
    logits, target = sample()
    expected = accumulate(logits, target).sums()
    shuffled = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    for other in (
        accumulate(logits, target, 3, 250, 0, 1, 246),
        accumulate(logits[shuffled], target[shuffled], 123, 377),
    ):
        torch.testing.assert_close(other.sums(), expected, rtol=1e-12, atol=0)


def test_reduced_shards_give_the_metrics_of_one_process():
    logits, target = sample()
    shards = [accumulate(logits[:499], target[:499]), accumulate(logits[499:], target[499:])]
    total = shards[0].sums() + shards[1].sums()
    for shard in shards:  # an all-reduce gives every process the same sums
        shard.reduce(lambda _: total)
    expected = accumulate(logits, target).compute()
    for shard in shards:
        found = shard.compute()
        assert torch.equal(found.pop("confusion"), expected["confusion"])
        assert found["per_class"] == expected["per_class"]
        for name in ("top1", "top5", "loss", "ece", "mean_class_accuracy", "count"):
            assert found[name] == pytest.approx(expected[name], rel=1e-12)


def test_reduce_passes_a_copy():
    metrics = accumulate(*sample())
    before = metrics.sums().clone()
    metrics.reduce(lambda sums: sums.add_(sums))  # an all-reduce may work in place
    torch.testing.assert_close(metrics.sums(), 2 * before)


def test_ties_are_ranked_as_in_timm():
    logits, target = torch.zeros(60, 12), torch.arange(60) % 12
    logits[30:, 3:9] = 1.0
    found = accumulate(logits, target).compute()
    expected = accuracy(logits, target, topk=(1, 5))
    assert [found["top1"], found["top5"]] == pytest.approx([float(value) for value in expected], abs=1e-4)


def test_half_precision_logits_are_counted_in_float32():
    logits, target = sample()
    half = logits.to(torch.bfloat16)
    assert torch.equal(accumulate(half, target).sums(), accumulate(half.float(), target).sums())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_make_the_loss_nan(value):
    logits, target = sample(images=10)
    logits[4, target[4]] = value
    found = accumulate(logits, target).compute()
    assert found["loss"] != found["loss"]
    assert found["count"] == 10
    assert 0 <= found["ece"] <= 100


def test_nan_logits_count_as_wrong():
    logits, target = sample(images=10)
    logits[:] = -5.0
    logits[torch.arange(10), target] = 5.0
    logits[4] = float("nan")
    found = accumulate(logits, target).compute()
    assert found["top1"] == found["top5"] == pytest.approx(90)
    assert found["confusion"].sum() == 9  # the image with NaN has no prediction


def test_classes_without_images_are_left_out_of_the_mean_class_accuracy():
    logits = torch.eye(4)[[0, 0, 1]]
    found = accumulate(logits, torch.tensor([0, 1, 1])).compute()
    assert found["mean_class_accuracy"] == pytest.approx(75)
    assert [row["accuracy"] for row in found["per_class"]] == [100, 50, None, None]


def test_no_confusion_matrix_above_a_thousand_classes():
    metrics = ClassificationMetrics(1001)
    metrics.update(torch.eye(1001)[:8], torch.arange(8))
    found = metrics.compute()
    assert found["confusion"] is None
    assert found["top1"] == 100
    assert len(metrics.sums()) < 4000


def test_empty_metrics_are_an_error():
    with pytest.raises(ValueError, match="evaluated"):
        ClassificationMetrics(3).compute()


def test_invalid_shapes_and_num_classes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(B, 3\)"):
        ClassificationMetrics(3).update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"num_classes.*\b0\b"):
        ClassificationMetrics(0)


def test_works_under_inference_mode():
    logits, target = sample()
    metrics = ClassificationMetrics(CLASSES)
    with torch.inference_mode():
        metrics.update(logits, target)
    assert torch.equal(metrics.sums(), accumulate(logits, target).sums())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_sums_equal_cpu_sums():
    logits, target = sample()
    metrics = ClassificationMetrics(CLASSES, "cuda")
    metrics.update(logits.cuda(), target.cuda())
    torch.testing.assert_close(metrics.sums().cpu(), accumulate(logits, target).sums(), rtol=1e-5, atol=1e-5)
