"""Efficiency outliers: time per multiply-accumulate over models, image sizes and batch sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import outliers
from debug_model import create
from outliers import Cell, measure_cells
from smt_vision.benchmark.compare import Candidate
from smt_vision.benchmark.timing import Timing
from smt_vision.cost import describe


def candidate(num_classes: int = 10) -> Candidate:
    model = create(num_classes=num_classes)
    return Candidate("m", model, (3, 32, 32), model)


def test_cells_are_relative_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    model = candidate()
    gmac = {side: describe(model.model, (3, side, side)).gmac for side in (32, 64)}
    times = iter([4 * gmac[32], 2 * 2 * gmac[32], 7 * gmac[64]])  # 4, 2 and 7 per unit of work
    monkeypatch.setattr(outliers, "interleave", lambda calls, **kwargs: {i: Timing((next(times),)) for i in calls})
    cells = measure_cells([model], (32, 64), (1, 2), max_gmac=1.5 * gmac[64])  # excludes two images of 64 pixels
    assert [(c.size, c.batch_size, c.relative, c.outlier) for c in cells] == [
        (64, 1, 3.5, True),
        (32, 1, 2, False),
        (32, 2, 1, False),
    ]
    assert [c.gmac for c in cells] == [gmac[64], gmac[32], 2 * gmac[32]]
    assert outliers.summary(cells) == (
        f"1 of 3 cells take over 3 times the best time per MAC, the largest with {gmac[64]:.3g} GMAC per call"
    )


def test_a_training_step_counts_as_three_forward_passes() -> None:
    model = candidate(num_classes=2)
    [cell] = measure_cells([model], (32,), (1,), train=True, rounds=1, seconds=0)
    assert cell.gmac == 3 * describe(model.model, (3, 32, 32)).gmac
    assert cell.seconds > 0


def test_a_cell_is_an_outlier_above_three() -> None:
    cell = Cell("m", 32, 1, 1.0, 1.0, 3.0)
    assert not cell.outlier
    assert replace(cell, relative=3.1).to_dict()["outlier"]


def test_refused_measurements() -> None:
    with pytest.raises(ValueError, match="m: GMAC are unknown"):
        measure_cells([replace(candidate(), original=None)], (32,), (1,))
    with pytest.raises(ValueError, match=r"max_gmac=0\.0"):
        measure_cells([candidate()], (32,), (1,), max_gmac=0.0)


def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "outliers.json"
    threads = torch.get_num_threads()
    options = f"smt_atto --batch_size 1 2 --size 32 64 --rounds 1 --seconds 0 --threads {threads} --allocator default"
    outliers.main([*options.split(), "--out", str(out)])
    data = json.loads(out.read_text())
    assert {(c["size"], c["batch_size"]) for c in data["cells"]} == {(32, 1), (32, 2), (64, 1), (64, 2)}
    assert min(c["relative"] for c in data["cells"]) == 1
    assert data["outliers"] == sum(c["outlier"] for c in data["cells"])
    assert (data["mode"], data["allocator"]) == ("inference", "default")
    text = out.with_suffix(".md").read_text()
    assert capsys.readouterr().out == text
    assert text.count("| smt_atto ") == 4
    assert f"{data['outliers']} of 4 cells" in text
