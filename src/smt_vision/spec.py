"""The model spec that checkpoints and exports contain."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .bounds import ModelArgs, check_fields
from .recipe import Input, Recipe, from_plain


@dataclass(frozen=True)
class ModelSpec:
    """Everything besides the weights that is needed to build and use a model.

    Args:
        task: Name of the task, e.g. ``classify``.
        model: timm name of the model or backbone.
        classes: Class names by class index.
        input: How images become tensors; an instance of the task's input class.
        model_args: Further constructor arguments of the model.
        head: Options of the task's head, e.g. a ``DetectConfig``.
        category_ids: COCO category ids by class index; detectors only.
    """

    task: str
    model: str
    classes: tuple[str, ...]
    input: Input
    model_args: ModelArgs = field(default_factory=dict)
    head: Any = None
    category_ids: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON data: dicts, lists, numbers and strings."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], recipe: type[Recipe]) -> "ModelSpec":
        """The inverse of :meth:`to_dict`; :func:`smt_vision.tasks.read_spec` finds the recipe class.

        Args:
            values: The spec as JSON data.
            recipe: Recipe class of the task; its fields give the classes of input and head.

        Raises:
            ValueError: A field is unknown or missing, or a value is not of its field's type or not in its range.
        """
        groups = recipe.groups()
        spec = from_plain(cls, {**values, "input": from_plain(groups["input"], values.get("input"), "input")})
        spec = replace(spec, head=from_plain(groups[recipe.head_group], spec.head, "head"))
        check_fields(spec)
        return spec
