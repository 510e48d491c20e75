"""What a run draws and writes about its results: sample images, ``metrics.json``, pictures and the summary."""

import json
from pathlib import Path

import torch

from ..cost import describe
from ..files import write_atomic, write_text_atomic
from ..hardware import describe_hardware
from ..modes import evaluation_mode
from ..pictures.training import curves
from ..tasks import get_task
from ..text import shell_word
from .fields import changed_fields
from .log import read_log
from .run import SAMPLES, Run
from .summary import write_summary


def draw_samples(run: Run, epoch: int) -> Path | None:
    """Draw the task's sample images with their predictions; returns the path of the picture, if there is one."""
    if not run.fabric.is_global_zero:
        return None
    with torch.inference_mode(), run.fabric.autocast(), evaluation_mode(run.weights):
        picture = run.task.samples(run.weights, run.fabric.device)
    if picture is None:
        return None
    path = _samples(run.folder, epoch)
    write_atomic(path, lambda part: picture.save(part, "PNG"))
    return path


def _samples(folder: Path, epoch: int) -> Path:
    return folder / SAMPLES / f"epoch_{epoch:03}.png"


def write_report(run: Run, command: str) -> None:
    """Write the results of a finished run: ``metrics.json``, pictures and the one-page summary.

    Args:
        run: The run.
        command: The command line, for the summary.

    Raises:
        ValueError: The metrics are from a checkpoint, and are not those of an evaluation.
    """
    if not run.fabric.is_global_zero:
        return
    task, formats = run.task, run.task.metric_formats
    write_text_atomic(run.folder / "metrics.json", json.dumps(run.metrics, indent=1))
    curves(
        read_log(run.folder),
        run.folder / "curves.png",
        run.recipe.name,
        metric=task.primary_metric,
        label=formats[task.primary_metric].title,
        loss_label=formats["loss"].title if "loss" in formats else "loss",
        best_epoch=None if task.keeps_latest else run.best_epoch,
    )
    try:
        drawn, tables = task.pictures(run.folder, run.metrics), task.tables(run.metrics)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if run.metrics_from is None:
            raise
        raise ValueError(
            f"{run.metrics_from}: its metrics are not those of an evaluation ({type(error).__name__}: {error}); "
            f"the weights are complete: smt eval {shell_word(run.folder)} evaluates them again"
        ) from error
    samples = _samples(run.folder, run.best_epoch)
    with run.merged():
        module, input_size = get_task(task.spec.task).flops_model(run.weights, task.spec)
        cost = describe(module, input_size)
    write_summary(
        run.folder,
        recipe=run.recipe.to_dict(),
        metrics=run.metrics,
        primary_metric=task.primary_metric,
        formats=formats,
        best_epoch=run.best_epoch,
        keeps_latest=task.keeps_latest,
        seconds=run.seconds,
        hardware=describe_hardware(),
        command=command,
        classes=len(task.spec.classes),
        input_description=task.input_description,
        cost=cost,
        trained=run.trained_description,
        stopped_after=round(run.epochs) if run.stopped_early else None,
        changed=changed_fields(run.recipe),
        tables=tables,
        pictures=[*drawn, samples] if samples.is_file() else drawn,
    )
