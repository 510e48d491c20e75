"""The guide to other libraries (docs/guides/libraries.md) runs, section by section.

The libraries are the extra ``interop``, which is for these tests only::

    pip install -c constraints.txt -e '.[dev,interop]'
    python -m pytest tests/test_libraries.py

A section is skipped where one of its libraries is not installed. Each section is a program of its own, because some of
these libraries change the process that imports them; it runs without network. A warning that concerns this package or
the guide's own code is an error; warnings inside other libraries are not.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import pytest

import smt_vision
from pages import LIBRARIES, REPO, Block, page_blocks, write_photos
from smt_server import server
from waiting import DEADLINE

HEADINGS = re.compile(r"^## (.+)$", re.M)
STRICT = 'import warnings; warnings.filterwarnings("error", module=r"smt_vision|__main__$")'
# What timm's train.py and validate.py have in common: a function main() that builds a model by its name.
TIMM_SCRIPT = """\
import argparse
from pathlib import Path

import timm
import torch


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model")
    for number in ("--num-classes", "--img-size", "--batch-size", "--epochs"):
        parser.add_argument(number, type=int)
    args = parser.parse_args()
    assert args.num_classes == len(list(args.data_dir.iterdir()))
    model = timm.create_model(args.model, num_classes=args.num_classes)
    assert model(torch.randn(args.batch_size, 3, args.img_size, args.img_size)).shape == (8, 3)
    print(f"built {type(model).__name__}")


if __name__ == "__main__":
    main()
"""


def _sections() -> dict[str, list[Block]]:
    """The guide's blocks by heading."""
    text = LIBRARIES.read_text(encoding="utf-8")
    starts = [(m[1], text.count("\n", 0, m.start())) for m in HEADINGS.finditer(text)]
    ends = [line for _, line in starts[1:]] + [text.count("\n") + 1]
    blocks = page_blocks(LIBRARIES)
    return {
        heading: [b for b in blocks if start < b.line <= end]
        for (heading, start), end in zip(starts, ends, strict=True)
    }


SECTIONS = _sections()


def _imports(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _python(blocks: list[Block]) -> str:
    """The blocks as one program, each line at its place in the page."""
    code = STRICT
    for block in blocks:
        code += "\n" * (block.line - 1 - code.count("\n")) + block.code
    return code


def _run_python(code: str, folder: Path, python: Path) -> str:
    program = folder / "program.py"
    program.write_text(code, encoding="utf-8")
    return _run([str(python), str(program)], folder)


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=folder)
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


SOURCE = str(Path(smt_vision.__file__).parents[1])
# Without network, also where it is not asked for by a variable: what needs it fails, since nothing answers there.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    **dict.fromkeys(("HF_HUB_OFFLINE", "NO_ALBUMENTATIONS_UPDATE", "LIGHTLY_TRAIN_EVENTS_DISABLED"), "1"),
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program that runs a file as Python does; PyTorch and timm are imported already, and this package is not."""
    program = tmp_path_factory.mktemp("bin") / "python-of-programs"
    path = os.pathsep.join([SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])])
    with server(program, "python", {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}):
        yield program


@pytest.fixture
def desk(tmp_path: Path, release_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a section runs in."""
    write_photos(tmp_path)
    (tmp_path / "runs").mkdir()
    for script in ("train.py", "validate.py"):
        (tmp_path / script).write_text(TIMM_SCRIPT)
    monkeypatch.setenv("PYTHONPATH", SOURCE, prepend=os.pathsep)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("TORCH_HOME", str(release_file.parents[2]))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.parametrize("heading", SECTIONS)
def test_section_runs(heading: str, desk: Path, python: Path, request: pytest.FixtureRequest) -> None:
    blocks = SECTIONS[heading]
    assert blocks, f"no block in section {heading!r}"
    code = "\n".join(block.code for block in blocks if block.language == "python")
    if missing := sorted(name for name in set(_imports(code)) if find_spec(name) is None):
        pytest.skip(f"not installed: {', '.join(missing)}")
    if "runs/nuclei_mask_rcnn" in code:
        (desk / "runs" / "nuclei_mask_rcnn").symlink_to(request.getfixturevalue("detector_run"))
    for language, group in groupby(blocks, key=lambda block: block.language):
        if language == "python":
            print(_run_python(_python(list(group)), desk, python))
        else:
            print(_run(["bash", "-eu", "-c", "\n".join(block.code for block in group)], desk))


# Libraries that load pretrained weights by themselves, and where their backbone then is.
PRETRAINED = {
    "segmentation_models_pytorch": "lib.Unet('tu-smt_tiny', encoder_weights='imagenet').encoder.model",
    "fastai.vision.learner": "lib.create_timm_model('smt_tiny', 3)[0][0].model",
}


@pytest.mark.parametrize("library", PRETRAINED)
def test_pretrained_weights_and_statistics_arrive(library: str, desk: Path, python: Path) -> None:
    if find_spec(library.partition(".")[0]) is None:
        pytest.skip(f"not installed: {library}")
    code = f"""{STRICT}
import importlib, timm, torch, smt_vision
lib = importlib.import_module({library!r})
found = {{key.removeprefix("model."): value for key, value in {PRETRAINED[library]}.state_dict().items()}}
expected = timm.create_model("smt_tiny", pretrained=True, num_classes=0).state_dict()
assert expected["stem.bn.running_mean"].any()
assert {{key for key in expected if not torch.equal(found[key], expected[key])}} == set()
"""
    _run_python(code, desk, python)


def _table() -> dict[str, str]:
    """Package and version of each row of the guide's table."""
    rows = re.findall(r"^\| \[.+?\]\(#.+?\) \| `(.+?)` \| (.+?) \|$", LIBRARIES.read_text(encoding="utf-8"), re.M)
    return dict(rows)


def test_the_versions_are_those_of_the_constraints() -> None:
    pins = dict(line.split("==") for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    table = _table()
    assert table == {name: tested.get(name) for name in table}


def test_the_extra_installs_the_libraries_of_the_guide() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=!\[]", requirement)[0] for requirement in requirements}

    present = names(project["dependencies"]) | names(extras["export"])
    assert names(extras["interop"]) == _table().keys() - present
    assert "smt-vision[interop]" not in ",".join(extras["dev"])
