"""The plot of published accuracy against measured throughput."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smt_vision.benchmark.compare import Result
from smt_vision.benchmark.picture import SpeedPoint, pareto_front, plot_accuracy_and_throughput, speed_points

pytestmark = pytest.mark.pictures


def points(crowd: float = 1.0) -> list[SpeedPoint]:
    rows = [("A", 10, 84, True), ("B with a long name", 20, 83, False), ("C", 20, 82, False), ("D", 30, 82, True),
            ("E", 30.5, 82.05, False), ("F", 31, 82.1, False), ("G", 40, 80, False)]  # fmt: skip
    return [SpeedPoint(label, 30 + (speed - 30) * crowd, top1, is_smt) for label, speed, top1, is_smt in rows]


def test_the_pareto_front_has_the_points_that_no_other_beats() -> None:
    assert [p.label for p in pareto_front(points())] == ["G", "F", "B with a long name", "A"]
    twins = [SpeedPoint(label, 1.0, top1, False) for label, top1 in (("low", 80), ("high", 81))]
    assert [p.label for p in pareto_front(twins)] == ["high"]


def test_accuracy_and_throughput(tmp_path: Path) -> None:
    panels = {"batch 1": points(), "batch 16": points(0.3)}
    figure = plot_accuracy_and_throughput(panels, tmp_path / "bench.png", "title", "where it was measured")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.size == (1560, 624)
    for axes, drawn in zip(figure.axes, panels.values(), strict=True):
        (line,) = axes.lines
        np.testing.assert_allclose(line.get_xydata(), [(p.images_per_s, p.top1) for p in pareto_front(drawn)])
        ours, others = axes.collections
        np.testing.assert_allclose(ours.get_offsets(), [(p.images_per_s, p.top1) for p in drawn if p.is_smt])
        assert len(others.get_offsets()) == 5
        assert [text.get_text() for text in axes.texts] == [p.label for p in drawn]
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        frame = axes.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
        dots = axes.transData.transform([(p.images_per_s, p.top1) for p in drawn])
        assert not any(box.contains(x, y) for box in boxes for x, y in dots)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(panels)


def test_points_are_models_run_at_their_published_size() -> None:
    def result(model: str, speed: float, size: int = 224, batch_size: int = 1) -> Result:
        return Result(model, batch_size, (3, size, size), 1, 1.0, speed, 1.0, 1.0, 1.0, 1.0, 0.0, 1)

    results = [result("smt_tiny:fused", 40), result("convnext_tiny", 30), result("fastvit_sa12:fused", 50, size=256)]
    results += [result("smt_small", 20, size=256), result("resnet18", 90), result("smt_tiny", 60, batch_size=16)]
    results.append(result("resnet50:features", 70))  # no classifier
    assert speed_points(results) == {
        "batch 1": [
            SpeedPoint("SMT-T fused", 40, 82.2, True),
            SpeedPoint("ConvNeXt-T", 30, 82.1, False),
            SpeedPoint("FastViT-SA12 fused", 50, 80.6, False),
        ],
        "batch 16": [SpeedPoint("SMT-T", 60, 82.2, True)],
    }
    assert speed_points(results[3:5]) == {}
