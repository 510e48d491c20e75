"""Names with control characters, markup, or bytes that are not UTF-8: exact in data, harmless where they are shown."""

import csv
import html
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import markdown as python_markdown
import pytest
import yaml

from command import answer, refusal, run
from drawn_sets import scenes_recipe, shapes_recipe, write_scenes, write_shapes
from smt_vision import checkpoints
from smt_vision.engine.log import read_log
from smt_vision.engine.loggers import build_loggers
from smt_vision.engine.loop import train
from smt_vision.pages import table_lines
from smt_vision.pictures.style import short
from smt_vision.study.report import write_report
from smt_vision.study.statistics import summarize
from smt_vision.study.studies import STUDIES
from smt_vision.text import Markdown, code, get_logger, markdown, printable, shell_word
from study_results import made_up_result
from tiny_run import CLASSIFICATION_PICTURES, tiny, write_config, write_images

Capture = pytest.CaptureFixture[str]
NOT_UTF8 = os.fsdecode(b"gr\xfcn")
HOSTILE = {
    "escape sequences": "a\x1b[31m\x1b]0;title\x07b\x7f\x9b2J",
    "a forged line": "a\r\nsmt train: error: forged",
    "directions and zero width": "a\u202egnp.\u2066b\u200bc\ufeff\u2028d",
    "HTML and Markdown": "<img src='http:x' onerror=a>&amp;![p](http:q)|`c`*b*_i_[l](u)~~s~~$m$",
    "rich's markup": "[red]a[/red] [link=x]:bomb:\\",
    "not UTF-8": NOT_UTF8,
    "another script": "日本語 😀 \u200f",
}
each_name = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def unprintable(text: str) -> set[str]:
    """Characters that a terminal could act on, apart from line breaks."""
    return {char for char in text if unicodedata.category(char) in UNPRINTABLE and char != "\n"}


# The functions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b é 日本 \u3000 \xa0 \\n", "a b é 日本 \u3000 \xa0 \\n"),
        ("\n\r\t\0\x1b\x7f", r"\n\r\t\x00\x1b\x7f"),
        ("\x85\x9b\xad\u200b\u2028\u202e\ufeff", r"\u0085\u009b\u00ad\u200b\u2028\u202e\ufeff"),
        (os.fsdecode(b"\x85\xff"), r"\x85\xff"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
        (Path("a\nb"), r"a\nb"),
    ],
)
def test_printable(text: object, expected: str) -> None:
    assert printable(text) == expected


def test_printable_text_of_several_lines_is_indented() -> None:
    assert printable("first\nsecond\rthird", multiline=True) == "first\n  second\\rthird"


def text_of(page: str) -> str:
    """The text of HTML that has nothing but paragraphs, tables and code in it."""
    assert set(re.findall(r"</?([\w-]+)[^>]*>", page)) <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    return html.unescape(re.sub(r"<[^>]*>", "", page))


@each_name
def test_markdown_shows_the_name_and_nothing_else(name: str) -> None:
    for source in (markdown(name), code(name)):
        assert "\n" not in source
        shown = text_of(python_markdown.markdown(f"name {source} end", extensions=["tables"]))
        assert shown == f"name {printable(name)} end"
    table = "\n".join(table_lines(["class", "n"], [(name, 1), (name, 22)]))
    page = python_markdown.markdown(table, extensions=["tables"])
    assert page.count("<td") == 4
    assert text_of(page).split("\n").count(printable(name)) == 2


def test_addresses_do_not_become_links() -> None:
    assert markdown("http://a.b www.a.b a@b") == "http&#58;//a.b www&#46;a.b a&#64;b"


def test_usual_names_stay_as_they_are_in_markdown() -> None:
    assert markdown("fire_truck (2nd) n01440764 top-1 C++ é") == "fire_truck (2nd) n01440764 top-1 C++ é"
    assert table_lines(["a"], [(Markdown("**a|b**"),)])[-1] == "| **a\\|b** |"


@each_name
def test_a_shell_word_is_printable_and_means_the_name(name: str) -> None:
    word = shell_word(name)
    assert not unprintable(word)
    assert "\n" not in word
    out = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert out == os.fsencode(name)


@each_name
def test_log_messages_have_one_printable_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    get_logger("smt_vision.test").warning("%s: %d images of %s", Path(name), 3, [name])
    assert caplog.messages == [f"{printable(name)}: 3 images of {printable([name])}"]


def test_names_in_pictures_are_printable() -> None:
    assert short("a\n" + "b" * 30 + NOT_UTF8, 12) == "a\\nb…gr\\xfcn"


@each_name
def test_experiment_loggers_get_printable_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    monkeypatch.setattr("smt_vision.engine.loggers.LOGGERS", {"tensorboard": lambda *args: got.append(args)})
    build_loggers(["tensorboard"], tmp_path, {"data": name, "epochs": 3})
    assert got == [(tmp_path, {"data": printable(name), "epochs": 3}, 0)]


def test_tensorboard_refuses_a_folder_that_it_cannot_write_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TensorBoard .*not UTF-8; .*--run"):
        build_loggers(["tensorboard"], tmp_path / NOT_UTF8, {})


# Commands over folders of such names


@pytest.fixture(scope="module")
def classes() -> list[str]:
    return sorted(name.replace("/", ":") for name in HOSTILE.values())


@pytest.fixture(scope="module")
def data(classes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names") / f"data\n{NOT_UTF8}"
    colors = {name: (35 * k, 250 - 35 * k, 20) for k, name in enumerate(classes)}
    write_images(folder / "train", colors, [2] * len(classes))
    write_images(folder / "val", colors, [1] * len(classes), seed=1)
    for k, name in enumerate(classes):
        (folder / "val" / name / "0.png").rename(folder / "val" / name / f"{classes[-1 - k]}.png")
    (folder / "val" / classes[0] / "bad\nsmt eval: error: forged.png").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def run_folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command, in a folder whose name is not UTF-8."""
    root = tmp_path_factory.mktemp("runs")
    config = write_config(tiny(Path("."), epochs=1), root / "recipe.yaml")
    folder = root / f"run\n{NOT_UTF8}"
    arguments = ["train", "quickstart", "--config", config, "--data", str(data), "--run", str(folder)]
    arguments += ["--engine.loggers", "[]"]
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors) for errors in ("strict", "backslashreplace")
    ]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smt", *arguments])
        assert run(*arguments) == 0
    for stream in streams:
        stream.flush()
        shown = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert not unprintable(shown)
        assert not re.search("^smt .*forged", shown, re.MULTILINE)
    return folder


def test_a_run_keeps_exact_names_and_shows_printable_ones(run_folder: Path, data: Path, classes: list[str]) -> None:
    spec = checkpoints.load(run_folder).spec
    assert spec is not None
    assert spec["classes"] == classes
    assert yaml.safe_load((run_folder / "recipe.yaml").read_text())["data"] == str(data)
    assert {row["class"] for row in json.loads((run_folder / "metrics.json").read_text())["per_class"]} == set(classes)
    assert read_log(run_folder)[-1]["kind"] == "eval"
    assert (run_folder / "log.jsonl").read_bytes().isascii()
    summary = (run_folder / "summary.md").read_text(encoding="utf-8")
    assert not unprintable(summary)
    assert f"smt predict {shell_word(run_folder)} " in summary
    shown = [name for name in classes if f"| {markdown(name)} |" in summary]
    assert len(shown) > len(classes) // 2
    commands = re.findall(r"```sh\n(.*?)\n```", summary, re.DOTALL)[0]
    assert commands.startswith("smt train quickstart --config ")
    assert f" --data {shell_word(data)} --run {shell_word(run_folder)} " in commands
    assert commands.count("\n") == 0
    page = python_markdown.markdown(summary, extensions=["tables", "fenced_code"])
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"curves.png", *CLASSIFICATION_PICTURES}
    page = (run_folder / "summary.html").read_text(encoding="utf-8")
    assert not unprintable(page)
    pictures = re.findall(r' src="data:image/(?:png|jpeg);base64,', page)
    assert len(pictures) == page.count("<img") == 1 + len(CLASSIFICATION_PICTURES)
    assert set(re.findall(r"<([\w-]+)", page)) <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "ul", "li", "img", "strong", "code",
        "pre", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert (
        f"<td>optim.lr</td>\n<td>{yaml.safe_load((run_folder / 'recipe.yaml').read_text())['optim']['lr']}</td>" in page
    )


def test_prediction_tables(run_folder: Path, data: Path, classes: list[str], tmp_path: Path, capsys: Capture) -> None:
    found = answer(capsys, "predict", run_folder, data / "val")
    names = [entry["id"] for entry in found]
    assert {os.path.basename(name) for name in names} >= {f"{name}.png" for name in classes}
    assert run("predict", run_folder, data / "val", "--out", tmp_path / f"out\n{NOT_UTF8}") == 0
    out, _ = capsys.readouterr()
    assert not unprintable(out)
    assert all(printable(name) in out for name in names)
    assert len(out.splitlines()) == len(names) + 2
    with open(tmp_path / f"out\n{NOT_UTF8}" / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # A byte that is not UTF-8 is written as in JSON; all other names are exact.
    assert [row["image"] for row in rows] == [name.encode("utf-8", "backslashreplace").decode() for name in names]
    labels = {name.encode("utf-8", "backslashreplace").decode() for name in classes}
    assert {row["label"] for row in rows if not row["error"]} <= labels


def test_output_in_an_encoding_without_the_characters(
    run_folder: Path, data: Path, classes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    name = next(name for name in classes if "日" in name)
    assert run("predict", run_folder, data / "val" / name) == 0
    sys.stdout.flush()
    assert rb"\u65e5\u672c" in out.getvalue()


def test_evaluation_and_analysis(
    run_folder: Path, data: Path, classes: list[str], tmp_path: Path, capsys: Capture
) -> None:
    image = next((data / "val" / classes[1]).iterdir())
    for arguments in (
        ("eval", run_folder, "--out", tmp_path / "eval", "--workers", "0"),
        ("analyze", run_folder, image, "--kinds", "cam", "--out", tmp_path / "analysis"),
        ("info", run_folder),
    ):
        assert run(*arguments) == 0, capsys.readouterr().err
        out, error = capsys.readouterr()
        assert not unprintable(out + error)
        assert "\nsmt " not in out + error


@each_name
def test_errors_have_one_printable_line(name: str, tmp_path: Path, capsys: Capture) -> None:
    for arguments in (("predict", "smt_femto.cifar10", tmp_path / name), ("eval", tmp_path / name)):
        error = refusal(capsys, 1, *arguments)
        assert not unprintable(error)
        assert error.count("\n") == 1
    error = refusal(capsys, 2, "train", "quickstart", "--epochs", f"x{name}")
    assert not unprintable(error)
    assert "\nsmt" not in error


# Categories


CATEGORIES = ("a line\nbreak\x1b[2J", "half of \ud83d <b>|</b> and a byte \udcff")


def test_a_detector_of_such_categories(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "set", images=2)
    for file in (data / "annotations").iterdir():
        content = json.loads(file.read_text())
        for category, name in zip(content["categories"], CATEGORIES, strict=True):
            category["name"] = name
        file.write_text(json.dumps(content))
    done = train(shapes_recipe(data, "retinanet"), tmp_path / "run", display=False)
    assert done.task.spec.classes == CATEGORIES
    summary = (tmp_path / "run" / "summary.md").read_text(encoding="utf-8")
    assert all(f"| {markdown(name)} | 2 |" in summary for name in CATEGORIES)
    assert run("predict", tmp_path / "run", data / "val", "--score", "0.0", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert {entry["category"] for entry in found} <= set(CATEGORIES)


def test_a_segmenter_of_such_classes(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "set")
    names = ["sky", *CATEGORIES]
    (data / "classes.json").write_text(json.dumps(names))
    train(scenes_recipe(data), tmp_path / "run", display=False)
    summary = (tmp_path / "run" / "summary.md").read_text(encoding="utf-8")
    assert all(f"| {markdown(name)} | " in summary for name in names)
    assert run("predict", tmp_path / "run", data / "images" / "val", "--out", tmp_path / "out") == 0


def test_the_report_of_a_study_shows_results_of_others_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smt_vision.study.report._draw", lambda *_: [])
    study = STUDIES["aggregation"]
    cells = list(study.cells(2))
    hostile = HOSTILE["HTML and Markdown"] + "\n# forged"
    results = {
        cell.key: replace(
            made_up_result(cell, 50.0 + k), hardware=hostile, version=hostile, torch=hostile, date=hostile
        )
        for k, cell in enumerate(cells)
    }
    write_report(
        [study], {study.name: summarize(study, results)}, tmp_path, throughput={"images_per_s": {}}, command=""
    )
    page = (tmp_path / "studies.html").read_text(encoding="utf-8")
    shown = re.findall(r"<li>hardware: (.*)</li>", page)
    assert [html.unescape(text) for text in shown] == [printable(hostile)]
    assert not re.search("[<>]", shown[0])
    assert "<h1>forged" not in page


# The rule


def test_modules_log_through_the_filter() -> None:
    package = Path(__file__).parent.parent / "src" / "smt_vision"
    others = {"text.py", "deploy/quantize.py", "model/official.py", "model/loading.py"}  # model/ imports no other unit
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "getLogger(" in path.read_text()}
    assert found == others
