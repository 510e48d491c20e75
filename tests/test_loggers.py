"""Experiment loggers: each one that is installed records a short run, resumed once, without a network."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from command import refusal
from smt_vision.cli import train as train_command
from smt_vision.engine import loggers
from smt_vision.engine.log import read_log
from smt_vision.engine.loggers import LOGGERS, build_loggers, check_loggers
from smt_vision.engine.loop import train
from smt_vision.engine.tracker import RunTracker
from smt_vision.signals import RunStopped
from tiny_run import tiny

CONFIG: dict[str, Any] = {"name": "tiny", "optim.lr": 0.5, "augment.scale": [0.1, 1.0], "model_args": {"depths": [1]}}
PIXELS = np.full((4, 6, 3), 200, np.uint8)


def record_twice(name: str, folder: Path) -> None:
    """Three steps, an evaluation and a picture; then resumed after step 2 for two more steps."""
    (logger,) = build_loggers([name], folder, CONFIG)
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": 1 / step, "train/lr": 0.1}, step)
    logger.log_metrics({"eval/top1": 50.0}, 3)
    logger.log_image("samples", PIXELS, 3)
    logger.finalize("aborted")
    (resumed,) = build_loggers([name], folder, CONFIG, start_step=2)
    assert resumed.version == logger.version
    for step in (3, 4):
        resumed.log_metrics({"train/loss": 10.0 * step}, step)
    resumed.finalize("success")


@pytest.mark.parametrize("content", ["", '{"wandb": "1f', "[]", '{"wandb": 3}', "[" * 100_000])
def test_damaged_file_of_identifiers_is_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / loggers.IDS_NAME
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"{loggers.IDS_NAME}: damaged"):
        loggers.read_ids(file)


def test_unknown_name_is_refused_before_the_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smt_vision.engine.loop.launch", lambda engine: pytest.fail("launched"))
    with pytest.raises(ValueError, match=r"engine\.loggers.*'tensorbord'.*'tensorboard', 'wandb'"):
        train(tiny(tmp_path, engine=dict(loggers=("tensorbord",))), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--log", "wandb,tensorboard"], ("wandb", "tensorboard")),
        (["--log=mlflow, trackio"], ("mlflow", "trackio")),
        (["--log", "none"], ()),
        (["--engine.loggers", "wandb"], ("wandb",)),
        (["--engine.loggers", "[wandb, mlflow]"], ("wandb", "mlflow")),
        (["--engine.loggers", "[]"], ()),
        (["--log", "wandb", "--log", "none"], ()),
        ([], ("tensorboard",)),
    ],
)
def test_loggers_by_name_on_the_command_line(words: list[str], expected: tuple[str, ...]) -> None:
    arguments = ["quickstart", *words]
    assert tuple(train_command.build_parser(arguments).parse_args(arguments).engine.loggers) == expected


@pytest.mark.parametrize("text", ["tensorbord", "none,wandb", "wandb,,mlflow", "", "Wandb", "wandb tensorboard", "[x]"])
def test_unknown_loggers_are_refused_with_the_choices(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, 1, "train", "quickstart", "--log", text)
    assert "engine.loggers" in error
    assert "one of 'tensorboard', 'wandb', 'trackio', 'mlflow'" in error


def test_a_logger_named_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, 1, "train", "quickstart", "--log", "tensorboard,tensorboard", "--run", "unused")
    assert "invalid engine.loggers=['tensorboard', 'tensorboard']: expected each name once" in error


@pytest.mark.parametrize("name", [name for name in LOGGERS if name != "tensorboard"])
def test_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"'{name}'.*smt-vision\[track\]"):
        check_loggers([name])


def test_tensorboard_drops_the_steps_that_a_resumed_run_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the ninth and the tenth writer of a process: "….10" sorts before "….9", where both are of the same second
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    record_twice("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0)]
    assert events.Scalars("eval/top1") == events.Images("samples") == []  # step 3 is repeated


class Recorder(loggers.ExperimentLogger):
    """Records every call."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start_step: int) -> None:
        self.calls: list[Any] = [("created", folder.name, config["optim.lr"], start_step)]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.calls.append((step, dict(metrics)))

    def log_image(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        self.calls.append((step, name, image.shape))

    def finalize(self, status: str) -> None:
        self.calls.append(status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "success"),
        (RunStopped(Path("run"), 1, 2, []), "aborted"),
        (KeyboardInterrupt(), "aborted"),
        (FloatingPointError("loss is nan"), "failed"),
    ],
    ids=["finished", "signal", "interrupt", "error"],
)
def test_tracker_passes_everything_to_every_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, status: str
) -> None:
    monkeypatch.setattr(loggers, "LOGGERS", {"one": Recorder, "other": Recorder})
    monkeypatch.setattr(loggers, "require", lambda module, extra: None)
    Image.fromarray(PIXELS).convert("L").save(tmp_path / "gray.png")
    tracker = RunTracker(
        tmp_path / "run", loggers=("one", "other"), config=CONFIG, total_steps=4, total_epochs=2,
        primary_metric="top1", label="top-1", start_step=1, display=False,
    )  # fmt: skip
    with suppress(BaseException), tracker:
        tracker.step(2, 1.0, loss=0.5, lr=0.1)
        tracker.progress(2, lr=0.2)
        tracker.evaluation(2, 1, {"top1": 50.0, "confusion": [[1]]})
        tracker.image("samples", 2, tmp_path / "gray.png")
        if error is not None:
            raise error
    assert len(tracker._loggers) == 2  # one that raises is removed
    for logger in tracker._loggers:
        assert isinstance(logger, Recorder)
        assert logger.calls == [
            ("created", "run", 0.5, 1),
            (2, {"train/loss": 0.5, "train/lr": 0.1}),
            (2, {"eval/top1": 50.0}),
            (2, "samples", (4, 6, 3)),
            status,
        ]


class Unreachable(Recorder):
    def __init__(self, *args: Any) -> None:
        raise ConnectionError("the server does not answer")


def test_resumed_run_goes_on_without_a_logger_that_cannot_be_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "LOGGERS", {"mlflow": Unreachable, "other": Recorder})
    monkeypatch.setattr(loggers, "require", lambda module, extra: None)

    def tracker(start_step: int) -> RunTracker:
        return RunTracker(
            tmp_path / "run", loggers=("mlflow", "other"), config=CONFIG, total_steps=4, total_epochs=2,
            primary_metric="top1", label="top-1", start_step=start_step, display=False,
        )  # fmt: skip

    with pytest.raises(ConnectionError):  # a new run, whose settings may be wrong
        tracker(0)
    with tracker(1) as resumed:
        assert [type(logger) for logger in resumed._loggers] == [Recorder]
    message = "mlflow records nothing any more: ConnectionError: the server does not answer"
    assert message in caplog.text
    assert message in [line.get("message") for line in read_log(tmp_path / "run")]


@pytest.mark.filterwarnings("default")
def test_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    record_twice("wandb", tmp_path / "run")
    run_id = json.loads((tmp_path / "run" / "loggers.json").read_text())["wandb"]
    # Their names end with the second and the identifier, and "-1" if these are the same.
    sessions = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}*"))
    assert len(sessions) == 2
    assert all((session / f"run-{run_id}.wandb").stat().st_size > 0 for session in sessions)
    assert any(session.rglob("samples_*.png") for session in sessions)


@pytest.mark.filterwarnings("default")
def test_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    script = "from pathlib import Path; from test_loggers import record_twice; record_twice('trackio', Path('run'))"
    # In a process of its own: trackio reads the name of its folder when it is imported.
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # it prints, but not where a command's JSON goes
    with closing(sqlite3.connect(tmp_path / "trackio" / "smt-vision.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    run_id = json.loads((tmp_path / "run" / "loggers.json").read_text())["trackio"]
    assert {name for name, _, _ in rows} == {f"run-{run_id}"}
    recorded = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, values["train/loss"]) for step, values in recorded if "train/loss" in values] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (3, 30.0), (4, 40.0),
    ]  # fmt: skip
    assert (3, {"eval/top1": 50.0}) in recorded
    (image,) = [values["samples"] for _, values in recorded if "samples" in values]
    with Image.open(tmp_path / "trackio" / "media" / image["file_path"]) as picture:
        assert picture.size == (6, 4)


@pytest.mark.filterwarnings("default")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny alone has no local store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # artifacts go to ./mlruns
    record_twice("mlflow", tmp_path / "run")
    run_id = json.loads((tmp_path / "run" / "loggers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["optim.lr"] == "0.5"
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]
    assert sorted(losses) == sorted([(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 30.0), (4, 40.0)])
    assert client.get_metric_history(run_id, "eval/top1")[0].value == 50.0
    assert any("samples" in artifact.path for artifact in client.list_artifacts(run_id, "images"))
