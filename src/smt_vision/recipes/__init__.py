"""Runs as data: frozen dataclasses, and the recipes that ship.

A recipe says everything that decides a run's result. Any field can be overridden from the command line, typed and
dotted (``--optim.lr 5e-4``), or from a YAML file. This package holds names and numbers and imports nothing of ours.

The paper's values: arXiv 2307.08579 (ICCV 2023) and the configurations of the authors' release.
"""

from .classification import CLASSIFICATION
from .detection import DETECTION
from .fields import (
    CHANGEABLE,
    GROUPS,
    IGNORED,
    LARGEST_STRIDE,
    PAPER,
    Augment,
    Detect,
    Engine,
    Input,
    Optim,
    Recipe,
    Segment,
    from_plain,
)
from .segmentation import SEGMENTATION

__all__ = [
    "CHANGEABLE",
    "GROUPS",
    "IGNORED",
    "LARGEST_STRIDE",
    "PAPER",
    "RECIPES",
    "Augment",
    "Detect",
    "Engine",
    "Input",
    "Optim",
    "Recipe",
    "Segment",
    "from_plain",
]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*CLASSIFICATION, *DETECTION, *SEGMENTATION)}
