"""COCO average precision: known answers, agreement with the library, reduction over processes."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from torch import Tensor

from processes import run_on_processes
from smt_vision.tasks.bootstrap import resampled_counts
from smt_vision.tasks.detection.metrics import METRIC_NAMES, DetectionMetrics, encode_rle

SIDE = 200  # pixels of every image


def truth(*objects: tuple[int, int, list[float]], images: int = 1, crowd: tuple[int, ...] = ()) -> dict[str, Any]:
    """A dataset of squares, each (image id, category id, [x, y, width, height]); masks equal the boxes."""
    return {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in range(images)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(i in crowd),
                "segmentation": rle_of(box),
            }
            for i, (image, category, box) in enumerate(objects)
        ],
    }


def mask_of(box: list[float]) -> Tensor:
    x, y, w, h = map(round, box)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[y : y + h, x : x + w] = True
    return mask


def rle_of(box: list[float]) -> dict[str, Any]:
    return rle.encode(np.asfortranarray(mask_of(box).numpy().astype(np.uint8)))


def metrics(ground_truth: dict[str, Any], masks: bool = True, **kwargs: Any) -> DetectionMetrics:
    return DetectionMetrics(ground_truth, ("dog", "cat"), (7, 3), masks=masks, **kwargs)


def add(metric: DetectionMetrics, image: int, *found: tuple[list[float], float, int]) -> None:
    """Add detections ([x, y, width, height], score, label) of an image."""
    boxes = torch.tensor([box for box, _, _ in found]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [mask_of(box) for box, _, _ in found]
    metric.update(
        image,
        boxes,
        torch.tensor([score for _, score, _ in found]),
        torch.tensor([label for _, _, label in found], dtype=torch.int64),
        encode_rle(torch.stack(masks)) if metric.masks and masks else [],
    )


BIG, SMALL = [10.0, 10, 100, 100], [150.0, 150, 20, 20]


def test_perfect_detections() -> None:
    metric = metrics(truth((10, 7, BIG), (11, 3, SMALL), images=2))
    add(metric, 10, (BIG, 0.9, 0))
    add(metric, 11, (SMALL, 0.8, 1))
    out = metric.compute()
    for kind in ("box", "mask"):
        assert [out[f"{kind}_{name}"] for name in ("ap", "ap50", "ap75", "ap_small", "ap_large", "ar")] == [100.0] * 6
        assert out[f"{kind}_ap_medium"] is None  # no object is of that size
    assert out["count"] == out["objects"] == 2
    perfect = {"box_ap": 100.0, "box_ap50": 100.0, "mask_ap": 100.0, "mask_ap50": 100.0}
    assert out["per_class"] == [{"class": "dog", "count": 1, **perfect}, {"class": "cat", "count": 1, **perfect}]


def test_shifted_detections() -> None:
    """Squares of 100 shifted by 20 overlap by 80 / 120: enough for the thresholds 0.5, 0.55, 0.6 and 0.65 of ten."""
    metric = metrics(truth((10, 7, BIG)))
    add(metric, 10, ([30.0, 10, 100, 100], 0.9, 0))
    out = metric.compute()
    for kind in ("box", "mask"):
        assert [out[f"{kind}_{name}"] for name in ("ap", "ap50", "ap75")] == pytest.approx([40.0, 100.0, 0.0])


def test_higher_scored_false_positive_halves_precision() -> None:
    metric = metrics(truth((10, 7, BIG)), masks=False)
    add(metric, 10, ([100.0, 100, 90, 90], 0.9, 0), (BIG, 0.5, 0))
    out = metric.compute()
    assert out["box_ap50"] == pytest.approx(50.0)
    assert out["box_ar"] == 100.0
    assert out["box_ar1"] == 0.0  # of the first detection only
    assert not any(name.startswith("mask") for name in out)


def test_wrong_class() -> None:
    metric = metrics(truth((10, 7, BIG)))
    add(metric, 10, (BIG, 0.9, 1))
    out = metric.compute()
    assert (out["box_ap"], out["mask_ap"]) == (0.0, 0.0)
    assert [row["box_ap"] for row in out["per_class"]] == [0.0, None]  # there are no cats


def test_crowds_are_ignored() -> None:
    crowd = [0.0, 120, 200, 80]
    metric = metrics(truth((10, 7, BIG), (10, 7, crowd), crowd=(1,)))
    add(metric, 10, (BIG, 0.5, 0), ([20.0, 130, 30, 30], 0.9, 0), ([60.0, 130, 30, 30], 0.8, 0))
    out = metric.compute()
    assert (out["box_ap"], out["mask_ap"], out["objects"]) == (100.0, 100.0, 1)


def test_crowds_without_a_mask_are_their_box() -> None:
    crowd = [0.0, 120, 200, 80]
    ground_truth = truth((10, 7, BIG), (10, 7, crowd), crowd=(1,))
    del ground_truth["annotations"][1]["segmentation"]
    metric = metrics(ground_truth)
    add(metric, 10, (BIG, 0.5, 0), ([20.0, 130, 30, 30], 0.9, 0))
    out = metric.compute()
    assert (out["box_ap"], out["mask_ap"], out["objects"]) == (100.0, 100.0, 1)


@pytest.mark.parametrize("first", [0, -3, 2**62])
def test_ids_do_not_matter(first: int) -> None:
    def run(offset: int) -> dict[str, Any]:
        ground_truth, found = random_dataset()
        for image in ground_truth["images"]:
            image["id"] += offset
        for number, entry in enumerate(ground_truth["annotations"]):
            entry["id"] = 1 + offset + number
            entry["image_id"] += offset
            entry["category_id"] += offset
        for category in ground_truth["categories"]:
            category["id"] += offset
        metric = DetectionMetrics(ground_truth, ("dog", "cat"), (7 + offset, 3 + offset), masks=True)
        for image, detections in found.items():
            add(metric, image + offset, *detections)
        assert {row["image_id"] for row in metric.detections()} == {image + offset for image in found}
        return metric.compute()

    assert run(first - 1) == run(0)


def test_no_detections() -> None:
    metric = metrics(truth((10, 7, BIG)))
    add(metric, 10)
    metric.reduce(lambda x: x[None])
    out = metric.compute()
    assert (out["box_ap"], out["mask_ap"], out["box_ar"]) == (0.0, 0.0, 0.0)
    assert metric.detections() == []


def test_images_without_update_do_not_count() -> None:
    metric = metrics(truth((10, 7, BIG), (11, 7, BIG), images=2))
    add(metric, 10, (BIG, 0.9, 0))
    out = metric.compute()
    assert (out["box_ap"], out["count"], out["objects"]) == (100.0, 1, 1)


def test_more_than_100_objects() -> None:
    places = [[float(x), float(y), 8.0, 8.0] for x in range(0, 200, 16) for y in range(0, 200, 20)]
    results = []
    for limit in (100, 200):
        metric = metrics(truth(*((10, 7, box) for box in places)), masks=False, max_detections=limit)
        add(metric, 10, *((box, 0.9 - i / 1000, 0) for i, box in enumerate(places)))
        results.append(metric.compute()["box_ar"])
    assert len(places) == 130
    assert results == pytest.approx([100 * 100 / 130, 100.0])


@pytest.mark.parametrize("limit", [1, 3, 10, 30])
def test_every_number_counts_the_same_detections(limit: int) -> None:
    places = [[float(x), float(y), 8.0, 8.0] for x in range(0, 200, 40) for y in range(0, 200, 40)]
    found = [(box, 0.9 - i / 1000, 0) for i, box in enumerate(places)]

    def results(max_detections: int, kept: int) -> dict[str, Any]:
        metric = metrics(truth(*((10, 7, box) for box in places)), masks=False, max_detections=max_detections)
        add(metric, 10, *found[:kept])
        return metric.compute()

    limited, cut = results(limit, 25), results(100, limit)
    for name in ("box_ap", "box_ap50", "box_ar", "box_ar1", "box_ar10"):
        assert limited[name] == pytest.approx(cut[name]), name


# --- agreement with the library, and several processes ---


def random_dataset(seed: int = 0) -> tuple[dict[str, Any], dict[int, list[tuple[list[float], float, int]]]]:
    """Random objects of all sizes in eight images, and detections with misses, shifts and false positives."""
    rng = np.random.default_rng(seed)

    def square() -> list[float]:
        side = float(rng.choice([12, 25, 50, 70, 100, 130]))
        return [float(rng.integers(0, int(SIDE - side))), float(rng.integers(0, int(SIDE - side))), side, side]

    objects = [(10 + i, int(rng.choice([3, 7])), square()) for i in range(7) for _ in range(4)]  # the last has none
    found: dict[int, list[tuple[list[float], float, int]]] = {10 + i: [] for i in range(8)}
    for image, category, (x, y, w, h) in objects:
        if rng.random() < 0.8:
            shift = rng.integers(0, 4)
            label = int(category == 3) if rng.random() < 0.9 else 0
            found[image].append(([min(x + shift, SIDE - w), y, w, h], float(rng.random()), label))
    for image in found:
        found[image].append((square(), float(rng.random()), int(rng.integers(2))))
    return truth(*objects, images=8, crowd=(2, 9)), found


def test_agrees_with_library() -> None:
    ground_truth, found = random_dataset()
    metric = metrics(ground_truth)
    for image, detections in found.items():
        add(metric, image, *detections)
    out = metric.compute()

    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        results = [
            {
                "image_id": image,
                "category_id": (7, 3)[label],
                "score": score,
                **({"bbox": box} if kind == "box" else {"segmentation": rle_of(box)}),
            }
            for image, detections in found.items()
            for box, score, label in detections
        ]
        coco = COCO(random_dataset()[0])
        evaluation = COCOeval_faster(coco, coco.loadRes(results), iouType=iou_type)
        evaluation.run()
        theirs = [None if x < 0 else 100 * x for x in evaluation.stats]
        assert [out[f"{kind}_{name}"] for name in METRIC_NAMES] == pytest.approx(theirs, abs=1e-4)  # scores are float32
    assert 5 < out["box_ap"] < 95  # a non-trivial value
    assert None not in [out[f"mask_{name}"] for name in METRIC_NAMES]


@pytest.mark.parametrize("world", [2, 3, 9])  # rank 8 has no image
def test_result_does_not_depend_on_number_of_processes(world: int) -> None:
    ground_truth, found = random_dataset()

    def work(rank: int, all_gather: Callable[[Tensor], Tensor]) -> Any:
        metric = metrics(ground_truth)
        for image, detections in list(found.items())[rank::world]:
            add(metric, image, *detections)
        metric.reduce(all_gather)
        return metric.compute(), metric.detections()

    def key(detection: dict[str, Any]) -> str:
        return json.dumps(detection)

    metrics_of_one, detections_of_one = single_process()
    for out, detections in run_on_processes(work, world):
        assert out == metrics_of_one
        assert sorted(detections, key=key) == sorted(detections_of_one, key=key)


def single_process() -> Any:
    ground_truth, found = random_dataset()
    metric = metrics(ground_truth)
    for image, detections in found.items():
        add(metric, image, *detections)
    metric.reduce(lambda value: value[None])
    return metric.compute(), metric.detections()


@pytest.mark.parametrize("world", [1, 3])
def test_bootstrap_interval_is_that_of_evaluations_of_resampled_images(world: int) -> None:
    """Of each resample, a dataset in which images occur as often as they were drawn, under ids of their own."""
    ground_truth, found = random_dataset()
    ids = [image["id"] for image in ground_truth["images"]]
    expected: dict[str, list[float]] = {"box": [], "mask": []}
    for counts in next(resampled_counts(len(ids), 8)):
        drawn = [id for id, count in zip(ids, counts, strict=True) for _ in range(count)]
        sample = {**ground_truth, "images": [], "annotations": []}
        for number, id in enumerate(drawn, start=1):
            (image,) = (image for image in ground_truth["images"] if image["id"] == id)
            sample["images"].append({**image, "id": number})
            objects = [a for a in ground_truth["annotations"] if a["image_id"] == id]
            sample["annotations"] += [
                {**a, "image_id": number, "id": len(sample["annotations"]) + k} for k, a in enumerate(objects, start=1)
            ]
        metric = metrics(sample)
        for number, id in enumerate(drawn, start=1):
            add(metric, number, *found[id])
        out = metric.compute()
        for kind, values in expected.items():
            values.append(out[f"{kind}_ap"])

    def work(rank: int, all_gather: Callable[[Tensor], Tensor]) -> Any:
        metric = metrics(ground_truth)
        for image, detections in list(found.items())[rank::world]:
            add(metric, image, *detections)
        metric.reduce(all_gather)
        return {kind: metric.interval(kind, 8) for kind in expected}

    for intervals in run_on_processes(work, world):
        for kind, values in expected.items():
            assert max(values) - min(values) > 1
            assert intervals[kind] == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-9)


def test_precision_recall_curves_have_the_area_of_the_average_precision() -> None:
    out, _ = single_process()
    for kind in ("box", "mask"):
        for name, curve in out["curves"][kind].items():
            assert len(curve) == 101
            assert 100 * np.mean(curve) == pytest.approx(out[f"{kind}_{name}"], abs=0.01)
    assert out["curves"]["box"]["ap50"] != out["curves"]["box"]["ap75"]


def test_detections_in_coco_results_format() -> None:
    metric = metrics(truth((10, 7, BIG)))
    add(metric, 10, (BIG, 0.5, 0), (SMALL, 0.25, 1))
    first, second = json.loads(json.dumps(metric.detections()))
    assert (first["image_id"], first["category_id"], first["bbox"], first["score"]) == (10, 7, BIG, 0.5)
    assert (second["category_id"], second["bbox"]) == (3, SMALL)
    assert torch.equal(torch.from_numpy(rle.decode(second["segmentation"])).bool(), mask_of(SMALL))


# --- errors ---


def test_errors() -> None:
    metric = metrics(truth((10, 7, BIG), images=2))
    with pytest.raises(ValueError, match="no image"):
        metric.compute()
    with pytest.raises(ValueError, match=r"12.*2 images"):
        add(metric, 12)
    with pytest.raises(ValueError, match=r"1 boxes.*0 masks"):
        metric.update(10, torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    add(metric, 11)
    with pytest.raises(ValueError, match="1 evaluated images"):
        metric.compute()
