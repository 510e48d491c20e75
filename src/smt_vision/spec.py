"""What a checkpoint or an export says of its model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .recipe import Input, Recipe, from_plain


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed, beside the weights, to build a model and to use it.

    Args:
        task: Name of the task, e.g. ``classify``.
        model: timm name of the model or backbone.
        classes: Class names, by class index.
        input: How images become tensors; of the task's own class.
        model_args: Further constructor arguments of the model.
        head: The task's head and its options, e.g. a ``DetectConfig``; ``None`` for a task without one.
        category_ids: COCO's ids of the classes; of detectors only.
    """

    task: str
    model: str
    classes: tuple[str, ...]
    input: Input
    model_args: Mapping[str, Any] = field(default_factory=dict)
    head: Any = None
    category_ids: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON holds it: dicts, lists, numbers and strings."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], recipe: type[Recipe]) -> "ModelSpec":
        """The reverse of :meth:`to_dict`; of any task: :func:`smt_vision.tasks.read_spec`.

        Args:
            values: The spec as plain data.
            recipe: Class of the task's recipes, whose groups the input and the head are.
        """
        groups = recipe.groups()
        spec = from_plain(cls, {**values, "input": from_plain(groups["input"], values["input"])})
        return (
            spec if recipe.head_group is None else replace(spec, head=from_plain(groups[recipe.head_group], spec.head))
        )
