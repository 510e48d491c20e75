"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

from drawn_sets import scenes_recipe, shapes_recipe, write_scenes, write_shapes
from smt_vision.kernels import onednn
from tiny_run import tiny, write_split


def shared_dir() -> Path:
    """The folder of reference files: ``SMT_SHARED_DIR``, or ``shared`` beside the repository."""
    repo_root = Path(__file__).resolve().parent.parent
    return Path(os.environ.get("SMT_SHARED_DIR", repo_root.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference files; tests that need it are skipped where it is absent."""
    folder = shared_dir()
    if not folder.is_dir():
        pytest.skip(f"the reference files are not at {folder.name}/ beside the repository; set SMT_SHARED_DIR")
    return folder


@pytest.fixture(params=["oneDNN", "plain"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way to compute on a CPU: by oneDNN's operators, and without them."""
    if request.param == "plain":
        monkeypatch.setattr(onednn, "available", lambda dtype: False)
    elif not onednn.available(torch.float32):
        pytest.skip("this build of torch has no oneDNN operators of the known form")


@pytest.fixture(scope="session")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ (24 images) and val/ (12 images) of three classes, blue, green and red."""
    return write_split(tmp_path_factory.mktemp("colored"))


@pytest.fixture(scope="session")
def trained(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished debug-size run on ``colored``, in which every image is classified right."""
    from smt_vision.engine.loop import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(colored, epochs=6), folder, display=False, command="smt train tiny")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of a red square and a green triangle each, with masks, in COCO's form."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "set")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes of sky, road and a car, with label maps."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def detector_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of Mask R-CNN on ``shapes``, of an epoch, of no use but to be used."""
    from smt_vision.engine.loop import train

    folder = tmp_path_factory.mktemp("runs") / "detector"
    train(shapes_recipe(shapes), folder, display=False)
    return folder


@pytest.fixture(scope="session")
def segmenter_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of UPerNet on ``scenes``, likewise."""
    from smt_vision.engine.loop import train

    folder = tmp_path_factory.mktemp("runs") / "segmenter"
    train(scenes_recipe(scenes), folder, display=False)
    return folder
