"""The evaluation loop, the only one of the project."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from ..modes import evaluation_mode
from ..tasks.task import EvalLoader, Evaluation
from .processes import any_process, gathered, reduced, together


@torch.inference_mode()
def run_evaluation(
    fabric: Fabric,
    task: Evaluation,
    weights: nn.Module,
    loader: EvalLoader,
    on_progress: Callable[[int], None] | None = None,
    resamples: int = 0,
    on_end: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a model over a loader, exactly, on any number of processes.

    Args:
        fabric: The processes; each has its own, unpadded shard of the data.
        task: Provides predictions and the metric.
        weights: The model to evaluate, without a wrapper, so that processes may have different numbers of batches.
        loader: The batches of this process.
        on_progress: Called with 1 after each batch.
        resamples: Resamples for the bootstrap interval of the primary metric; 0 for none.
        on_end: Called after the last batch, before the process waits for the others and for the metrics.

    Returns:
        The metrics, those of the first process: computed by each, they could differ in a last digit, and with it what
        the processes do next.

    Raises:
        ValueError: No image could be read, or too many could not, on any process.
        DeadWorker: A worker process died, on any process.
    """
    metric = task.metric(fabric.device, resamples)
    any_image = False
    with together(fabric), evaluation_mode(weights):
        for batch in loader:
            any_image = True
            batch = fabric.to_device(batch)
            with fabric.autocast():
                output = task.predict(weights, batch)
            metric.update(output, batch)
            if on_progress is not None:
                on_progress(1)
        if on_end is not None:
            on_end()
    if not any_process(fabric, any_image)[0]:
        raise ValueError(
            f"{task.val_set.where}: none of the {len(task.val_set)} images to evaluate on could be read; the warnings "
            "above say why"
        )
    metric.reduce(partial(reduced, fabric, "sum"), partial(gathered, fabric))
    metrics: dict[str, Any] = {}
    with together(fabric):
        if fabric.is_global_zero:
            metrics = metric.compute()
    return fabric.broadcast(metrics)
