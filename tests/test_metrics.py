"""Evaluation's sums, against torchmetrics and against themselves in other splits and orders."""

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
    """Logits that are right about half the time, so that no count is trivial."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (images,), generator=generator)
    logits = 1.5 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), target] += 2.0
    return logits, target


def measure(logits: Tensor, target: Tensor, *sizes: int) -> ClassificationMetrics:
    """The metrics after batches of these sizes; one batch of everything by default."""
    metrics = ClassificationMetrics(logits.shape[1])
    splits = list(sizes or [len(logits)])
    for part, truth in zip(logits.split(splits), target.split(splits), strict=True):
        metrics.update(part, truth)
    return metrics


@pytest.mark.parametrize("classes", [2, 5, CLASSES, 40])
def test_agrees_with_torchmetrics(classes):
    logits, target = sample(classes=classes)
    found = measure(logits, target, 100, 1, 399).compute()
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


def test_certain_predictions_are_binned_as_in_torchmetrics():
    logits = torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0], [2.0, 1.9, 0.0]])  # softmax of 200: exactly 1.0
    target = torch.tensor([0, 1, 0])
    expected = multiclass_calibration_error(logits.softmax(1), target, 3, n_bins=15, norm="l1")
    assert measure(logits, target).compute()["ece"] == pytest.approx(100 * expected.item(), abs=1e-4)


def test_per_class_rows_are_the_confusion_matrix():
    found = measure(*sample()).compute()
    rows = found["per_class"]
    assert [row["class"] for row in rows] == list(range(CLASSES))
    for row, counts in zip(rows, found["confusion"], strict=True):
        assert row["count"] == counts.sum()
        assert row["accuracy"] == pytest.approx(100 * (counts[row["class"]] / counts.sum()).item(), abs=1e-4)


def test_uneven_batches_and_any_order_give_the_same():
    logits, target = sample()
    whole = measure(logits, target).sums()
    shuffled = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    for other in (measure(logits, target, 3, 250, 0, 1, 246), measure(logits[shuffled], target[shuffled], 123, 377)):
        torch.testing.assert_close(other.sums(), whole, rtol=1e-12, atol=0)


def test_states_of_unequal_shards_add_up():
    logits, target = sample()
    shards = [measure(logits[:499], target[:499]), measure(logits[499:], target[499:])]
    total = shards[0].sums() + shards[1].sums()
    for shard in shards:  # every process gets the same sum
        shard.reduce(lambda _: total)
    whole = measure(logits, target).compute()
    for shard in shards:
        found = shard.compute()
        assert torch.equal(found.pop("confusion"), whole["confusion"])
        assert found["per_class"] == whole["per_class"]
        for name in ("top1", "top5", "loss", "ece", "mean_class_accuracy", "count"):
            assert found[name] == pytest.approx(whole[name], rel=1e-12)


def test_reduce_hands_over_a_copy():
    metrics = measure(*sample())
    before = metrics.sums().clone()
    metrics.reduce(lambda sums: sums.add_(sums))  # an all-reduce may work in place
    torch.testing.assert_close(metrics.sums(), 2 * before)


def test_ties_as_timm():
    logits, target = torch.zeros(60, 12), torch.arange(60) % 12
    logits[30:, 3:9] = 1.0
    found = measure(logits, target).compute()
    expected = accuracy(logits, target, topk=(1, 5))
    assert [found["top1"], found["top5"]] == pytest.approx([float(value) for value in expected], abs=1e-4)


def test_half_precision_logits_are_counted_in_single():
    logits, target = sample()
    half = logits.to(torch.bfloat16)
    assert torch.equal(measure(half, target).sums(), measure(half.float(), target).sums())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_logits_show_in_the_loss(broken):
    logits, target = sample(images=10)
    logits[4, target[4]] = broken
    found = measure(logits, target).compute()
    assert found["loss"] != found["loss"]
    assert found["count"] == 10
    assert 0 <= found["ece"] <= 100


def test_nan_logits_are_wrong():
    logits, target = sample(images=10)
    logits[:] = -5.0
    logits[torch.arange(10), target] = 5.0
    logits[4] = float("nan")
    found = measure(logits, target).compute()
    assert found["top1"] == found["top5"] == pytest.approx(90)
    assert found["confusion"].sum() == 9  # nothing was predicted of the tenth


def test_classes_without_images_are_left_out_of_the_mean():
    logits = torch.eye(4)[[0, 0, 1]]
    found = measure(logits, torch.tensor([0, 1, 1])).compute()
    assert found["mean_class_accuracy"] == pytest.approx(75)
    assert [row["accuracy"] for row in found["per_class"]] == [100, 50, None, None]


def test_no_confusion_matrix_above_a_thousand_classes():
    metrics = ClassificationMetrics(1001)
    metrics.update(torch.eye(1001)[:8], torch.arange(8))
    found = metrics.compute()
    assert found["confusion"] is None
    assert found["top1"] == 100
    assert len(metrics.sums()) < 3000


def test_nothing_evaluated_is_an_error():
    with pytest.raises(ValueError, match="no image was evaluated"):
        ClassificationMetrics(3).compute()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 4\).*expected \(B, 3\)"):
        ClassificationMetrics(3).update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 1"):
        ClassificationMetrics(0)


def test_works_under_inference_mode():
    logits, target = sample()
    metrics = ClassificationMetrics(CLASSES)
    with torch.inference_mode():
        metrics.update(logits, target)
    assert torch.equal(metrics.sums(), measure(logits, target).sums())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_on_a_gpu():
    logits, target = sample()
    metrics = ClassificationMetrics(CLASSES, "cuda")
    metrics.update(logits.cuda(), target.cuda())
    torch.testing.assert_close(metrics.sums().cpu(), measure(logits, target).sums(), rtol=1e-5, atol=1e-5)
