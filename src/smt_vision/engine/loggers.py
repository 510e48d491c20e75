"""Experiment loggers by name: TensorBoard, Weights & Biases, trackio and MLflow, behind Fabric's logger interface."""

import json
import os
import sys
import time
import uuid
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_fabric.loggers import TensorBoardLogger
from lightning_fabric.loggers.logger import Logger

from ..bounds import short
from ..extras import require
from ..files import write_atomic
from ..text import printable

PROJECT = "smt-vision"  # where runs are listed together, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise
IDS_NAME = "loggers.json"  # in a run's folder: the identifiers by which a resumed run is found again


class ExperimentLogger(Logger):
    """What the training loop asks of a logger: Fabric's interface, and pictures."""

    name: str | None = None
    version: str | None = None

    @abstractmethod
    def log_image(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Record a picture.

        Args:
            name: Name of the series.
            image: (H, W, 3) bytes.
            step: Optimizer steps done.
        """

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: a logger takes the recipe when it is created."""


class TensorBoard(TensorBoardLogger, ExperimentLogger):  # type: ignore[misc]  # name, version: properties in the one
    """Writes event files to ``tensorboard/`` in the run's folder; a resumed run drops the steps that it repeats."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start_step: int) -> None:
        try:
            str(folder).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{folder}: TensorBoard cannot write to a folder whose name is not UTF-8; choose another (--run), "
                "or train without it (--log none)"
            ) from error
        super().__init__(folder, "tensorboard", version="", default_hp_metric=False, purge_step=start_step + 1)
        # TensorBoard reads files by name, which begins with the second of their creation: with two of one second the
        # later one may be read first (by process or writer, compared as text), and what it repeats be shown twice.
        while any(Path(self.log_dir).glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)

    def log_image(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        self.experiment.add_image(name, image, step, dataformats="HWC")


class WandB(ExperimentLogger):
    """Weights & Biases; its files are written to ``wandb/`` in the run's folder, and sent with ``WANDB_MODE=online``.

    Steps are logged as the metric ``step``: the service's own step never goes back, which a resumed run may have to.
    """

    name = "wandb"

    def __init__(self, folder: Path, config: Mapping[str, Any], start_step: int) -> None:
        self._wandb = require("wandb", "track")
        self.version = _run_id(folder, "wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            mode=os.environ.get("WANDB_MODE", "offline"),
            name=printable(folder.name),
            id=self.version,
            dir=str(folder),
            config=dict(config),
            resume="allow",
            allow_val_change=True,  # a resumed run's recipe may differ in what changes no result
            settings=self._wandb.Settings(console="off"),  # the output is the display's
        )
        self._run.define_metric("*", step_metric="step")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._run.log({**metrics, "step": step})

    def log_image(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        self._run.log({name: self._wandb.Image(image), "step": step})

    def finalize(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "success" else 1)


class Trackio(ExperimentLogger):
    """trackio; it writes to its own folder (``TRACKIO_DIR``), where ``trackio show`` finds all runs."""

    name = "trackio"

    def __init__(self, folder: Path, config: Mapping[str, Any], start_step: int) -> None:
        self._trackio = require("trackio", "track")
        self.version = f"{printable(folder.name)}-{_run_id(folder, 'trackio')}"
        with redirect_stdout(sys.stderr):  # the standard output may be JSON
            self._run = self._trackio.init(
                project=PROJECT,
                name=self.version,
                config=dict(config),
                resume="allow",
            )

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._run.log(dict(metrics), step=step)

    def log_image(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        self._run.log({name: self._trackio.Image(image)}, step=step)

    def finalize(self, status: str) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


class MLflow(ExperimentLogger):
    """MLflow, at ``MLFLOW_TRACKING_URI``. Without that variable MLflow writes to a local database, for which the full
    package ``mlflow`` is needed.
    """

    name = "mlflow"

    def __init__(self, folder: Path, config: Mapping[str, Any], start_step: int) -> None:
        mlflow = require("mlflow", "track")
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        self.version = _run_id(folder, "mlflow", lambda: self._create_run(printable(folder.name), config))
        self._client.update_run(self.version, status="RUNNING")

    def _create_run(self, name: str, config: Mapping[str, Any]) -> str:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(project)
        run_id: str = self._client.create_run(experiment_id, run_name=name).info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in config.items()]
        self._client.log_batch(run_id, params=params)
        return run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = round(1000 * time.time())
        values = [self._entities.Metric(name, value, now, step or 0) for name, value in metrics.items()]
        self._client.log_batch(self.version, metrics=values)

    def log_image(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        self._client.log_image(self.version, image, key=name, step=step)

    def finalize(self, status: str) -> None:
        self._client.set_terminated(self.version, {"success": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any], int], ExperimentLogger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def check_loggers(names: Sequence[str]) -> None:
    """Refuse unknown loggers before anything is started.

    Raises:
        ValueError: A name is not one of ``LOGGERS``, or is there twice.
        ImportError: The package of a logger is not installed.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"invalid engine.loggers={list(names)}: expected each name once")
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"invalid engine.loggers={list(names)}: {name!r} is not one of {', '.join(LOGGERS)}")
        if name != "tensorboard":  # a dependency of this package, and slow to import
            require(name, "track")


def build_loggers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], start_step: int = 0
) -> list[ExperimentLogger]:
    """The loggers of a run, to be built on the first process only.

    Args:
        names: Keys of ``LOGGERS``.
        folder: The run's folder; its name is the run's.
        config: The recipe as one flat dictionary, which the loggers record with the run; TensorBoard does not.
        start_step: The last step already done.

    Raises:
        ValueError: A name is not one of ``LOGGERS``.
        ImportError: The package of a logger is not installed.
    """
    check_loggers(names)
    config = {key: printable(value) if isinstance(value, str) else value for key, value in config.items()}
    return [LOGGERS[name](folder, config, start_step) for name in names]


def _run_id(folder: Path, logger: str, create: Callable[[], str] = lambda: uuid.uuid4().hex[:8]) -> str:
    """The identifier of a folder's run at a logger: made once, and kept in the folder for when the run is resumed.

    Raises:
        ValueError: The file of the identifiers is damaged.
    """
    path = folder / IDS_NAME
    ids = read_ids(path) if path.exists() else {}
    if logger not in ids:
        ids[logger] = create()

        def write(part: Path) -> None:
            part.write_text(json.dumps(ids))

        write_atomic(path, write)
    return ids[logger]


def read_ids(path: Path) -> dict[str, str]:
    """Read the identifiers of a run, by logger.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        ids = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        ids = error
    if not isinstance(ids, dict) or not all(isinstance(each, str) for each in ids.values()):
        raise ValueError(
            f"{path}: damaged: expected an identifier per experiment logger, found {short(ids)}; restore the file, or "
            "remove it: the loggers then start another run"
        )
    return ids
