"""Options for fields that may differ in use from training, e.g. ``--input.size``."""

from dataclasses import fields
from typing import Any

from ..precision import Precision
from ..recipe import from_plain
from ..tasks import TASKS, inference_overrides, recipe_class
from ..tasks.classification.config import LabelsConfig
from .common import Parser, add_field

# Group and field, with the class that declares it.
FIELDS = {
    (group, name): recipe_class(task).groups()[group]
    for task in TASKS
    for group, names in inference_overrides(task).items()
    for name in names
}


def add_overrides(parser: Parser) -> None:
    """Add an option for each field; by default the model's own value is kept."""
    for (group, name), declared in FIELDS.items():
        add_field(parser, group, name, declared, default="the value stored with the model")


def add_labels(parser: Parser) -> None:
    """Add an option for each field of how a label file is read."""
    for field in fields(LabelsConfig):
        add_field(parser, "labels", field.name, LabelsConfig, default="that of training")


def labels_of(args: Any) -> LabelsConfig | None:
    """How a label file is read; ``None`` if no option was given."""
    given = {name: value for name, value in vars(args.labels).items() if value is not None}
    return from_plain(LabelsConfig, given, "labels") if given else None


def add_precision(parser: Parser) -> None:
    """Add ``--precision``, for inference."""
    parser.add_argument(
        "--precision", type=Precision | None,
        help="fp32, bf16, or auto: bf16 if the CPU supports it natively; default: fp32, or that of an export",
    )  # fmt: skip


def add_providers(parser: Parser) -> None:
    """Add ``--providers``, for ONNX Runtime."""
    parser.add_argument(
        "--providers", type=str | None, metavar="A,B",
        help="execution providers of an ONNX export, the preferred one first, e.g. CUDAExecutionProvider",
    )  # fmt: skip


def providers_of(args: Any) -> tuple[str, ...]:
    """The value of ``--providers``, as :func:`smt_vision.load` takes it."""
    return tuple(name.strip() for name in (args.providers or "").split(",") if name.strip())


def overrides_of(args: Any) -> dict[str, dict[str, Any]]:
    """The options that were given, as :func:`smt_vision.load` takes them."""
    return {group: vars(getattr(args, group)) for group in dict.fromkeys(group for group, _ in FIELDS)}
