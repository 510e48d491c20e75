"""What is learnt. A task hides a batch's shape, so the engine never asks which task it runs."""

from ..recipes import Recipe
from .task import Metric, Task

__all__ = ["Metric", "Task", "build_task"]


def build_task(recipe: Recipe) -> Task:
    """The recipe's task, with its data sets opened and its model built."""
    from .classify import Classify  # the one task so far; the import is here so that a task costs only its users

    return {"classify": Classify}[recipe.task](recipe)
