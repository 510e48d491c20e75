"""Evaluation of any model on labeled images: timm's models, runs, checkpoints and exports, all the same way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from ..bounds import Count, CountOrZero, Resamples, Workers, checked
from ..data.fingerprint import hash_bytes
from ..deploy.exported import is_export
from ..deploy.quantize import AccuracyControl
from ..precision import Precision
from ..recipe import Engine
from ..tasks import get_task
from ..tasks.classification.config import LabelsConfig
from ..tasks.load import Overrides, load
from ..tasks.predictor import Predictor
from ..tasks.task import EvalLoader, Evaluation
from ..text import get_logger
from .evaluation_loop import run_evaluation
from .launch import ends_after_an_error, launch
from .processes import check_same_images

log = get_logger(__name__)
FLOAT32 = Engine(precision="32-true")


def evaluate(
    source: str | Path,
    data: str | Path | None = None,
    *,
    engine: Engine = FLOAT32,
    batch_size: int | None = None,
    workers: int = 8,
    max_unreadable: int = 10,
    split: str = "val",
    bootstrap: int = 0,
    overrides: Overrides | None = None,
    providers: Sequence[str] = (),
    precision: Precision | None = None,
    labels: LabelsConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a dataset's validation images; exact for any batch size and number of processes.

    Args:
        source: A run's folder, a checkpoint, an export's folder, or a timm model name.
        data: The images, as for training; ``None`` for the dataset of the run. The validation split is evaluated.
            Without one, all images are, or of the run's own dataset the images that training held out.
        engine: Devices and processes, and the precision unless ``precision`` is given. By default all GPUs, or the CPU
            if there are none or the model is an export.
        batch_size: Images per batch; ``None``: 64 for a classifier, else 4.
        workers: Data loading processes per process.
        max_unreadable: Unreadable images to skip before giving up.
        split: ``val``; for a detector or segmenter also ``test``.
        bootstrap: Resamples of the images for a 95 % interval of the primary metric, e.g. 1000; 0 for none.
        overrides: Fields that differ from training; see :func:`smt_vision.load`.
        providers: Execution providers of an ONNX export; see :func:`smt_vision.load`.
        precision: ``fp32``, ``bf16`` or ``auto``; see :func:`smt_vision.load`.
        labels: How the label file of a classifier's images is read; ``None``: as in the model's training, or with the
            defaults if other data cannot be read that way.
        on_progress: Called after each batch with the number of batches done and the total.

    Returns:
        Metrics by name; with ``bootstrap`` also ``interval``: ``metric``, ``low`` and ``high``. If the model says which
        images it was trained on, also ``trained_on`` and ``calibrated_on``, the number of evaluated images that it was
        trained or calibrated on, and after pretraining without labels ``pretrained_on``; a warning is logged if there
        are any.

    Raises:
        ValueError: The dataset's classes are not the model's, ``data`` is neither given nor known, or a number is not
            in its range.
    """
    return evaluate_with_details(
        source,
        data,
        engine=engine,
        batch_size=batch_size,
        workers=workers,
        max_unreadable=max_unreadable,
        split=split,
        bootstrap=bootstrap,
        overrides=overrides,
        providers=providers,
        precision=precision,
        labels=labels,
        on_progress=on_progress,
    )[0]


@checked
@ends_after_an_error()
def evaluate_with_details(
    source: str | Path,
    data: str | Path | None = None,
    *,
    engine: Engine,
    batch_size: Count | None,
    workers: Workers,
    max_unreadable: CountOrZero,
    split: str,
    bootstrap: Resamples,
    overrides: Overrides | None,
    providers: Sequence[str],
    precision: Precision | None,
    labels: LabelsConfig | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Any], Evaluation]:
    """:func:`evaluate`, and what formats its metrics and draws its pictures."""
    if precision is not None:
        engine = replace(engine, precision="32-true")  # the model itself computes in another one
    fabric = launch(engine_for(source, engine))
    model, data, evaluation, loader, progress = open_evaluation(
        fabric, source, data, batch_size, workers, max_unreadable, split, overrides, on_progress, providers, precision,
        labels,
    )  # fmt: skip
    used: dict[str, Any] = count_used(model, evaluation)
    for use, number in used.items():
        if number and fabric.is_global_zero:
            log.warning("%s: the model was %s %d of these %d images", data, use.replace("_", " "), number,
                        len(evaluation.val_set))  # fmt: skip
    with closing(loader):
        metrics = run_evaluation(fabric, evaluation, model.model, loader, progress, bootstrap)
    named = {} if precision is None else {"precision": model.precision}
    return {"model": model.name, "data": data, "input": model.input_description, **named, **metrics, **used}, evaluation


def engine_for(source: str | Path, engine: Engine) -> Engine:
    """The engine with ``accelerator="auto"`` decided for a model that runs on the CPU only, an export."""
    return replace(engine, accelerator="cpu") if engine.accelerator == "auto" and is_export(source) else engine


def open_evaluation(
    fabric: Fabric,
    source: str | Path,
    data: str | Path | None,
    batch_size: int | None,
    workers: int,
    max_unreadable: int,
    split: str,
    overrides: Overrides | None,
    on_progress: Callable[[int, int], None] | None,
    providers: Sequence[str] = (),
    precision: Precision | None = None,
    labels: LabelsConfig | None = None,
) -> tuple[Predictor[Any], str, Evaluation, EvalLoader, Callable[[int], None]]:
    """Load a model and open the images to evaluate it on; the arguments are those of :func:`evaluate`.

    Returns:
        The model, the name of the data, the evaluation, this process's batches, and a function to call with the number
        of batches that were evaluated.
    """
    with fabric.rank_zero_first():  # one process downloads pretrained weights, the others find them in the cache
        model = load(source, fabric.device, overrides, providers=providers, precision=precision)
    data, evaluation, loader = _open_images(fabric, model, data, batch_size, workers, max_unreadable, split, labels)
    done = 0

    def progress(n: int) -> None:
        nonlocal done
        done += n
        if on_progress is not None and fabric.is_global_zero:
            on_progress(done, len(loader))

    return model, data, evaluation, loader, progress


def _open_images(
    fabric: Fabric,
    model: Predictor[Any],
    data: str | Path | None,
    batch_size: int | None,
    workers: int,
    max_unreadable: int,
    split: str = "val",
    labels: LabelsConfig | None = None,
) -> tuple[str, Evaluation, EvalLoader]:
    if data is None and model.recipe is None:
        raise ValueError(f"missing data: {model.name} has no dataset of its own; pass labeled images (--data)")
    data = str(data or (model.recipe.data if model.recipe else ""))
    task = get_task(model.spec.task)
    if split not in task.splits:
        raise ValueError(
            f"invalid split={split!r}: {model.name} is {model.kind}, for which expected {' or '.join(task.splits)}; "
            "for other images pass their folder as data (--data)"
        )
    if labels is not None and model.spec.task != "classify":
        raise ValueError(f"labels are of classifiers, and {model.name} is {model.kind}; omit them")
    input = replace(model.spec.input, workers=workers, max_unreadable=max_unreadable)
    with fabric.rank_zero_first():
        evaluation, loader = task.evaluation(
            model, data, input, batch_size or model.eval_batch_size, fabric.global_rank, fabric.world_size,
            **({} if split == "val" else {"split": split}), **({} if labels is None else {"labels": labels}),
        )  # fmt: skip
    listing = hash_bytes(evaluation.val_set.listing())  # not the labels: reading all label maps takes long
    check_same_images(fabric, data, evaluation=(len(evaluation.val_set), listing))
    return data, evaluation, loader


@contextmanager
def accuracy_control(
    model: Predictor[Any],
    max_drop: float,
    data: str | Path | None = None,
    *,
    batch_size: int | None = None,
    workers: int = 8,
    max_unreadable: int = 10,
    on_status: Callable[[str], None] = lambda text: None,
) -> Iterator[AccuracyControl]:
    """A limit on the accuracy loss by quantization of a model, measured on labeled images while the context is open.

    Args:
        model: The model.
        max_drop: Largest loss of the primary metric, in percentage points.
        data, batch_size, workers, max_unreadable: As in :func:`evaluate`.
        on_status: Called with each measured value.
    """
    fabric = launch(Engine(accelerator="cpu", precision="32-true"))  # where exports run
    _, evaluation, loader = _open_images(fabric, model, data, batch_size, workers, max_unreadable)
    label = evaluation.metric_formats[evaluation.primary_metric].label

    def measure(module: nn.Module) -> float:
        value = float(run_evaluation(fabric, evaluation, module, loader)[evaluation.primary_metric])
        on_status(f"{label} {value:.2f} %")
        return value

    with closing(loader):
        yield AccuracyControl(max_drop, label, measure)


def count_used(model: Predictor[Any], evaluation: Evaluation) -> dict[str, int]:
    """Numbers of the evaluated images that the model was trained and calibrated on; empty if it does not know."""
    return {} if model.used_images is None else model.used_images.count_in(evaluation.val_set.fingerprints())
