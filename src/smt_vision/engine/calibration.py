"""Calibration of a classifier: temperature scaling, stored in its model spec."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoints
from ..bounds import Count, CountOrZero, Workers, checked
from ..checkpoints import BEST
from ..deploy.exported import is_export
from ..recipe import Engine
from ..tasks.classification.calibration import CalibrationEvaluation
from ..tasks.classification.config import LabelsConfig
from ..tasks.classification.task import ClassificationEvaluation
from ..tasks.predictor import Predictor
from ..text import get_logger
from .evaluation import FLOAT32, count_used, open_evaluation
from .evaluation_loop import run_evaluation
from .launch import ends_after_an_error, launch
from .lock import FolderLock
from .processes import on_first

log = get_logger(__name__)
FEW_IMAGES = 100


@checked
@ends_after_an_error()
def calibrate(
    source: str | Path,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    engine: Engine = FLOAT32,
    batch_size: Count | None = None,
    workers: Workers = 8,
    max_unreadable: CountOrZero = 10,
    labels: LabelsConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fit the temperature of a classifier on images that it was not trained on, and store it in the model.

    The temperature, ``classify.temperature`` of the model spec, divides the logits. It changes scores, the loss and the
    calibration error, but not which class has the highest score. The weights stay as they are.

    Args:
        source: A run's folder, a checkpoint, or a timm model name.
        data: The images, as for :func:`smt_vision.evaluate`; ``None`` for those that the run held out.
        out: Checkpoint to write, a new ``.pt`` file; ``None`` for the run's ``best.pt``, or the checkpoint itself.
        engine: Devices, processes and precision. By default all GPUs, or the CPU if there are none.
        batch_size: Images per batch; ``None`` for 64.
        workers: Data loading processes per process.
        max_unreadable: Unreadable images to skip before giving up.
        labels: How a label file is read, as for :func:`smt_vision.evaluate`.
        on_progress: Called after each batch with the number of batches done and the total.

    Returns:
        ``temperature``; ``before`` and ``after``, each with ``loss`` in nats, ``ece`` in percent, and ``top1`` in
        percent unless the model is multi-label; ``count``, the number of images; ``file``, the file written; ``model``
        and ``data``.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: The model is not a classifier or is an export, it was trained on some of the images, or no
            temperature fits them.
    """
    target = _target(source, out)
    fabric = launch(engine)
    model, data, evaluation, loader, progress = open_evaluation(
        fabric, source, data, batch_size, workers, max_unreadable, "val", None, on_progress,
        labels=labels,
    )  # fmt: skip
    if not isinstance(evaluation, ClassificationEvaluation):
        raise ValueError(f"{source} is {model.kind}; only classifiers have a temperature")
    with closing(loader):
        if model.used_images is None:
            log.warning("%s does not say which images it was trained on: make sure that it was not on those of %s",
                        source, data)  # fmt: skip
        elif number := count_used(model, evaluation)["trained_on"]:
            raise ValueError(
                f"{data}: the model was trained on {number} of the {len(evaluation.val_set)} images; a temperature is "
                "fitted on images that it has not seen, so pass others (--data)"
            )
        if len(evaluation.val_set) < FEW_IMAGES:
            log.warning("%s: the temperature is fitted on %d images and depends on chance with fewer than %d: pass "
                        "more, or check the calibration error on others", data, len(evaluation.val_set),
                        FEW_IMAGES)  # fmt: skip
        found = run_evaluation(fabric, CalibrationEvaluation(evaluation), model.model, loader, progress)
    on_first(fabric, partial(_write, model, source, target, found["temperature"], evaluation))
    return {"model": model.name, "data": data, "file": str(target), **found}


def _target(source: str | Path, out: str | Path | None) -> Path:
    """The file to write; errors show before the images are read."""
    path = Path(source).expanduser()
    if is_export(path):
        raise ValueError(f"{path} is an export, which cannot be changed; calibrate its source model and export that")
    if out is not None:
        target = Path(out).expanduser()
        if target.suffix != ".pt":
            raise ValueError(f"invalid out={target}: expected a .pt file")
        if target.exists():
            raise FileExistsError(f"{target} exists already; choose another file (--out)")
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target}: there is no folder {target.parent}; create it, or choose another file")
        return target
    target = path / BEST if path.is_dir() else path
    if not path.exists() or (target.is_file() and checkpoints.load(target).spec is None):
        raise ValueError(f"{source} has no model spec to store a temperature in; name a file to write (--out FILE.pt)")
    return target


def _write(
    model: Predictor[Any],
    source: str | Path,
    target: Path,
    temperature: float,
    evaluation: ClassificationEvaluation,
) -> None:
    """Write the checkpoint with the temperature, and the fingerprints of the images that it was fitted on."""
    spec = replace(model.spec, head=replace(model.spec.head, temperature=temperature))
    path = Path(source).expanduser()
    state: dict[str, Any] = {"model": model.model.state_dict()}
    # The run's lock: nothing else writes to best.pt at the same time.
    with FolderLock(target.parent) if target.name == BEST else nullcontext():
        if path.exists() and (checkpoint := checkpoints.load(path)).spec is not None:
            state = {name: value for name, value in checkpoint.state.items() if name != "format"}
        if model.used_images is not None:
            images = np.union1d(model.used_images.calibration, evaluation.val_set.fingerprints())
            state["images"] = replace(model.used_images, calibration=images).to_tensors()
        checkpoints.save({**state, "spec": spec.to_dict()}, target)
