"""The tasks: image classification, detection and segmentation.

Everything of a task stands in one folder: ``config.py`` and ``recipes.py``, plain data that is imported at once, and
``task.py``, whose ``TASK`` (a :class:`smt_vision.tasks.task.TaskType`, imported when it is needed) gives the task's parts
to the engine, prediction, evaluation and export. A further task is a folder of this form and a line in :data:`TASKS`.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..legacy import upgrade
from ..recipe import Recipe
from ..spec import ModelSpec

if TYPE_CHECKING:
    from .task import TaskType

# The name of a task, as recipes and checkpoints have it, and its folder.
TASKS = {"classify": "classification", "detect": "detection", "segment": "segmentation"}


def get_task(name: str) -> "TaskType":
    """The parts of a task.

    Raises:
        ValueError: There is no such task.
    """
    task: TaskType = _module(name, "task").TASK
    return task


def recipe_class(name: str) -> type[Recipe]:
    """The class of a task's recipes.

    Raises:
        ValueError: There is no such task.
    """
    found: type[Recipe] = getattr(_module(name, "config"), f"{TASKS[name].capitalize()}Recipe")
    return found


def inference_overrides(name: str) -> Mapping[str, tuple[str, ...]]:
    """The recipe groups and fields of a task that may differ in use from training."""
    overrides: Mapping[str, tuple[str, ...]] = _module(name, "config").INFERENCE_OVERRIDES
    return overrides


def read_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe of any task from :meth:`Recipe.to_dict`'s form, or an earlier version's.

    Raises:
        ValueError: There is no such task.
    """
    values = upgrade(values)
    return recipe_class(values["task"]).from_dict(values)


def read_spec(values: Mapping[str, Any]) -> ModelSpec:
    """A model spec from :meth:`ModelSpec.to_dict`'s form.

    Raises:
        ValueError: There is no such task.
    """
    return ModelSpec.from_dict(values, recipe_class(values["task"]))


def _module(task: str, name: str) -> Any:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    return import_module(f".{TASKS[task]}.{name}", __name__)


# The recipes of all tasks, by name.
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for task in TASKS for recipe in _module(task, "recipes").RECIPES}
