"""The scripts of tools/, run on a small run."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

import smt_vision
from smt_vision import checkpoints, load
from smt_vision.engine.loop import train
from smt_vision.study.results import RESULTS, add_result
from smt_vision.study.studies import STUDIES
from study_results import made_up_result
from tiny_run import tiny

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(TOOLS / f"{name}.py"))


@pytest.fixture(scope="module")
def finished(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train(tiny(colored, epochs=1), folder, display=False)
    return folder


def test_ship_weights(finished: Path, tmp_path: Path) -> None:
    weights, results = tmp_path / "weights", tmp_path / "results"
    weights.mkdir()
    script("ship_weights")["main"](finished, "tiny.colors", results, weights)
    packaged = weights / "tiny.colors.safetensors"
    assert load(packaged).classes == ("blue", "green", "red")
    assert checkpoints.load(packaged).state["epoch"] == 1
    assert {path.name for path in results.iterdir()} == {
        "recipe.yaml", "log.jsonl", "curves.png", "confusion.png", "metrics.json"
    }  # fmt: skip
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["as stored"]["top1"] == pytest.approx(metrics["as trained"]["top1"], abs=0.1)


def test_weights_that_half_precision_changes_are_not_shipped(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("ship_weights")
    main = module["main"]
    monkeypatch.setitem(main.__globals__, "evaluate", lambda file: {"top1": -1.0, "top5": 0.0, "loss": 0.0, "ece": 0.0})
    with pytest.raises(SystemExit, match="top-1"):
        main(finished, "tiny.colors", tmp_path / "results", tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_publish_run(tmp_path: Path, shapes: Path, detector_run: Path) -> None:
    results = tmp_path / "results"
    script("publish_run")["main"](detector_run, results)
    written = {path.name for path in results.iterdir()}
    assert {"recipe.yaml", "log.jsonl", "metrics.json", "curves.png", "samples.jpg"} <= written


def test_publish_study(tmp_path: Path) -> None:
    publish = script("publish_study")
    run, results, readme = tmp_path / "run", tmp_path / "results", tmp_path / "README.md"
    study = STUDIES["mhmc_heads"]
    for budget in study.budgets:
        for variant, value in (("heads_4", 80.0), ("heads_1", 78.0)):
            for seed in range(2):
                add_result(run / RESULTS, made_up_result(study.cell(budget, variant, seed), value + seed))
    readme.write_text(f"before\n{publish['FIRST']}\nold\n{publish['LAST']}\nafter\n")
    publish["main"](run, results, readme)
    publish["main"](run, results, readme)
    assert (results / RESULTS).read_bytes() == (run / RESULTS).read_bytes()
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    start = "| 4 convolution heads are better than one | mhmc_heads, 5 epochs | heads_1: +2.00"
    (verdict,) = [line for line in lines if line.startswith(start)]
    assert verdict in (results / "studies.md").read_text().splitlines()


def test_audit_tells_vulnerabilities_from_a_database_that_cannot_be_reached() -> None:
    report = script("audit")["report"]
    clean = {"name": "a", "version": "1", "vulns": []}
    absent = {"name": "b", "skip_reason": "not found on PyPI"}
    bad = {
        "name": "c",
        "version": "2",
        "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}, {"id": "X", "fix_versions": []}],
    }

    def of(*packages: dict[str, Any]) -> Any:
        return report(json.dumps({"dependencies": packages}), "")

    assert of(clean, absent) == (["0 known vulnerabilities in 1 packages; 1 others are not in the database"], 0)
    lines, code = of(clean, bad, absent)
    assert lines[:2] == ["c 2: CVE-1, fixed in 3", "c 2: X, without a fix"]
    assert code == 1
    for lines, code in (of(absent), of(), report("", "ConnectionError: no route"), report("[]", "")):
        assert lines[0].startswith("NOT DONE")
        assert code == 0


def test_the_api_reference_is_current() -> None:
    tool = script("write_api")
    for name, write in tool["PAGES"].items():
        assert (tool["DOCS"] / name).read_text(encoding="utf-8") == write(), "run python tools/write_api.py"
    described = {name for names in tool["SECTIONS"].values() for name in names}
    assert described == {*smt_vision.__all__} - {"RECIPES", "__version__"}


def test_the_api_reference_has_signatures_and_descriptions() -> None:
    page = script("write_api")["page"]()
    assert "smt_vision.fuse(model, dtype=None)\n" in page
    assert "- `dtype`: Type that the stem" in page
    assert "- `ValueError`: The model does not contain an SMT" in page
    assert ".above(score)\n" in page
    assert ":class:" not in page
    assert " at 0x" not in page
