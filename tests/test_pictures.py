"""Pictures and summary of a run show the numbers they are given."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from PIL import Image

import smt_vision
from smt_vision.cost import ModelInfo
from smt_vision.engine.fields import changed_fields
from smt_vision.engine.summary import write_summary
from smt_vision.pictures.confusion import confusion
from smt_vision.pictures.drawing import class_color, sample_grid
from smt_vision.pictures.quality import ranking_curves, reliability
from smt_vision.pictures.training import curves
from smt_vision.tasks import RECIPES
from smt_vision.tasks.classification.pictures import LabeledImage, Mistake, mistakes, predictions
from smt_vision.tasks.classification.results import Prediction, write_predictions
from smt_vision.tasks.classification.task import ClassificationEvaluation
from smt_vision.tasks.detection.pictures import draw_detections
from smt_vision.tasks.segmentation.pictures import draw_label_map
from smt_vision.tasks.task import MetricFormat, Table

pytestmark = pytest.mark.pictures

TOP1 = dict(metric="top1", label="top-1 (%)", loss_label="loss (nats)")

LOG = [
    *({"kind": "train", "step": s, "epoch": s / 10, "loss": 3 - s / 20, "lr": 1e-3 * s} for s in range(1, 41)),
    {"kind": "note", "message": "in between"},
    *({"kind": "eval", "step": 10 * e, "epoch": e, "loss": 2.0, "top1": t} for e, t in enumerate((50, 80, 70, 75), 1)),
]


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def image(side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def test_a_pdf_has_no_date_and_no_type_3_fonts(tmp_path):
    for name in ("a.pdf", "b.pdf"):
        curves(LOG, tmp_path / name, "quickstart", **TOP1)
    data = (tmp_path / "a.pdf").read_bytes()
    assert data == (tmp_path / "b.pdf").read_bytes()
    assert b"/TrueType" in data or b"/Type0" in data
    assert b"/Type3" not in data
    assert b"CreationDate" not in data


def test_curves_show_the_training_log(tmp_path):
    before = dict(rcParams)
    figure = curves(LOG, tmp_path / "curves.png", "quickstart", **TOP1)
    assert size(tmp_path / "curves.png") == (1560, 480)
    assert dict(rcParams) == before  # matplotlib's global style is unchanged
    loss, top1, lr = figure.axes
    raw, smoothed, evaluated = loss.lines
    np.testing.assert_allclose(raw.get_xydata(), [(s / 10, 3 - s / 20) for s in range(1, 41)])
    assert smoothed.get_ydata()[0] == raw.get_ydata()[0]
    assert raw.get_ydata()[-1] < smoothed.get_ydata()[-1] < raw.get_ydata()[0]
    np.testing.assert_allclose(evaluated.get_xydata(), [(e, 2.0) for e in (1, 2, 3, 4)])
    np.testing.assert_allclose(top1.lines[1].get_xydata(), [(2, 80)])  # the star at the best epoch
    assert top1.get_title(loc="right") == "best 80.00 %, epoch 2"
    np.testing.assert_allclose(lr.lines[0].get_ydata(), [1e-3 * s for s in range(1, 41)])
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "top-1 (%)", "learning rate"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}


def test_curves_leave_a_gap_where_the_loss_is_not_finite(tmp_path):
    log = [{"kind": "train", "epoch": e, "loss": loss} for e, loss in enumerate((2.0, float("nan"), float("inf"), 1.0))]
    figure = curves(log, tmp_path / "curves.png", "t", **TOP1)
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, True, True, False]
    assert np.isfinite(figure.axes[0].lines[1].get_ydata()[-1])


def test_curves_of_an_empty_log(tmp_path):
    figure = curves([], tmp_path / "curves.png", "a title with $ in it", **TOP1)
    assert [len(axes.texts) for axes in figure.axes] == [1, 1, 1]  # a note instead of curves
    assert all(axes.texts[0].get_text() for axes in figure.axes)


def test_curves_show_each_loss_and_any_metric(tmp_path):
    log = [
        *({"kind": "train", "epoch": e, "loss": 3.0, "loss/box": 1.0, "loss/mask": 2.0} for e in (1, 2)),
        *({"kind": "eval", "epoch": e, "mask_ap": 10.0 * e, "top1": 0.0} for e in (1, 2)),
    ]
    figure = curves(log, tmp_path / "curves.png", "t", metric="mask_ap", label="mask AP (%)")
    loss, metric, _ = figure.axes
    assert [line.get_label() for line in loss.lines] == ["training", "training, smoothed", "box", "mask"]
    assert [line.get_ydata().tolist() for line in loss.lines[2:]] == [[1.0, 1.0], [2.0, 2.0]]
    assert len({line.get_color() for line in loss.lines[1:]}) == 3
    assert loss.get_ylabel() == "loss"
    assert metric.get_ylabel() == "mask AP (%)"
    assert metric.get_title(loc="right") == "best 20.00 %, epoch 2"


def test_confusion_shows_row_percentages(tmp_path):
    counts = torch.tensor([[9, 1, 0], [0, 4, 0], [0, 0, 0]])
    figure = confusion(counts, ["cat", "$dog", "owl"], tmp_path / "confusion.png")
    axes = figure.axes[0]
    texts = {tuple(map(int, text.get_position()[::-1])): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "90.0", (0, 1): "10.0", (1, 1): "100.0"}  # empty cells are blank
    drawn = axes.images[0].get_array()
    np.testing.assert_allclose(drawn[:2], [[90, 10, 0], [0, 100, 0]])
    assert np.ma.getmaskarray(drawn)[2].all()  # no percentage for a class without images
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "$dog", "owl"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert figure.axes[1].get_ylabel() == "images of the true class (%)"
    width, height = size(tmp_path / "confusion.png")
    assert width == height + 120


def test_confusion_of_many_classes_shows_those_with_most_errors(tmp_path):
    counts = 10 * np.eye(60, dtype=np.int64)
    counts[range(20, 60), range(59, 19, -1)] += 2  # no errors among the first 20 classes
    counts[20, :8] += 1
    figure = confusion(counts, [f"c{index}" for index in range(60)], tmp_path / "confusion.png")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"c{index}" for index in range(20, 60)]
    assert "40 of 60 classes" in axes.get_title(loc="left")
    assert not axes.texts  # no numbers in so small cells
    assert axes.images[0].get_array()[0, 0] == pytest.approx(50)  # of all 20 images


def test_confusion_requires_one_name_per_row(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 2\).*\b3\b"):
        confusion(np.eye(2), ["a", "b", "c"], tmp_path / "confusion.png")


@pytest.mark.parametrize("classes", [1, 3, 14])
def test_ranking_curves_show_the_mean_and_single_classes(tmp_path, classes):
    drawn = list(range(min(classes, 10)))
    curve = {"precision": [1.0, 0.5], "tpr": [0.0, 1.0]}
    metrics = {
        "map": 50.0,
        "auroc_macro": 60.0,
        "per_class": [{"ap": 40.0 + k, "auroc": 80.0 + k} for k in range(classes)] + [{"ap": None, "auroc": None}],
        "curves": {"grid": [0.0, 1.0], "macro": curve, "classes": [{"class": k, **curve} for k in drawn]},
    }
    paths = tmp_path / "precision_recall.png", tmp_path / "roc.png"
    figures = ranking_curves(metrics, [f"c{k}" for k in range(classes + 1)], *paths)
    for figure, path, mean, first, chance in zip(
        figures, paths, (50, 60), (40, 80), ([], ["chance  50.0"]), strict=True
    ):
        (axes,) = figure.axes
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        singles = [f"c{k}  {first + k}.0" for k in drawn] if classes > 1 else []
        assert texts == [f"mean  {mean}.0", *singles, *chance]
        assert len({line.get_color() for line in axes.lines}) == len(texts)
        assert ("10 of 14 classes" in axes.get_title(loc="left")) == (classes == 14)
        assert size(path)[0] > size(path)[1] > 500


def test_reliability_shows_accuracy_over_confidence(tmp_path):
    bins = [{"count": 30, "confidence": 52.0, "accuracy": 40.0}, {"count": 90, "confidence": 98.0, "accuracy": 99.0}]
    figure = reliability(bins, 12.345, tmp_path / "reliability.png", "share")
    axes, shares = figure.axes
    observed = axes.lines[-1]
    assert (observed.get_xdata().tolist(), observed.get_ydata().tolist()) == ([0.52, 0.98], [0.4, 0.99])
    assert [bar.get_height() for bar in shares.patches] == [25, 75]
    assert axes.get_title(loc="right") == "calibration error 12.35 %"
    assert axes.get_ylabel() == "share"
    assert size(tmp_path / "reliability.png") == (576, 672)


def test_mistakes_are_sorted_by_score(tmp_path):
    items = [Mistake(image(), f"target{n}", f"prediction{n}", n / 100, f"folder/{n}.png") for n in range(30)]
    figure = mistakes(items, tmp_path / "mistakes.png")
    assert size(tmp_path / "mistakes.png")[0] == 1320
    assert len(figure.axes) == 25
    assert re.search(r"\bprediction29 \(29 %\).*\btarget29\b", figure.axes[0].get_title(), re.DOTALL)
    assert figure.axes[0].get_xlabel() == "folder/29.png"
    assert re.search(r"\bprediction5 \(5 %\).*\btarget5\b", figure.axes[24].get_title(), re.DOTALL)
    assert figure.axes[0].images[0].get_interpolation() == "nearest"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), np.asarray(image()))


def test_mistakes_of_a_perfect_model(tmp_path):
    figure = mistakes([], tmp_path / "mistakes.png")
    assert not figure.axes
    assert figure.texts[0].get_text()  # a note instead of images
    assert size(tmp_path / "mistakes.png") == (720, 240)


def test_predictions_of_grayscale_and_large_images(tmp_path):
    items = [
        LabeledImage(image(800), "a name that is much too long for a caption", 0.987, "x" * 80 + "/end.jpg"),
        LabeledImage(image().convert("L"), "7", 0.5, "7.png"),
    ]
    figure = predictions(items, tmp_path / "predictions.png")
    first, second = figure.axes
    assert first.get_title() == "a name … for a caption (99 %)"
    assert re.fullmatch(r"x{12}…x{15}/end.jpg", first.get_xlabel())
    assert first.images[0].get_array().shape == (320, 320, 3)
    assert first.images[0].get_interpolation() == "antialiased"
    assert second.get_title() == "7 (50 %)"


def test_predictions_of_images_with_one_base_name_differ_in_their_captions(tmp_path):
    """The same pictures in other folders give another contact sheet; in other places, the same."""
    sheets = []
    for folders in (("1/cam1", "1/cam2"), ("2/cam1", "2/cam3"), ("3/deep/cam1", "3/deep/cam2")):
        results = []
        for folder in folders:
            path = tmp_path / folder / "0001.png"
            path.parent.mkdir(parents=True)
            image().save(path)
            results.append(Prediction(path, str(path), "cat", 0, 1.0, (("cat", 1.0),)))
        _, sheet = write_predictions(results, tmp_path / "found")
        sheets.append(sheet.read_bytes())
    assert sheets[0] == sheets[2] != sheets[1]


# --- boxes, masks and label maps ---

GRAY = (128, 128, 128)
CLASSES = ("cat", "dog", "owl")


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_class_colors_are_stable_and_distinct():
    colors = np.array([class_color(k) for k in range(150)])
    distances = np.abs(colors[:, None] - colors).sum(-1) + 1000 * np.eye(150, dtype=int)
    assert distances[:12, :12].min() > 80
    assert distances.min() > 0
    assert [class_color(k) for k in (0, 3, 100)] == [(230, 75, 53), (240, 180, 30), (102, 204, 135)]


def test_boxes_are_drawn_at_their_coordinates():
    picture = draw_detections(
        Image.new("RGB", (100, 80), GRAY), [[10, 20, 40, 60], [60, 50, 90, 79]], [0, 2], classes=CLASSES, legend=False
    )
    drawn = pixels(picture)
    assert picture.size == (100, 80)
    for (x0, y0, x1, y1), k in (((10, 20, 39, 59), 0), ((60, 50, 89, 78), 2)):
        for row, column in ((y1, x0), (y1, x1), ((y0 + y1) // 2, x0), ((y0 + y1) // 2, x1)):
            assert tuple(drawn[row, column]) == class_color(k)
        assert tuple(drawn[(y0 + y1) // 2, (x0 + x1) // 2]) == GRAY
    assert tuple(drawn[70, 20]) == GRAY  # outside the boxes


def test_masks_are_filled_and_outlined():
    mask = np.zeros((1, 80, 100), bool)
    mask[0, 30:50, 20:60] = True
    drawn = pixels(
        draw_detections(
            Image.new("L", (100, 80), 128), [[20, 30, 60, 50]], [1], [0.9], mask, classes=CLASSES, legend=False
        )
    )
    color = np.array(class_color(1))
    assert tuple(drawn[49, 30]) == tuple(color)  # outline
    np.testing.assert_allclose(drawn[40, 40], 0.55 * 128 + 0.45 * color, atol=1)
    assert tuple(drawn[60, 40]) == GRAY


def test_highest_score_is_drawn_on_top_and_labeled_first():
    boxes = [[20, 30, 80, 70], [20, 30, 80, 70]]
    drawn = pixels(
        draw_detections(Image.new("RGB", (100, 80), GRAY), boxes, [0, 1], [0.2, 0.9], classes=CLASSES, legend=False)
    )
    assert tuple(drawn[69, 50]) == class_color(1)
    assert (drawn[18:29] == class_color(1)).all(-1).any()  # its label, above the box
    assert not (drawn[18:30] == class_color(0)).all(-1).any()


def test_labels_of_small_objects_and_of_a_single_class_are_omitted(monkeypatch):
    texts: list[str] = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, xy, text, **style: texts.append(text))
    blank = Image.new("RGB", (200, 160), GRAY)
    boxes = [[10, 20, 60, 60], [100, 100, 110, 110]]
    draw_detections(blank, boxes, [0, 1], [0.875, 0.9], classes=CLASSES)
    assert texts == ["cat 0.88", "cat", "dog"]  # the label of the large box, then the legend
    texts.clear()
    draw_detections(blank, boxes, [0, 0], [0.5, 0.9], classes=["cell"], legend=False)
    draw_detections(blank, boxes, [0, 0], classes=["cell"], legend=False)
    draw_detections(blank, boxes, [2, 0], classes=CLASSES, legend=False)
    assert texts == ["0.50", "owl"]


def test_boxes_and_masks_are_resized_with_the_picture():
    mask = np.zeros((1, 40, 50), bool)
    mask[0, 10:20, 10:30] = True
    picture = draw_detections(
        Image.new("RGB", (50, 40), GRAY), [[10, 10, 30, 20]], [0], None, mask, classes=["x"], side=200
    )
    assert picture.width == 200
    drawn = pixels(picture)
    assert tuple(drawn[79, 100]) == tuple(drawn[40, 60]) == class_color(0)
    assert tuple(drawn[82, 100]) == tuple(drawn[60, 122]) == GRAY


def test_image_without_detections_is_unchanged():
    blank = Image.new("RGB", (30, 20), GRAY)
    assert pixels(draw_detections(blank, [], [], [], np.zeros((0, 20, 30)), classes=CLASSES)).tolist() == (
        pixels(blank).tolist()
    )


def test_mismatched_lengths_and_sizes_are_refused():
    blank = Image.new("RGB", (30, 20), GRAY)
    with pytest.raises(ValueError, match=r"boxes.*\[1, 2\]"):
        draw_detections(blank, [[1, 1, 5, 5]], [0, 1], classes=CLASSES)
    with pytest.raises(ValueError, match=r"mask.*\(30, 20\).*\(20, 30\)"):
        draw_detections(blank, [[1, 1, 5, 5]], [0], None, np.zeros((1, 30, 20)), classes=CLASSES)
    with pytest.raises(ValueError, match=r"\(30, 20\).*\(20, 30\)"):
        draw_label_map(blank, np.zeros((30, 20), int), CLASSES)


def test_label_map_colors_all_but_ignored_pixels():
    label = torch.full((20, 30), 255)
    label[:, :10] = 0
    label[:, 10:20] = 2
    drawn = pixels(draw_label_map(Image.new("RGB", (30, 20), GRAY), label, CLASSES, opacity=0.5, legend=False))
    np.testing.assert_allclose(drawn[5, 5], 64 + np.array(class_color(0)) / 2, atol=1)
    np.testing.assert_allclose(drawn[5, 15], 64 + np.array(class_color(2)) / 2, atol=1)
    assert tuple(drawn[5, 25]) == GRAY


def test_legend_lists_the_classes_that_occur_and_wraps():
    blank, names = Image.new("RGB", (120, 20), GRAY), [f"a long class name {k}" for k in range(12)]
    label = np.zeros((20, 120), int)
    one_class = draw_label_map(blank, label, names)
    label[0, :12] = range(12)
    all_classes = draw_label_map(blank, label, names)
    assert one_class.width == all_classes.width == 120
    assert 20 < one_class.height < all_classes.height
    legend = pixels(all_classes)[20:].reshape(-1, 3).tolist()
    assert all(list(class_color(k)) in legend for k in range(12))
    assert list(class_color(1)) not in pixels(one_class)[20:].reshape(-1, 3).tolist()


def test_sample_grid_has_rows_and_columns():
    panels = [[Image.new("RGB", (40, 30), class_color(2 * r + c)) for c in range(2)] for r in range(2)]
    panels[1][1] = Image.new("RGB", (60, 20), class_color(3))
    grid = sample_grid(panels, ["truth", "prediction"], ["a.png", "b.png"], [0], CLASSES)
    assert grid.width == 40 + 60 + 3 * 6
    colors = [tuple(p) for p in pixels(grid).reshape(-1, 3)]
    for k, area in ((1, 40 * 30), (2, 40 * 30), (3, 60 * 20)):
        assert colors.count(class_color(k)) == area
    assert colors.count(class_color(0)) > 40 * 30  # also in the legend


METRICS = {
    "top1": 81.25,
    "top5": 97.5,
    "mean_class_accuracy": 81.25,
    "loss": 0.61234,
    "ece": 3.456,
    "count": 160,
    "per_class": [
        {"class": "cat", "count": 80, "accuracy": 95.0},
        {"class": "d|g", "count": 80, "accuracy": 67.5},
        {"class": "owl", "count": 0, "accuracy": None},
    ],
    "confusion": [[76, 4, 0], [26, 54, 0], [0, 0, 0]],
}
RECIPE = {
    "name": "imagenet1k_tiny",
    "model": "smt_tiny",
    "data": "pets",
    "epochs": 300,
    "batch_size": 128,
    "seed": 7,
    "input": {"size": 224, "channels": 3},
    "expected": {"top1": 82.2},
    "expected_source": "the paper, table 1",
}


def summary(tmp_path, **changes) -> str:
    classes = changes.pop("classes", ("cat", "d|g", "owl"))
    (tmp_path / "samples").mkdir(exist_ok=True)
    for name in ("curves.png", "confusion.png", "samples/epoch_291.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    metrics = changes.pop("metrics", METRICS)
    values = {
        "recipe": RECIPE,
        "metrics": metrics,
        "primary_metric": "top1",
        "formats": ClassificationEvaluation.metric_formats,
        "best_epoch": 291,
        "keeps_latest": False,
        "seconds": 3725.4,
        "hardware": "2 x a GPU",
        "command": "smt train imagenet1k_tiny --data pets",
        "classes": len(classes),
        "input_description": "3 x 224 x 224 pixels",
        "cost": ModelInfo("smt_tiny", (3, 224, 224), 11_500_000, 2.4, 0, ()),
        "trained": "",
        "stopped_after": None,
        "changed": [],
        "tables": changes["tables"] if "tables" in changes else ClassificationEvaluation(classes, None).tables(metrics),
        "pictures": [tmp_path / "confusion.png", tmp_path / "samples" / "epoch_291.png"],
    }
    write_summary(tmp_path, **(values | changes))
    return (tmp_path / "summary.md").read_text()


def test_summary_contains_the_numbers(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        "".join(f'{{"kind": "train", "step": {s}, "epoch": 1, "images_per_s": {400 + s}}}\n' for s in (1, 2, 3))
    )
    text = summary(tmp_path)
    assert re.search(r"\*\*81\.25 % top-1\*\*.*\b160 images", text)
    assert "| top-1 (%) | 81.25 | 82.20 | -0.95 |" in text
    assert "| loss (nats) | 0.6123 |  |  |" in text
    assert "| calibration error (%) | 3.46 |  |  |" in text
    assert "the paper, table 1" in text
    assert "| cat | 80 | 95.00 |" in text
    assert "| d\\|g | 80 | 67.50 |" in text
    assert "owl" not in text  # class without images
    assert text.index("| d\\|g | cat | 26 | 32.50 |") < text.index("| cat | d\\|g | 4 | 5.00 |")
    assert "11.50 M parameters, 2.4 GMAC" in text
    assert "time: 1:02:05, 402 images/s" in text
    assert "2 x a GPU" in text
    assert f"smt_vision {smt_vision.__version__}, torch {torch.__version__}" in text
    assert "seed: 7" in text
    assert "smt train imagenet1k_tiny --data pets\n" in text
    for command in ("smt predict", "smt eval", "smt train --resume"):
        assert f"{command} {tmp_path}" in text
    assert "3 classes, 3 x 224 x 224 pixels" in text
    for name in ("curves", "confusion", "samples/epoch_291"):
        assert f"]({name}.png)" in text
    assert "Expected: the paper, table 1." in text
    text = summary(tmp_path, classes=(), tables=[])
    assert f"smt train finetune --checkpoint {tmp_path} --data MY_IMAGES" in text
    assert "smt predict" not in text
    text = summary(tmp_path, changed=["model", "optim.lr"])
    assert "Expected with the recipe as it is: the paper, table 1. This run changes `model`, `optim.lr`." in text
    text = summary(tmp_path, changed=[f"field{i}" for i in range(9)])
    assert "This run changes `field0`, `field1`, `field2`, `field3`, `field4`, `field5` and 3 other fields." in text


def test_fields_that_differ_from_the_recipe_of_that_name():
    recipe = RECIPES["cifar10"]
    moved = replace(recipe, data="elsewhere", seed=3, engine=replace(recipe.engine, devices=2, log_every=5))
    assert changed_fields(moved) == []
    other = replace(moved, epochs=2, optim=replace(recipe.optim, lr=1.0), model_args={"stem_stride": 2})
    assert sorted(changed_fields(other)) == ["epochs", "model_args", "optim.lr"]
    assert changed_fields(replace(other, name="mine")) == []


def test_summary_without_optional_parts(tmp_path):
    text = summary(tmp_path, metrics=METRICS | {"confusion": None}, recipe=RECIPE | {"expected": {}}, pictures=[])
    assert "onfusion" not in text
    assert "| top-1 (%) | 81.25 |  |  |" in text
    assert "images/s" not in text


def test_summary_shows_the_metrics_of_each_class_that_there_are(tmp_path):
    rows = [
        {**row, "precision": 75.0, "recall": row["accuracy"], "f1": 80.0, "ap": 90.0, "auroc": None}
        for row in METRICS["per_class"]
    ]
    text = summary(tmp_path, metrics=METRICS | {"per_class": rows, "kappa": None, "f1_macro": 80.0})
    assert "| class | images | accuracy (%) | precision (%) | F1 (%) | AP (%) |" in text
    assert "| cat | 80 | 95.00 | 75.00 | 80.00 | 90.00 |" in text
    assert "| F1, macro (%) | 80.00 |  |  |" in text
    assert "| Cohen's kappa | undefined |  |  |" in text
    assert "AUROC" not in text  # neither of a class nor of all, as in the metrics of an earlier version


def test_summary_accepts_a_tensor(tmp_path):
    assert summary(tmp_path, metrics=METRICS | {"confusion": torch.tensor(METRICS["confusion"])}) == summary(tmp_path)


def test_best_and_worst_classes_do_not_overlap(tmp_path):
    classes = [f"c{n:02}" for n in range(12)]
    rows = [{"class": name, "count": 10, "accuracy": 5.0 * n} for n, name in enumerate(classes)]
    text = summary(tmp_path, metrics=METRICS | {"per_class": rows, "confusion": None}, classes=classes)
    listed = re.findall(r"\| (c\d\d) \|", text)
    assert listed == ["c11", "c10", "c09", "c08", "c07", "c00", "c01", "c02", "c03", "c04"]


def test_summary_of_any_task(tmp_path):
    text = summary(
        tmp_path,
        metrics={"mask_ap": 43.1234, "mae": 0.01234, "count": 7},
        primary_metric="mask_ap",
        formats={"mask_ap": MetricFormat("mask AP"), "mae": MetricFormat("mean absolute error", "")},
        classes=["cell"],
        input_description="short side 800, long side at most 1333 pixels",
        cost=ModelInfo("Detector", (3, 800, 1280), 40_000_000, 265.0, 0, ()),
        tables=[Table("By size", ("size", "AP"), [("small", 1.0), ("a|b", 22)]), Table("None", ("x", "y"), [])],
    )
    assert re.search(r"\*\*43\.12 % mask AP\*\*.*\b7 images", text)
    assert "| mask AP (%) | 43.12 |  |  |" in text
    assert "| mean absolute error | 0.0123 |  |  |" in text
    assert "40.00 M parameters, 265 GMAC at 800 x 1280" in text
    assert "1 class, short side 800, long side at most 1333 pixels" in text
    assert "## By size\n\n| size | AP |\n|---|---:|\n| small | 1.00 |\n| a\\|b | 22 |\n" in text
    assert "| x | y |\n|---|---|\n\n" in text
