"""Studies: what a cell is, training cells that can be stopped, results files, the report, and the command."""

import functools
import json
import re
import runpy
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from command import answer, refusal, run
from pages import REPO
from smt_vision.study import report, runner, throughput
from smt_vision.study.debug import write_debug_data
from smt_vision.study.estimate import PassTimes, estimate_seconds
from smt_vision.study.file import study_from_file
from smt_vision.study.report import verdict_table
from smt_vision.study.results import FAILURES, RESULTS, add_failure, add_result, read_failures, read_results
from smt_vision.study.runner import CellsFailed, cell_folder, run_cells, unique_cells
from smt_vision.study.statistics import Verdict, summarize
from smt_vision.study.studies import CAMVID, CIFAR10, STUDIES
from smt_vision.study.study import (
    REQUIRED,
    Claim,
    Study,
    decisive_fields,
    inference_key,
    recipe_key,
    with_overrides,
)
from smt_vision.tasks import TASKS, recipe_class
from study_results import made_up_result
from tiny_run import TINY

TINY_STUDY = Study(
    "tiny_study",
    "Which?",
    replace(TINY, data="shapes", epochs=1),
    {"saa": {}, "none": {"model_args.aggregation": "none"}},
    (Claim("SAA is better than none", "saa", ("none",), {"none": 1.6}),),
    seeds=2,
)


COMMAND = """\
from smt_vision.study.study import *
from test_study import TINY_STUDY
STUDY = replace(TINY_STUDY, {changes})
"""


NETWORK = """\
from dataclasses import replace
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import ResNet, BasicBlock
from smt_vision.study.study import Study
from test_study import TINY_STUDY

@register_model
def own_network(pretrained=False, **kwargs):
    small = dict(block=BasicBlock, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    return build_model_with_cfg(ResNet, "own_network", pretrained, **small, **kwargs)

variants = {"own": {"model": "own_network", "model_args": {}}}
STUDY = replace(TINY_STUDY, variants=variants, claims=(), seeds=1)
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_debug_data(TINY_STUDY.base, tmp_path_factory.mktemp("debug_data"))


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all cells of the tiny study."""
    folder = tmp_path_factory.mktemp("study")
    run_cells(list(TINY_STUDY.cells()), folder, data={"shapes": str(shapes)}, jobs=2)
    return folder


# --- studies as data ---


def test_overrides() -> None:
    recipe = with_overrides(CIFAR10, {"optim.lr": 1.0, "epochs": 3, "model_args.conv_heads": 2, "seed": 5})
    assert (recipe.optim.lr, recipe.epochs, recipe.seed) == (1.0, 3, 5)
    assert recipe.model_args == {**CIFAR10.model_args, "conv_heads": 2}
    assert with_overrides(CIFAR10, {"model_args": {"a": 1}}).model_args == {"a": 1}
    assert with_overrides(CAMVID, {"segment.channels": 8}).segment.channels == 8


@pytest.mark.parametrize("name", ["lr", "optim.rate", "optim", "segment.channels", "optim.lr.x"])
def test_unknown_fields_are_refused_when_the_study_is_defined(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown field '{name}'.*task 'classify'.*expected one of"):
        replace(TINY_STUDY, variants={"saa": {}, "none": {name: 1}})


def test_a_claim_about_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'tiny_study'.*variant 'sma'.*saa, none"):
        replace(TINY_STUDY, claims=(Claim("x", "sma", ("none",)),))


@pytest.mark.parametrize("than", ["none", (), ("saa",), ("none", "none")])
def test_what_a_claim_compares_with_is_a_tuple_of_others(than: Any) -> None:
    with pytest.raises(ValueError, match=r"claim 'x': invalid than=.*expected a tuple of other variants than 'saa'"):
        Claim("x", "saa", than)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(claims=Claim("x", "saa", ("none",))), r"claims is a Claim: expected a tuple"),
        (dict(variants={"saa": {}, "none": {"optim.lr": TINY.optim.lr}}), r"'saa' and 'none' are the same run.*remove"),
        (dict(variants={"saa": {}, "none": {"seed": 3}}), r"sets the seed; seeds=N"),
        (dict(budgets={"x": {"seed": 3}}), r"sets the seed; seeds=N"),
        (
            dict(
                variants={"saa": {}, "none": {"optim.lr": 5e-4}},
                budgets={"low": {"optim.lr": 1e-3}, "high": {"optim.lr": 2e-3}},
            ),
            r"the variant 'none' is the same run at low and high",
        ),
    ],
)
def test_studies_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"study 'tiny_study'.*{message}"):
        replace(TINY_STUDY, **changes)


def test_a_study_without_tiny_cells_is_not_debugged() -> None:
    with pytest.raises(ValueError, match=r"'tiny_study' has no values that make its cells tiny: set debug="):
        TINY_STUDY.for_debugging()


def test_cells_are_complete_pairs_in_order() -> None:
    study = replace(TINY_STUDY, budgets={"short": {}, "long": {"epochs": 2}})
    order = [(cell.budget, cell.recipe.seed, cell.variant) for cell in study.cells()]
    assert order == [(b, s, v) for b in ("short", "long") for s in (0, 1) for v in ("saa", "none")]
    assert len({cell.key for cell in study.cells()}) == 8
    assert [cell.recipe.epochs for cell in study.cells(seeds=1)] == [1, 1, 2, 2]


def test_the_key_is_of_what_decides_the_result() -> None:
    key = recipe_key(TINY)
    free = {"name": "x", "about": "y", "engine.loggers": (), "input.workers": 3, "engine.log_every": 9}
    assert recipe_key(with_overrides(TINY, free)) == key
    for name, value in {"seed": 1, "epochs": 9, "optim.lr": 1.0, "model_args.conv_heads": 1, "data": "x"}.items():
        assert recipe_key(with_overrides(TINY, {name: value})) != key, name
    # Lists and tuples, and a field at its default, are the same recipe.
    assert recipe_key(with_overrides(TINY, {"model_args.depths": [1, 1, 2, 1]})) == key
    assert recipe_key(with_overrides(TINY, {"engine.grad_checkpointing": False})) == key


def test_defaults_are_those_that_keys_stand_for() -> None:
    """Keys leave defaults out. A field that is new gets a line in the file, with the default that has no effect.

    A default that changes must not give the results of the former one to a recipe with the new one: make
    ``changed_fields`` compare with the former one, and leave the line as it is.
    """
    known = json.loads((Path(__file__).parent / "study_defaults.json").read_text(encoding="utf-8"))
    defaults = {task: decisive_fields(recipe_class(task)(**REQUIRED)) for task in TASKS}
    assert json.loads(json.dumps(defaults)) == known


def test_cells_that_studies_share_are_trained_once() -> None:
    shared = {"aggregation": "saa", "mhmc_heads": "heads_4", "stacking": "alternate", "modulation": "sam"}
    cells = [STUDIES[name].cell("5 epochs", variant, 0) for name, variant in shared.items()]
    assert len({cell.key for cell in cells}) == len(unique_cells(cells)) == 1
    assert unique_cells(cells) == cells[:1]


# --- training cells ---


def test_finished_cells(finished: Path, shapes: Path) -> None:
    results = read_results([finished / RESULTS])
    for cell in TINY_STUDY.cells():
        result = results[cell.key]
        log = (cell_folder(finished, cell) / "log.jsonl").read_text().splitlines()
        evaluation = next(line for line in map(json.loads, log) if line["kind"] == "eval")
        assert (result.cell, result.seed, result.metric) == (cell.label, cell.recipe.seed, "top1")
        assert result.by_epoch == (pytest.approx(evaluation["top1"]),)
        assert (result.epochs, result.value, result.steps) == ((1,), result.by_epoch[-1], 6)
        assert result.seconds > 0
        assert re.fullmatch(r"([0-9a-f]{16} ){3}", f"{result.val_images} {result.listing} {result.code} ")
    assert len({result.val_images for result in results.values()}) == 1
    saa, none = (results[TINY_STUDY.cell("", name, 0).key] for name in ("saa", "none"))
    assert saa.parameters > none.parameters
    assert saa.gmac > none.gmac
    before = (finished / RESULTS).read_bytes()
    again = run_cells(list(TINY_STUDY.cells()), finished, data={"shapes": str(shapes)})
    assert again == results
    assert (finished / RESULTS).read_bytes() == before


def test_finished_cells_are_not_those_of_other_data(finished: Path, tmp_path: Path) -> None:
    def refusal_of(data: Path) -> str:
        with pytest.raises(ValueError, match=rf"than those of {data} are now.*--run") as raised:
            run_cells(list(TINY_STUDY.cells()), finished, data={"shapes": str(data)})
        return str(raised.value)

    other = write_debug_data(TINY_STUDY.base, tmp_path / "images")
    image = next((other / "val").rglob("*.png"))
    Image.new("RGB", (40, 40)).save(image)
    assert "results of shapes are of other validation images than" in refusal_of(other)
    other = write_debug_data(TINY_STUDY.base, tmp_path / "labels")
    image = next((other / "train").rglob("*.png"))
    another = next(folder for folder in (other / "train").iterdir() if folder != image.parent)
    image.rename(another / f"moved-{image.name}")
    assert "results of shapes are of other images or labels than" in refusal_of(other)


def test_a_file_may_define_a_network(shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "own_study.py"
    file.write_text(NETWORK)
    assert run("study", file, "--run", tmp_path / "run", "--data", shapes) == 0
    (result,) = read_results([tmp_path / "run" / RESULTS]).values()
    assert result.cell == "tiny_study / own / seed 0"
    (tmp_path / "pathlib.py").write_text(NETWORK)
    with pytest.raises(ValueError, match=r"a module called pathlib already; rename the file"):
        study_from_file(tmp_path / "pathlib.py")


def test_a_failed_cell_does_not_stop_the_others(shapes: Path, tmp_path: Path) -> None:
    variants = {"bad": {"optim.lr": 1e30}, "saa": {}}
    cells = list(replace(TINY_STUDY, variants=variants, claims=(), seeds=1).cells())
    with pytest.raises(CellsFailed, match=r"1 of 2 cells failed: tiny_study / bad / seed 0: .*loss is"):
        run_cells(cells, tmp_path, data={"shapes": str(shapes)})
    assert [result.cell for result in read_results([tmp_path / RESULTS]).values()] == ["tiny_study / saa / seed 0"]
    (failure,) = read_failures([tmp_path / FAILURES]).values()
    assert (failure["key"], failure["cell"]) == (cells[0].key, "tiny_study / bad / seed 0")
    assert "loss is" in failure["reason"]


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "x"}'])
def test_a_damaged_file_of_failures_names_the_line(line: str, tmp_path: Path) -> None:
    (tmp_path / FAILURES).write_text(f'{{"key": "k", "cell": "c", "reason": "r"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"failures\.jsonl, line 2: not a cell that failed"):
        read_failures([tmp_path / FAILURES])


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "ValueError: no images"), (-9, "ended by signal 9"), (255, "exit code 255")]
)
def test_reason_of_a_failed_cell(tmp_path: Path, code: int, reason: str) -> None:
    (tmp_path / "messages.txt").write_text("starting\nValueError: no images\n")
    failed: Any = SimpleNamespace(folder=tmp_path, process=SimpleNamespace(exitcode=code))
    assert runner._reason(failed) == f"{reason} (see {tmp_path / 'messages.txt'})"


def test_a_network_or_dataset_that_cannot_work_is_an_error_before_training(shapes: Path, tmp_path: Path) -> None:
    cells = list(replace(TINY_STUDY, variants={"saa": {}, "bad": {"model_args.conv_heads": 7}}, claims=()).cells())
    with pytest.raises(ValueError, match=r"tiny_study / bad / seed \d: invalid conv_heads=7"):
        run_cells(cells, tmp_path, data={"shapes": str(shapes)})
    with pytest.raises((ValueError, OSError), match="nowhere"):
        run_cells(cells[:1], tmp_path, data={"shapes": "nowhere"})
    assert not (tmp_path / "cells").exists()


def test_jobs_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs=0"):
        run_cells([], tmp_path, jobs=0)


# --- results files ---

ANY = made_up_result(TINY_STUDY.cell("", "saa", 0), 1.0)


def test_results_files_are_merged(tmp_path: Path) -> None:
    for file, values in (("a.jsonl", {"x": 1.0, "y": 3.0}), ("b.jsonl", {"y": 3.0, "z": 2.0})):
        for key, value in values.items():
            add_result(tmp_path / file, replace(ANY, key=key, value=value))
    merged = read_results([tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "missing.jsonl"])
    assert {key: result.value for key, result in merged.items()} == {"x": 1.0, "y": 3.0, "z": 2.0}
    appended = tmp_path / "both.jsonl"
    appended.write_text((tmp_path / "a.jsonl").read_text() + "\n" + (tmp_path / "b.jsonl").read_text())
    assert read_results([appended]) == merged
    add_result(tmp_path / "c.jsonl", replace(ANY, key="z", value=4.0, by_epoch=(4.0,)))
    expected = rf"c\.jsonl, line 1: {ANY.cell} has another result, 4\.00, than in .*b\.jsonl, line 2, 2\.00; remove one"
    with pytest.raises(ValueError, match=expected):
        read_results([tmp_path / "b.jsonl", tmp_path / "c.jsonl"])


@pytest.mark.parametrize("line", ["{", "[]", '{"key": 1}', '{"other": 2}', "7"])
def test_a_damaged_results_file_names_the_line(line: str, tmp_path: Path) -> None:
    add_result(tmp_path / RESULTS, ANY)
    with (tmp_path / RESULTS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"{RESULTS}, line 2: not a result of a study"):
        read_results([tmp_path / RESULTS])


# --- the command ---


def test_the_list_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    listed = answer(capsys, "study")
    assert [study["name"] for study in listed] == list(STUDIES)
    assert all(study["claims"] and study["variants"] for study in listed)


def test_the_list_of_cells(capsys: pytest.CaptureFixture[str]) -> None:
    labels = answer(capsys, "study", "aggregation", "--list", "--only", "saa", "none", "--budgets", "5 epochs")
    assert labels[:3] == [f"aggregation / 5 epochs / {v} / seed {s}" for v, s in (("saa", 0), ("none", 0), ("saa", 1))]
    assert len(labels) == 8
    other = answer(capsys, "study", "aggregation", "--list", "--only", "saa", "--seeds", "6", "--first_seed", "4")
    assert other == [f"aggregation / {n} epochs / saa / seed {seed}" for n in (2, 5) for seed in (4, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stacking", "--budgets", "7"), r"unknown budget of these studies: '7'.*5 epochs"),
        (("stacking", "--only", "sam_only", "--budgets", "5 epochs"), r"aggregation has none of sam_only; omit"),
        (("--only", "sa"), r"unknown variant of aggregation: 'sa'; did you mean saa\?; expected one of saa, none"),
        (("--budgets", "7"), r"unknown budget of aggregation: '7'.*5 epochs"),
        (("--seeds", "0"), "invalid --seeds 0"),
        (("--first_seed", "4"), r"leaves no seed of aggregation, which has the seeds 0 to 3; add e.g. --seeds 8"),
        (("--report", "--first_seed", "1"), r"a report has those of all seeds: omit --first_seed"),
        (("--data", "a", "b"), r"invalid data=a b.*torch/cifar10=PATH"),
        (("--report", "--only", "saa"), r"a report has all that have results.*omit --only"),
        (("--report", "--run", "nowhere"), r"no results of aggregation; train cells first"),
        (("--report", "--results", "nowhere.jsonl"), r"nowhere.jsonl: there is no such file"),
        (("aggregation", "--dry-run"), r"several of these studies have the name 'aggregation'"),
        (("--report", "--throughput"), r"measure first, then write the report"),
        (("--results", "more.jsonl"), r"--results is for the report; add --report"),
        (("--throughput", "--run", "nowhere"), r"nowhere: no cell of these studies is finished"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(message, refusal(capsys, 1, "study", "aggregation", *arguments))


def test_what_a_study_is_restricted_to_may_have_no_debug_variants(capsys: pytest.CaptureFixture[str]) -> None:
    labels = answer(capsys, "study", "peers_imagenet", "--only", "smt", "swin", "--list")
    assert {label.split(" / ")[2] for label in labels} == {"smt", "swin"}


def test_a_name_that_cannot_be_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid name='lr/warmup' of a study"):
        replace(TINY_STUDY, name="lr/warmup")


def test_early_stopping_is_another_cell_and_logging_is_not() -> None:
    cell = TINY_STUDY.cell("", "saa", 0).recipe
    keys = {
        recipe_key(with_overrides(cell, values))
        for values in ({}, {"engine.patience": 1}, {"engine.max_grad_norm": 1.0})
    }
    assert len(keys) == 3
    assert recipe_key(with_overrides(cell, {"engine.log_every": 3, "input.workers": 0})) in keys


def test_models_of_other_input_sizes_have_a_throughput_of_their_own() -> None:
    recipes = [
        with_overrides(TINY_STUDY.base, {"input.size": size, "seed": seed}) for size in (32, 96) for seed in (0, 1)
    ]
    assert len({inference_key(recipe) for recipe in recipes}) == 2
    recipes = [with_overrides(CAMVID, {"segment.channels": channels}) for channels in (16, 64)]
    assert len({inference_key(recipe) for recipe in recipes}) == 2


def test_estimates_respect_the_fraction_of_the_images_and_the_model() -> None:
    study = STUDIES["budget"]
    known = made_up_result(study.cell("5 epochs", "smt", 0), 70.0)  # a minute
    results = {known.key: known}
    cells = [study.cell(budget, "smt", 0) for budget in ("5 epochs", "10 epochs", "10 % of the images")]
    assert list(estimate_seconds(cells, results).values()) == pytest.approx([120.0, 60.0])


def test_the_time_of_a_model_is_that_of_the_most_similar_runs() -> None:
    times = PassTimes()
    small, wide = (STUDIES["budget"].cell(budget, "smt", 0).recipe for budget in ("5 epochs", "twice the width"))
    assert times.of(small, rough=True) is None
    times.add(STUDIES["aggregation_camvid"].cell("14 epochs", "saa", 0).recipe, 140.0)
    assert (times.of(small), times.of(small, rough=True)) == (None, 10.0)
    times.add(wide, 100.0)
    assert (times.of(small), times.of(small, rough=True)) == (None, 20.0)
    times.add(small, 50.0)
    assert (times.of(small), times.of(wide)) == (10.0, 20.0)


def test_an_unknown_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown study 'agregation'; did you mean aggregation?" in refusal(capsys, 2, "study", "agregation")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "STUDY of type"),
        ("STUDY = 3", "got 3"),
        ("x = 1\nSTUDY = Study()", "mine.py, line 2: NameError: name 'Study' is not defined"),
        ("x = 1\nSTUDY = (", "mine.py, line 2: SyntaxError: '(' was never closed"),
    ],
)
def test_a_file_without_a_study(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(content)
    assert message in refusal(capsys, 1, "study", tmp_path / "mine.py")
    assert "there is no such file" in refusal(capsys, 1, "study", tmp_path / "other.py")


def test_dry_run_estimates_from_finished_cells(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(COMMAND.format(changes="seeds=3, budgets={'': {}, 'long': {'epochs': 10}}"))
    planned = answer(capsys, "study", file, "--run", finished, "--dry-run", "--jobs", "2")
    seconds = {row["cell"]: row["seconds"] for row in planned["cells"]}
    assert [row["done"] for row in planned["cells"]] == [True] * 4 + [False] * 8
    long, short = (seconds[f"tiny_study / {budget}none / seed 2"] for budget in ("long / ", ""))
    assert long == pytest.approx(10 * short)
    results = read_results([finished / RESULTS])
    measured = [results[TINY_STUDY.cell("", "none", seed).key].seconds for seed in (0, 1)]
    assert short == pytest.approx(sum(measured) / 2)
    assert planned["seconds"] == pytest.approx(sum(s for s in seconds.values() if s is not None) / 2)


def test_dry_run_measures_where_nothing_is_finished(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(COMMAND.format(changes="seeds=1"))
    planned = answer(capsys, "study", file, "--run", tmp_path, "--data", shapes, "--dry-run")
    assert all(0 < row["seconds"] < 60 for row in planned["cells"])
    assert not (tmp_path / "cells").exists()


def test_report_of_finished_cells(
    finished: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "compare", functools.partial(throughput.compare, seconds=0.0, peak=1e9))
    file = tmp_path / "mine.py"
    file.write_text(COMMAND.format(changes=""))
    elsewhere = tmp_path / "elsewhere"  # results alone, of cells that another machine trained
    elsewhere.mkdir()
    (elsewhere / RESULTS).write_bytes((finished / RESULTS).read_bytes())
    measured = answer(capsys, "study", file, "--run", elsewhere, "--data", shapes, "--throughput")
    speeds = json.loads(Path(measured).read_text())
    assert len(speeds["images_per_s"]) == 2
    assert all(speed > 0 for speed in speeds["images_per_s"].values())
    files = answer(capsys, "study", file, "--run", elsewhere, "--report", "--out", tmp_path / "report")
    names = [Path(path).name for path in files]
    pictures = [f"tiny_study_{kind}.svg" for kind in ("differences", "curves", "cost")]
    assert names == ["studies.md", "studies.html", *pictures]
    results = read_results([finished / RESULTS])
    values = {v: [results[TINY_STUDY.cell("", v, s).key].value for s in (0, 1)] for v in ("saa", "none")}
    difference = sum(values["saa"]) / 2 - sum(values["none"]) / 2
    page = (tmp_path / "report" / "studies.md").read_text()
    assert f"| SAA is better than none | tiny_study | none: {difference:+.2f} (" in page
    assert all(f"![tiny study {picture[11:-4]}]({picture})" in page for picture in pictures)
    html = (tmp_path / "report" / "studies.html").read_text()
    assert html.count('src="data:image/svg+xml;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', html)  # nothing is loaded from elsewhere


def test_a_report_of_one_budget_is_of_the_studies_that_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_draw", lambda *args: [])
    for budget in ("2 epochs", "5 epochs"):
        add_result(tmp_path / RESULTS, made_up_result(STUDIES["stacking"].cell(budget, "sam_only", 0), 50.0))
    page, _ = answer(capsys, "study", "--run", tmp_path, "--report", "--budgets", "5 epochs")
    text = Path(page).read_text(encoding="utf-8")
    assert "## stacking\n" in text
    assert "### 5 epochs" in text
    assert "2 epochs" not in text
    assert "- 1 results do not record which images they are of, which is assumed to be the same" in text
    assert refusal(capsys, 1, "study", "--run", tmp_path, "--report", "--budgets", "7 epochs")
    page, _ = answer(capsys, "study", "stacking", "--run", tmp_path, "--report")
    assert "No results yet at: " not in Path(page).read_text(encoding="utf-8")
    (tmp_path / RESULTS).write_text("")
    add_result(tmp_path / RESULTS, made_up_result(STUDIES["stacking"].cell("5 epochs", "sam_only", 0), 50.0))
    page, _ = answer(capsys, "study", "stacking", "--run", tmp_path, "--report")
    assert "No results yet at: 2 epochs." in Path(page).read_text(encoding="utf-8")


def test_a_debug_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    only = ("--only", "saa", "none")
    arguments: tuple[Any, ...] = ("study", "aggregation", *only, "--debug", "--run", folder)
    assert run(*arguments, "--jobs", "2", "--seeds", "1") == 0
    shown = capsys.readouterr().out
    assert "all 2 cells are done" in shown
    assert run(*shlex.split(shown.partition("report: smt ")[2])) == 0
    page = (folder / "report" / "studies.md").read_text()
    assert "undecided" in page
    assert (
        f"\nsmt study aggregation --run {folder} --debug\nsmt study aggregation --run {folder} --debug --report" in page
    )


# --- the results that are committed ---

COMMITTED = REPO / "docs" / "results" / "study"
PUBLISH = runpy.run_path(str(REPO / "tools" / "publish_study.py"))


@functools.cache
def committed_rows(decisive: bool = False) -> list[str]:
    """The lines of the table of verdicts, from the committed results."""
    results = read_results([COMMITTED / RESULTS])
    assert results
    summaries = {name: summarize(study, results) for name, study in STUDIES.items()}
    return verdict_table(list(STUDIES.values()), summaries, decisive=decisive)[2:]


def test_the_committed_report_is_that_of_the_committed_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published anew, into copies; without the pictures, which take long."""
    monkeypatch.setattr(report, "_draw", lambda study, summaries, speeds, folder: [
        path for kind in ("differences", "curves", "cost")
        if (path := folder / f"{study.name}_{kind}.svg").name in {each.name for each in COMMITTED.iterdir()}
    ])  # fmt: skip
    monkeypatch.setattr(report, "html_page", lambda *args: "")
    (tmp_path / "study").mkdir()
    for name in (RESULTS, FAILURES, "throughput.json"):
        if (COMMITTED / name).is_file():
            shutil.copy(COMMITTED / name, tmp_path / "study")
    shutil.copy(REPO / "README.md", tmp_path)
    PUBLISH["main"](tmp_path / "empty", tmp_path / "study", tmp_path / "README.md")
    for path, committed in ((tmp_path / "study" / "studies.md", COMMITTED), (tmp_path / "README.md", REPO)):
        assert path.read_text(encoding="utf-8") == (committed / path.name).read_text(encoding="utf-8")


def test_publishing_merges_and_changes_nothing_where_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_draw", lambda *args: [])
    cells = [STUDIES["aggregation"].cell("2 epochs", name, seed) for name in ("saa", "none") for seed in range(3)]
    published, run_folder = tmp_path / "published", tmp_path / "run"
    published.mkdir()
    run_folder.mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{PUBLISH['FIRST']}\n{PUBLISH['LAST']}\nafter\n")
    for cell in cells[:5]:
        add_result(published / RESULTS, made_up_result(cell, 50.0))
    add_failure(published / FAILURES, "a", "cell a", "its reason")
    add_failure(run_folder / FAILURES, "b", "cell b", "another reason")
    add_result(run_folder / RESULTS, made_up_result(cells[0], 50.0))
    add_result(run_folder / RESULTS, made_up_result(cells[5], 50.0))
    PUBLISH["main"](run_folder, published, readme)
    assert len((published / RESULTS).read_text().splitlines()) == 6
    assert list(read_failures([published / FAILURES])) == ["a", "b"]
    assert readme.read_text().startswith(f"before\n{PUBLISH['FIRST']}\n| claim")
    before = {path: path.read_bytes() for path in published.iterdir()}
    add_result(run_folder / RESULTS, made_up_result(cells[1], 60.0))
    with pytest.raises(ValueError, match="has another result"):
        PUBLISH["main"](run_folder, published, readme)
    assert {path: path.read_bytes() for path in published.iterdir()} == before


def test_every_committed_result_is_of_a_study() -> None:
    keys = {cell.key for study in STUDIES.values() for cell in study.cells(seeds=20)}
    assert read_results([COMMITTED / RESULTS]).keys() - keys == set()


def test_the_readme_has_the_verdicts_of_the_committed_results() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    shown = [line for line in readme.splitlines() if re.search(rf"\*\*({'|'.join(Verdict)})\*\*", line)]
    assert shown
    assert shown == committed_rows(decisive=True)


def test_the_history_has_the_changes_of_the_cells_that_were_trained_again() -> None:
    before, now = (read_results([COMMITTED / name]) for name in ("replaced.jsonl", RESULTS))
    changes = [now[key].value - result.value for key, result in before.items()]
    found = len(changes), *(round(f, 2) for f in (mean(map(abs, changes)), max(map(abs, changes)), stdev(changes)))
    text = (COMMITTED / "history.md").read_text(encoding="utf-8")
    assert found == (38, 0.44, 1.04, 0.53)
    assert f"# {', '.join(map(str, found))}" in text
