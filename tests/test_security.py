"""What is promised in SECURITY.md and tested nowhere else: which readers are called, and what they are asked for."""

import ast
import functools
import json
import re
import stat
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import EpsImagePlugin, Image
from torch import nn

from drawn_sets import shapes_recipe, write_shapes
from smt_vision import checkpoints
from smt_vision.data.decode import UnreadableImage, decode
from smt_vision.data.files import FORMATS, image_formats
from smt_vision.data.label_maps import decode_labels
from smt_vision.registry import create_timm_model
from smt_vision.tasks import recipe_class
from smt_vision.tasks.build import create_model
from smt_vision.tasks.detection.task import DetectionTraining
from smt_vision.tasks.load import limited_parameters, load

REPO = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("src", "tools") for path in (REPO / folder).rglob("*.py"))
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(%pipe%touch executed) (w) file
showpage
%%EOF
"""


# Image formats


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``gs`` on the PATH; the file that exists once it has run."""
    ran = tmp_path / "ran"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return ran


def test_pillow_itself_runs_ghostscript_for_any_suffix(ghostscript: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(EPS)
    with Image.open(tmp_path / "photo.jpg") as image, pytest.raises(OSError):  # noqa: PT011  it wrote no image
        image.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("reader", ["bytes", "file", "opened image", "label map", "detection set"])
def test_ghostscript_never_runs(reader: str, ghostscript: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    if reader == "detection set":
        data = write_shapes(tmp_path / "set", images=1)
        (data / "train" / "0.png").write_bytes(EPS)
        training = DetectionTraining(shapes_recipe(data, "retinanet"))
        with pytest.raises(UnreadableImage):
            decode(training.train_set.read(0)[0], 3, name="0.png")
    elif reader == "label map":
        with pytest.raises(UnreadableImage, match=r"^p: .*not an image in a supported format"):
            decode_labels(path, name="p")
    elif reader == "opened image":
        with (
            Image.open(path) as image,
            pytest.raises(UnreadableImage, match=r"^p: .*format EPS; expected one of JPEG, PNG"),
        ):
            decode(image, 3, name="p")
    else:
        with pytest.raises(UnreadableImage, match=rf"^p: .*\({len(EPS)} bytes\); expected one of JPEG, PNG"):
            decode(EPS if reader == "bytes" else path, 3, name="p")
    assert not ghostscript.exists()


@pytest.mark.parametrize("format", ["ICO", "ICNS", "PCX", "SGI", "DDS", "MSP", "XBM", "BLP", "QOI"])
def test_other_formats_are_not_decoded(format: str, tmp_path: Path) -> None:
    mode = {"MSP": "1", "XBM": "1", "BLP": "P"}.get(format, "RGB")
    Image.new(mode, (16, 16)).save(tmp_path / "photo.png", format)
    with Image.open(tmp_path / "photo.png") as image:
        assert image.format == format
    with pytest.raises(UnreadableImage, match="expected one of JPEG, PNG"):
        decode(tmp_path / "photo.png", 3, name="p")


def test_formats_that_are_read_are_among_the_documented() -> None:
    assert set(image_formats()) <= set(FORMATS)
    guide = (REPO / "docs" / "guides" / "finetune.md").read_text(encoding="utf-8")
    names = {"DIB": "BMP", "JPEG2000": "JPEG 2000", "WEBP": "WebP"}
    assert all(names.get(format, format) in guide for format in FORMATS)


# Readers of files in the sources


@functools.cache
def all_calls() -> list[tuple[Path, str, ast.Call]]:
    """Every call in the sources, with the name of the function as it is written, e.g. ``Image.open``."""
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]
    return [
        (path, ast.unparse(node.func), node)
        for path, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize(
    ("function", "keyword", "value"),
    [
        ("Image.open", "formats", r"image_formats\(\)|\['PNG'(, 'JPEG')?\]"),
        ("torch.load", "weights_only", "True"),
        ("np.load", "allow_pickle", "False"),
    ],
)
def test_readers_are_restricted_wherever_they_are_called(function: str, keyword: str, value: str) -> None:
    found = [(path, call) for path, name, call in all_calls() if name == function]
    assert found
    values = {f"{path}:{call.lineno}": keywords(call).get(keyword, "") for path, call in found}
    assert {place: given for place, given in values.items() if not re.fullmatch(value, given)} == {}


def test_pickles_and_archives_are_read_nowhere_else() -> None:
    readers = ("pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
               "tarfile.open", ".extractall", "unpack_archive", "marshal.loads", "shelve.open", "joblib.load",
               "np.load")  # fmt: skip
    found = {(path.relative_to(REPO).as_posix(), name) for path, name, _ in all_calls() if name.endswith(readers)}
    assert found == {
        # It packs values of a dataset for worker processes, and unpacks its own bytes only.
        ("src/smt_vision/tasks/detection/data/dataset.py", "pickle.loads"),
        ("src/smt_vision/yaml_files.py", "yaml.load"),  # with a SafeLoader
        ("src/smt_vision/tasks/classification/data/shards.py", "np.load"),  # of its own files in the cache
    }


@pytest.mark.parametrize(
    "argument",
    [
        {"checkpoint_path": "other.pth"},
        {"pretrained_cfg_overlay": {"file": "other.pth"}},
        {"pretrained_cfg": {"url": "https://example.com/usercustomize.py"}},
        {"pretrained": True},
        {"cache_dir": "packages"},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_a_spec_cannot_choose_weights(tmp_path: Path, argument: dict[str, Any]) -> None:
    """``timm.create_model`` would read another file, or download one to any folder.

    The layers of Swin are for one image size, so its constructor's arguments are looked at before it is built.
    """
    for model in ("smt_atto", "swin_tiny_patch4_window7_224"):
        for task, size in (("classify", {"size": 32}), ("detect", {}), ("segment", {})):
            head = json.loads(json.dumps(asdict(recipe_class(task).groups()[recipe_class(task).head_group]())))
            spec = {
                "task": task, "model": model, "classes": ["a", "b"], "input": size, "head": head, "model_args": argument
            }  # fmt: skip
            checkpoints.save({"spec": spec, "model": {"x": torch.zeros(1)}}, tmp_path / "best.pt")
            with pytest.raises(ValueError, match=f"model_args.*{next(iter(argument))}.*--checkpoint"):
                load(tmp_path / "best.pt")
    for create in (create_model, create_timm_model):
        if "pretrained" not in argument:
            with pytest.raises(ValueError, match=f"model_args.*{next(iter(argument))}.*--checkpoint"):
                create("swin_tiny_patch4_window7_224", **argument)


# Dependencies

# Versions that a package of this name must not have: uploads with an attacker's code, and code that a file can run.
KNOWN_BAD = {
    "lightning": ("2.6.2", "2.6.3"),  # malicious uploads
    "torch": ("2.5.1",),  # CVE-2025-32434: weights_only=True runs code
    "pillow": ("10.0.0", "10.1.0", "10.2.0"),  # CVE-2023-4863, CVE-2023-50447, CVE-2024-28219
    "pyyaml": ("5.3.1",),  # CVE-2020-14343: code in YAML
    "datasets": ("3.6.0",),  # runs the loading script of a data set
}


def declared() -> dict[str, list[Requirement]]:
    """The requirements of the package and its extras, by name."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, (line for lines in lists for line in lines)):
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


@pytest.mark.parametrize("name", KNOWN_BAD)
def test_known_bad_versions_are_excluded(name: str) -> None:
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, (x for x in lines if "==" in x))}
    requirements = declared()[name]
    for version in KNOWN_BAD[name]:
        assert version not in pins[name]
        assert [str(requirement) for requirement in requirements if version in requirement.specifier] == []


def test_the_tests_of_the_promises_exist() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (REPO / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [test for file, test in named if f"\ndef {test}(" not in (REPO / file).read_text(encoding="utf-8")] == []


def test_the_tests_of_the_faults_exist() -> None:
    page = (REPO / "docs" / "reliability.md").read_text(encoding="utf-8")
    faults = [
        row for row in page[page.index("## Faults") :].splitlines() if row.startswith("| ") and "fault |" not in row
    ]
    assert len(faults) >= 30
    tests = {file.name: file.read_text(encoding="utf-8") for file in (REPO / "tests").glob("test_*.py")}
    general = tests["test_reliability.py"] + tests["test_engine.py"]
    for file, test in re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", page):
        assert f"\ndef {test}(" in (tests[file] if file else general), f"{file}::{test}"
    for file in re.findall(r"`(test_\w+\.py)`", page):
        assert file in tests
    assert [
        row for row in faults if "test_" not in row and "Fuzz" not in row and "corpus" not in row and "soak" not in row
    ] == []


def test_the_limit_of_parameters_is_that_of_the_thread_that_loads() -> None:
    """Another thread may build a larger model meanwhile."""
    weights = {"weight": torch.zeros(1)}
    with limited_parameters(weights), ThreadPoolExecutor(1) as pool, torch.device("meta"):
        pool.submit(nn.Linear, 50_000, 50_000, device="meta").result()
        with pytest.raises(ValueError, match="much larger than its 1 tensors"):
            nn.Linear(50_000, 50_000)
    nn.Linear(50_000, 50_000, device="meta")
