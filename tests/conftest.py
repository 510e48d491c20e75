"""Fixtures shared by several test files."""

import plain_environment  # noqa: F401  first: libraries read variables when they are imported

# isort: split

import gc
import os
import random
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure

from blank_pictures import SAVE, no_pictures, without_report
from drawn_sets import scenes_recipe, shapes_recipe, write_scenes, write_shapes
from smt_vision.kernels import onednn
from smt_vision.model.official import to_official
from tiny_run import tiny, write_split

# A shell that ignores Ctrl-C, as of background jobs, passes that on to all tests and to the processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A garbage collection takes half a second where millions of objects have been imported.
gc.set_threshold(50_000, 20, 50)


def shared_dir() -> Path:
    """Folder of the reference files: ``SMT_SHARED_DIR``, or ``shared`` beside the repository."""
    repo_root = Path(__file__).resolve().parent.parent
    return Path(os.environ.get("SMT_SHARED_DIR", repo_root.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the reference files; tests that need it are skipped if it does not exist."""
    folder = shared_dir()
    if not folder.is_dir():
        pytest.skip(f"no reference files in {folder.name}/ beside the repository; set SMT_SHARED_DIR")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _blank_pictures() -> Iterator[None]:
    """Pictures are drawn, but PNG files are blank: writing them takes half of the time of a tiny run."""
    with no_pictures():
        yield


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests with the mark ``pictures`` have real ones."""
    if request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(Figure, "savefig", SAVE)


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> Iterator[None]:
    """Measurements and studies share the one fork server of a process, which imports what its first user names."""
    modules = {"timm", "smt_vision.study.process", "torchmetrics.classification", "matplotlib.backends.backend_agg"}
    preload = forkserver.set_forkserver_preload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "set_forkserver_preload", lambda names: preload(sorted({*names, *modules})))
        yield


@pytest.fixture
def no_report(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs of a test end without a report, unless it has the mark ``report``; those of other fixtures have one."""
    if request.node.get_closest_marker("report"):
        yield
    else:
        with without_report():
            yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights and data that a test draws do not depend on the tests before it, nor on the process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=["oneDNN", "plain"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with oneDNN's operators and without them."""
    if request.param == "plain":
        monkeypatch.setattr(onednn, "available", lambda dtype: False)
    elif not onednn.available(torch.float32):
        pytest.skip("this build of torch has no oneDNN operators of the known form")


@pytest.fixture(scope="session")
def release_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``smt_tiny.pth`` as torch.hub keeps what it has fetched, with random weights and running statistics."""
    path = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints" / "smt_tiny.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    model = timm.create_model("smt_tiny")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    torch.save({"model": to_official(model.state_dict())}, path)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs a test on one thread of PyTorch, whose sums then do not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ (24 images) and val/ (12 images) of three classes: blue, green and red."""
    return write_split(tmp_path_factory.mktemp("colored"))


@pytest.fixture(scope="session")
def trained(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished debug-size run on ``colored``, with 100 % top-1."""
    from smt_vision.engine.loop import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(colored, epochs=6), folder, display=False, command="smt train tiny")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with a red square and a green triangle each, with masks, as a COCO dataset."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "set")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes of sky, road and a car, with label maps."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def detector_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of Mask R-CNN on ``shapes``: one epoch, so its predictions mean nothing."""
    from smt_vision.engine.loop import train

    folder = tmp_path_factory.mktemp("runs") / "detector"
    train(shapes_recipe(shapes), folder, display=False)
    return folder


@pytest.fixture(scope="session")
def segmenter_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of UPerNet on ``scenes``: one epoch, so its predictions mean nothing."""
    from smt_vision.engine.loop import train

    folder = tmp_path_factory.mktemp("runs") / "segmenter"
    train(scenes_recipe(scenes), folder, display=False)
    return folder
