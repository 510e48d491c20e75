"""What is learnt. A task hides a batch's shape, so the engine never asks which task it runs."""

from ..recipes import Recipe
from .task import Metric, Task

__all__ = ["Metric", "Task", "build_task"]


def build_task(recipe: Recipe) -> Task:
    """The recipe's task, with its data sets opened and its model built."""
    if recipe.task == "detect":  # the imports are here so that a task costs only its users
        from .detect import Detect

        return Detect(recipe)
    if recipe.task == "segment":
        from .segment import Segment

        return Segment(recipe)
    from .classify import Classify

    return Classify(recipe)
