"""The tasks: image classification, detection, segmentation, and pretraining.

Each task has a subpackage. ``config.py`` and ``recipes.py`` are plain data, imported with this package. ``task.py`` is
imported on demand; its ``TASK``, a :class:`smt_vision.tasks.task.TaskType`, provides the task's parts to training,
prediction, evaluation and export. To add a task, add such a subpackage and a line in :data:`TASKS`.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..bounds import short
from ..legacy import upgrade
from ..recipe import Recipe
from ..spec import ModelSpec

if TYPE_CHECKING:
    from .inspection import TaskInspection
    from .task import TaskType

# Task name in recipes and checkpoints -> subpackage.
TASKS = {"classify": "classification", "detect": "detection", "segment": "segmentation", "pretrain": "pretraining"}
# Tasks whose datasets can be inspected, in the order in which they are asked whether a layout is theirs.
INSPECTED = ("detect", "segment", "classify")


def get_task(name: str) -> "TaskType":
    """The parts of a task.

    Raises:
        ValueError: The task is unknown.
    """
    task: TaskType = _module(name, "task").TASK
    return task


def get_inspection(name: str) -> "TaskInspection[Any]":
    """A task's part of the inspection of datasets.

    Raises:
        ValueError: The task is not one of ``INSPECTED``.
    """
    if name not in INSPECTED:
        raise ValueError(f"invalid task={name!r}: expected one of {', '.join(INSPECTED)}")
    inspection: TaskInspection[Any] = _module(name, "inspection").INSPECTION
    return inspection


def recipe_class(name: str) -> type[Recipe]:
    """The recipe class of a task.

    Raises:
        ValueError: The task is unknown.
    """
    recipe: type[Recipe] = getattr(_module(name, "config"), f"{TASKS[name].capitalize()}Recipe")
    return recipe


def inference_overrides(name: str) -> Mapping[str, tuple[str, ...]]:
    """Fields of a task's recipe that may be changed after training, by group."""
    overrides: Mapping[str, tuple[str, ...]] = _module(name, "config").INFERENCE_OVERRIDES
    return overrides


def read_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe of any task from the output of :meth:`Recipe.to_dict`, of this or an earlier version.

    Raises:
        ValueError: The values are not a recipe: the task is unknown, a field is unknown or missing, or its value is not
            of its type or not in its range.
    """
    kind = recipe_class(_task_of(values, "recipe"))
    return kind.from_dict(upgrade(values))


def read_spec(values: Mapping[str, Any]) -> ModelSpec:
    """A model spec from the output of :meth:`ModelSpec.to_dict`.

    Raises:
        ValueError: The values are not a model spec, as for :func:`read_recipe`.
    """
    return ModelSpec.from_dict(values, recipe_class(_task_of(values, "model spec")))


def _task_of(values: Any, what: str) -> str:
    if not isinstance(values, Mapping):
        raise ValueError(f"invalid {what}: found {short(values)}; expected a mapping of fields")
    if not isinstance(values.get("task"), str):
        raise ValueError(f"invalid {what}: task is {short(values.get('task'))}; expected one of {', '.join(TASKS)}")
    return str(values["task"])


def _module(task: str, name: str) -> Any:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    return import_module(f".{TASKS[task]}.{name}", __name__)


# Recipes of all tasks by name.
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for task in TASKS for recipe in _module(task, "recipes").RECIPES}
