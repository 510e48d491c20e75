"""Write some validation digits as PNG files whose names begin with the true digit, e.g. ``7_3512.png``.

Usage: python examples/demo_images.py FOLDER [COUNT]
"""

import sys
from pathlib import Path

import numpy as np

from smt_vision.data.decode import decode
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.classification.recipes import RECIPES


def main(folder: Path, count: int) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.name == "quickstart")
    images = open_dataset(recipe.data, "val", val_fraction=recipe.input.val_fraction, seed=recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in np.linspace(0, len(images) - 1, count).astype(int).tolist():  # evenly spaced, so that every digit occurs
        raw, target, name = images.read(i)
        decode(raw, 1, name=name).save(folder / f"{images.classes[target]}_{images.id(i)}.png")
    print(f"{count} of the {len(images)} validation digits written to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 25)
