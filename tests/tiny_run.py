"""Folders of colored images and a debug-size recipe, for tests that train."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from smt_vision.recipe import Engine, Optim
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationInput, ClassificationRecipe

CLASSIFICATION_PICTURES = ("confusion.png", "precision_recall.png", "roc.png", "reliability.png", "mistakes.png")
COLORS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
MODEL_ARGS: dict[str, Any] = dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 2, 1), attn_heads=(1, 1, 2, 4))
PLAIN = ClassificationAugment(
    crop="none",
    hflip=0.0,
    color_jitter=0.0,
    auto_augment=None,
    random_erasing=0.0,
    mixup=0.0,
    cutmix=0.0,
    label_smoothing=0.0,
)
TINY = ClassificationRecipe(
    name="tiny",
    about="for tests",
    model="smt_atto",
    model_args={**MODEL_ARGS, "stem_stride": 2},
    data="",
    epochs=2,
    batch_size=4,
    hardware="any",
    citation="none",
    input=ClassificationInput(size=32, crop_pct=1.0, workers=0),
    augment=PLAIN,
    optim=Optim(lr=3e-3, lr_batch=None, warmup_epochs=0.5),
    engine=Engine(accelerator="cpu", precision="32-true", log_every=1),
)


def write_images(folder: Path, classes: dict[str, tuple[int, int, int]], counts: list[int], seed: int = 0) -> Path:
    """Noisy images of one color per class and of different sizes, in class folders; ``counts`` images per class."""
    rng = np.random.default_rng(seed)
    for (name, color), count in zip(classes.items(), counts, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-40, 41, (36 + 5 * i, 40 + 3 * (i % 4), 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def write_split(folder: Path, train: int = 8, val: int = 4) -> Path:
    """train/ and val/ of three colored classes, with this many images per class."""
    write_images(folder / "train", COLORS, [train] * 3)
    write_images(folder / "val", COLORS, [val] * 3, seed=1)
    return folder


# Fields of a recipe for a network that torch.export traces in a second instead of six.
QUICK_TO_EXPORT: dict[str, Any] = dict(model="test_resnet", model_args={})


def tiny(data: Path, **overrides: Any) -> ClassificationRecipe:
    """The debug recipe on a folder of images; a dict replaces some fields of a group."""
    groups = {k: replace(getattr(TINY, k), **v) for k, v in overrides.items() if k in ("input", "augment", "engine")}
    if "optim" in overrides:
        groups["optim"] = replace(TINY.optim, **overrides["optim"])
    return replace(TINY, **{**overrides, "data": str(data), **groups})


def write_config(recipe: ClassificationRecipe, path: Path) -> str:
    """Write a recipe as YAML for ``smt train --config``; returns the path."""
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    return str(path)


def environment() -> dict[str, str]:
    """Environment of a process with one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
