"""Classification metrics: agreement with torchmetrics and timm, independence of batching, reduction over processes."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.utils import accuracy
from torch import Tensor, nn
from torchmetrics.functional import classification as torchmetrics
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from processes import run_on_processes
from smt_vision.tasks.bootstrap import resampled_counts
from smt_vision.tasks.classification import ranking
from smt_vision.tasks.classification.config import ClassifyConfig
from smt_vision.tasks.classification.evaluation import ClassificationMetric
from smt_vision.tasks.classification.metrics import ClassificationMetrics, MultiLabelMetrics
from smt_vision.tasks.classification.ranking import RankingMetrics

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


def test_nan_logits_do_not_displace_mistakes():
    metric = ClassificationMetric(("a", "b"), torch.device("cpu"), ClassifyConfig(), 40)
    logits = torch.full((40, 2), float("nan"))
    logits[:3] = torch.tensor([3.0, 0.0])
    metric.update(logits, {"target": torch.ones(40, dtype=torch.long), "index": torch.arange(40)})
    assert [row["index"] for row in metric.compute()["worst"][:3]] == [0, 1, 2]


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


# --- precision, recall, F1 and kappa


@pytest.mark.parametrize("classes", [3, CLASSES, 40])
def test_averages_and_kappa_agree_with_torchmetrics(classes: int) -> None:
    logits, target = sample(classes=classes)
    target[target == 1] = 0  # class 1 is predicted only
    logits[:, -1] = -9.0  # the last class is true only
    found = accumulate(logits, target, 123, 377).compute()
    for name in ("precision", "recall", "f1_score"):
        for average in ("macro", "micro", "weighted"):
            expected = getattr(torchmetrics, f"multiclass_{name}")(logits, target, classes, average=average)
            ours = found[f"{name.removesuffix('_score')}_{average}"]
            assert ours == pytest.approx(100 * expected.item(), abs=1e-4), (name, average)
        per_class = getattr(torchmetrics, f"multiclass_{name}")(logits, target, classes, average=None)
        rows = [row[name.removesuffix("_score")] for row in found["per_class"]]
        assert rows == pytest.approx((100 * per_class).tolist(), abs=1e-4)
    assert found["precision_micro"] == found["top1"]
    kappa = torchmetrics.multiclass_cohen_kappa(logits, target, classes)
    assert found["kappa"] == pytest.approx(kappa.item(), abs=1e-6)


def test_classes_that_do_not_occur_have_no_metrics_and_do_not_count() -> None:
    found = accumulate(torch.eye(4)[[0, 0, 1]], torch.tensor([0, 1, 1])).compute()
    assert [row["precision"] for row in found["per_class"]] == [50, 100, None, None]
    assert [row["recall"] for row in found["per_class"]] == [100, 50, None, None]
    assert found["f1_macro"] == pytest.approx(100 * 2 / 3)
    assert found["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))


def test_kappa_of_a_single_class_is_undefined() -> None:
    assert accumulate(torch.eye(2)[[0, 0]], torch.tensor([0, 0])).compute()["kappa"] is None


@pytest.mark.parametrize("k", [1, 3, 12])
def test_k_of_the_top_k_accuracy(k: int) -> None:
    logits, target = sample()
    metrics = ClassificationMetrics(CLASSES, top_k=k)
    metrics.update(logits, target)
    found = metrics.compute()
    expected = multiclass_accuracy(logits, target, CLASSES, average="micro", top_k=min(k, CLASSES))
    assert found[f"top{k}"] == pytest.approx(100 * expected.item(), abs=1e-4)
    assert ("top5" in found) == (k == 5)


def test_calibration_bins_give_the_calibration_error() -> None:
    found = accumulate(*sample()).compute()
    bins = found["calibration"]
    assert sum(row["count"] for row in bins) == 500
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins]
    assert sum(gaps) / 500 == pytest.approx(found["ece"])


# --- ranking: average precision, AUROC


def labels(images: int = 300, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Multi-label logits with many ties, and targets (B, K)."""
    generator = torch.Generator().manual_seed(3)
    target = (torch.rand(images, classes, generator=generator) < 0.3).long()
    logits = (torch.randn(images, classes, generator=generator) + 2 * target - 1).mul(4).round().div(4)
    return logits, target


def rank_metrics(multi_label: bool, logits: Tensor, target: Tensor, world: int = 1) -> list[dict[str, Any]]:
    """The metrics on each of several processes, which have the images in another order."""

    def work(rank: int, all_gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        metrics = RankingMetrics(logits.shape[1], len(logits), multi_label)
        for rows in torch.arange(len(logits)).flip(0)[rank::world].split(50):
            metrics.update(logits[rows], target[rows], rows)
        metrics.reduce(lambda value: all_gather(value).sum(0), all_gather)
        return metrics.compute()

    return run_on_processes(work, world)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("multi_label", [False, True])
def test_average_precision_and_auroc_are_those_of_torchmetrics(multi_label: bool, world: int) -> None:
    logits, target = labels() if multi_label else sample()
    scores = logits.sigmoid() if multi_label else logits.softmax(1)
    kind = "multilabel" if multi_label else "multiclass"
    results = rank_metrics(multi_label, logits, target, world)
    for found in results:
        for name, ours, mean in (("average_precision", "ap", "map"), ("auroc", "auroc", "auroc_macro")):
            expected = getattr(torchmetrics, f"{kind}_{name}")(scores, target, CLASSES, average=None)
            assert found[ours] == pytest.approx((100 * expected).tolist(), abs=1e-4)
            assert found[mean] == pytest.approx(100 * expected.mean().item(), abs=1e-4)
        assert found["score_thresholds"] is None
        assert found == results[0] == rank_metrics(multi_label, logits, target)[0]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_confident_scores_keep_their_order(multi_label: bool, scale: float) -> None:
    """Scores of such logits are 1 in float32."""
    generator = torch.Generator().manual_seed(5)
    target = (torch.rand(300, CLASSES, generator=generator) < 0.3).long()
    logits = (torch.randn(300, CLASSES, generator=generator) + target) * scale
    if not multi_label:
        target = target.argmax(1)
    keep = ~torch.eye(CLASSES, dtype=torch.bool)  # the score of a class rises with its distance from the others
    others = torch.stack([logits[:, others].double().logsumexp(1) for others in keep], dim=1)
    order = logits if multi_label else logits.double() - others
    truth = target if multi_label else nn.functional.one_hot(target, CLASSES)
    (found,) = rank_metrics(multi_label, logits, target)
    for k in range(CLASSES):
        ranked = truth[order[:, k].argsort(descending=True), k].bool()
        precision = ranked.cumsum(0) / torch.arange(1, 301)
        negatives_before = (~ranked).cumsum(0)[ranked]
        assert found["ap"][k] == pytest.approx(100 * precision[ranked].mean().item(), abs=1e-4)
        area = 1 - negatives_before.double().mean().item() / int((~ranked).sum())
        assert found["auroc"][k] == pytest.approx(100 * area, abs=1e-4)


def test_processes_without_images_take_part() -> None:
    logits, target = sample(images=2)
    (alone,) = rank_metrics(False, logits, target)
    assert rank_metrics(False, logits, target, world=4) == [alone] * 4


@pytest.mark.parametrize("multi_label", [False, True])
def test_many_scores_are_counted_at_thresholds(multi_label: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = labels() if multi_label else sample()
    (exact,) = rank_metrics(multi_label, logits, target)
    monkeypatch.setattr(ranking, "SCORES_LIMIT", logits.numel() - 1)
    results = rank_metrics(multi_label, logits, target, world=3)
    assert results == rank_metrics(multi_label, logits, target) * 3
    assert results[0]["score_thresholds"] == 200
    assert results[0]["ap"] == pytest.approx(exact["ap"], abs=2.5)
    assert results[0]["auroc"] == pytest.approx(exact["auroc"], abs=0.5)
    assert results[0]["ap"] != exact["ap"]
    config = ClassifyConfig(multi_label=True)
    with pytest.raises(ValueError, match="bootstrap"):
        ClassificationMetric(tuple("abcdefg"), torch.device("cpu"), config, len(logits), resamples=10)


def test_undefined_average_precision_and_auroc() -> None:
    logits = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.7, float("nan"), 0.1]])
    (found,) = rank_metrics(True, logits, torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0]]))
    assert found["ap"] == [100, 100, None]  # every image has the first class, none the last; NaN ranks last
    assert found["auroc"] == [None, 100, None]
    assert (found["map"], found["auroc_macro"]) == (100, 100)
    assert [row["class"] for row in found["curves"]["classes"]] == [1]


def test_curves_are_on_the_grid() -> None:
    """Scores that rank the images of class 1 as yes, no, yes, no: precision 1, then 2/3."""
    logits = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    (found,) = rank_metrics(False, logits, torch.tensor([1, 0, 1, 0]))
    curve = found["curves"]["classes"][1]
    assert found["curves"]["grid"] == [round(i / 100, 2) for i in range(101)]
    assert curve["precision"] == [1.0] * 51 + [0.6667] * 50
    assert (curve["tpr"][0], curve["tpr"][50], curve["tpr"][100]) == (0.5, 1.0, 1.0)
    assert found["ap"][1] == pytest.approx(100 * 5 / 6)
    assert found["auroc"][1] == pytest.approx(75)


def test_curves_of_the_worst_of_many_classes() -> None:
    logits, target = sample(classes=14)
    (found,) = rank_metrics(False, logits, target)
    worst = sorted(range(14), key=lambda k: found["ap"][k])[:10]
    assert [row["class"] for row in found["curves"]["classes"]] == sorted(worst)


# --- multi-label classification


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_multi_label_metrics_agree_with_torchmetrics(threshold: float) -> None:
    logits, target = labels()
    logits += 0.01  # torchmetrics counts a score that equals the threshold as below
    metrics = MultiLabelMetrics(CLASSES, threshold)
    for part, truth in zip(logits.split(77), target.split(77), strict=True):
        metrics.update(part, truth.float())
    found, options = metrics.compute(), dict(num_labels=CLASSES, threshold=threshold)
    scores = logits.sigmoid()
    for name in ("precision", "recall", "f1_score"):
        for average in ("macro", "micro", "weighted"):
            expected = getattr(torchmetrics, f"multilabel_{name}")(scores, target, **options, average=average)
            ours = found[f"{name.removesuffix('_score')}_{average}"]
            assert ours == pytest.approx(100 * expected.item(), abs=1e-4), (name, average)
    subset = torchmetrics.multilabel_exact_match(scores, target, **options)
    assert found["subset_accuracy"] == pytest.approx(100 * subset.item(), abs=1e-4)
    hamming = torchmetrics.multilabel_hamming_distance(scores, target, **options)
    assert found["hamming_loss"] == pytest.approx(100 * hamming.item(), abs=1e-4)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float())
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-6)
    ece = torchmetrics.binary_calibration_error(scores.flatten(), target.flatten(), n_bins=15)
    assert found["ece"] == pytest.approx(100 * ece.item(), abs=1e-4)
    assert [row["count"] for row in found["per_class"]] == target.sum(0).tolist()


def test_multi_label_images_without_labels_and_wrong_shapes_are_errors() -> None:
    metrics = MultiLabelMetrics(3)
    with pytest.raises(ValueError, match="evaluated"):
        metrics.compute()
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2,\).*\(B, 3\)"):
        metrics.update(torch.zeros(2, 3), torch.zeros(2))
    metrics.update(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="2 evaluated images"):
        metrics.compute()


def test_nan_logits_have_no_predicted_class() -> None:
    metrics = MultiLabelMetrics(2)
    metrics.update(torch.tensor([[5.0, -5.0], [float("nan"), float("nan")]]), torch.tensor([[1, 0], [1, 1]]))
    found = metrics.compute()
    assert found["recall_micro"] == pytest.approx(100 / 3)
    assert (found["precision_micro"], found["subset_accuracy"]) == (100, 50)
    assert found["loss"] != found["loss"]


# --- everything together


def evaluated(config: ClassifyConfig, logits: Tensor, target: Tensor, world: int, resamples: int = 0) -> list[Any]:
    names = tuple("abcdefg")

    def work(rank: int, all_gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        metric = ClassificationMetric(names, torch.device("cpu"), config, len(logits), resamples)
        for rows in torch.arange(len(logits))[rank::world].split(31):
            metric.update(logits[rows], {"target": target[rows], "index": rows})
        metric.reduce(lambda value: all_gather(value).sum(0), all_gather)
        return metric.compute()

    return run_on_processes(work, world)


@pytest.mark.parametrize("multi_label", [False, True])
def test_two_processes_give_the_metrics_and_the_interval_of_one(multi_label: bool) -> None:
    logits, target = labels() if multi_label else sample()
    config = ClassifyConfig(multi_label=multi_label, temperature=1.5)
    (alone,) = evaluated(config, logits, target, 1, resamples=50)
    for found in evaluated(config, logits, target, 2, resamples=50):
        for name in ("loss", "ece"):
            assert found.pop(name) == pytest.approx(alone[name], rel=1e-6)
        for row, other in zip(found.pop("calibration"), alone["calibration"], strict=True):
            assert row == pytest.approx(other, rel=1e-6)
        assert found == {name: alone[name] for name in found}


def test_interval_of_top1_is_that_of_resampled_images() -> None:
    logits, target = sample()
    (found,) = evaluated(ClassifyConfig(), logits, target, 1, resamples=4000)
    correct = (logits.argmax(1) == target).double().numpy()
    means = np.concatenate([counts @ correct for counts in resampled_counts(500, 4000)]) / 5
    interval = found["interval"]
    assert (interval["low"], interval["high"]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.25)
    assert 7 < interval["high"] - interval["low"] < 10
    assert interval["metric"] == "top1"
    assert evaluated(ClassifyConfig(), logits, target, 1, resamples=4000)[0]["interval"] == interval


def test_interval_of_map_is_that_of_resampled_images() -> None:
    logits, target = labels()
    (found,) = evaluated(ClassifyConfig(multi_label=True), logits, target, 1, resamples=15)
    expected = []
    for counts in next(resampled_counts(len(logits), 15)):
        rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ap = torchmetrics.multilabel_average_precision(logits.sigmoid()[rows], target[rows], CLASSES)
        expected.append(100 * ap.item())
    low, high = np.percentile(expected, [2.5, 97.5])
    assert high - low > 1
    assert (found["interval"]["low"], found["interval"]["high"]) == pytest.approx((low, high), abs=1e-3)
    assert found["interval"]["metric"] == "map"


def test_temperature_divides_the_logits() -> None:
    logits, target = sample()
    (found,) = evaluated(ClassifyConfig(temperature=2.0), logits, target, 1)
    expected = accumulate(logits / 2, target).compute()
    assert {name: found[name] for name in ("top1", "loss", "ece")} == pytest.approx(
        {name: expected[name] for name in ("top1", "loss", "ece")}
    )


def test_most_confident_wrong_decisions_of_multi_label_images() -> None:
    logits = torch.tensor([[3.0, -2.0, 0.5], [-4.0, 1.0, -1.0], [-3.0, -3.0, 3.0]])
    target = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 1]])
    config = ClassifyConfig(multi_label=True)
    metric = ClassificationMetric(tuple("abc"), torch.device("cpu"), config, 3)
    metric.update(logits, {"target": target, "index": torch.tensor([4, 5, 6])})
    found = metric.compute()
    assert [(row["index"], row["class"], row["present"]) for row in found["worst"]] == [(5, 0, 1), (4, 0, 0)]
    assert [row["score"] for row in found["worst"]] == pytest.approx([0.982014, 0.952574], abs=1e-5)
    assert [row["class"] for row in found["per_class"]] == ["a", "b", "c"]
    assert "confusion" not in found
