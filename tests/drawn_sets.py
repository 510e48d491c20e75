"""Small synthetic datasets, shapes to detect and scenes to segment, and recipes of debug size for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from debug_model import DEBUG
from smt_vision import checkpoints
from smt_vision.recipe import Augment, Engine, Optim
from smt_vision.tasks.detection.config import DetectConfig, DetectionAugment, DetectionInput, DetectionRecipe
from smt_vision.tasks.segmentation.config import SegmentationInput, SegmentationRecipe, SegmentConfig
from tiny_run import MODEL_ARGS

SIDE = 96  # pixels of the images
CATEGORIES = [{"id": 1, "name": "square"}, {"id": 4, "name": "triangle"}]


def write_shapes(folder: Path, images: int = 4, masks: bool = True) -> Path:
    """Write a dataset in COCO's layout: a red square and a green triangle per image; train and val are the same."""
    rng = np.random.default_rng(0)
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    for i in range(images):
        picture = Image.fromarray(rng.integers(0, 60, (SIDE, SIDE + 16 * (i % 2), 3), dtype=np.uint8))
        pen = ImageDraw.Draw(picture)
        for k in range(2):
            s = int(rng.integers(24, 40))
            x, y = 4 + (i + k) % 2 * (picture.width // 2), int(rng.integers(2, SIDE - s - 2))
            corners = (
                ((x, y), (x + s, y), (x + s, y + s), (x, y + s))
                if k == 0
                else ((x, y + s), (x + s, y + s), (x + s / 2, y))
            )
            pen.polygon([(u, v) for u, v in corners], fill=((220, 60, 60), (60, 200, 80))[k])
            polygon = {"segmentation": [[c for corner in corners for c in corner]]} if masks else {}
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i + 1,
                    "category_id": CATEGORIES[k]["id"],
                    "bbox": [x, y, s, s],
                    "area": s * s / (k + 1),
                    "iscrowd": 0,
                    **polygon,
                }
            )
        for split in ("train", "val"):
            picture.save(folder / split / f"{i}.png")
        content["images"].append(
            {"id": i + 1, "file_name": f"{i}.png", "width": picture.width, "height": picture.height}
        )
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def shapes_recipe(data: Path, head: str = "mask_rcnn", epochs: int = 1, **engine: Any) -> DetectionRecipe:
    return DetectionRecipe(
        name="shapes",
        about="for tests",
        model="smt_atto",
        model_args=DEBUG,
        data=str(data),
        epochs=epochs,
        batch_size=4,
        hardware="any",
        citation="none",
        input=DetectionInput(interpolation="bilinear", workers=0),
        augment=DetectionAugment(hflip=0.0),
        optim=Optim(lr=5e-3, lr_batch=None, warmup_epochs=0.1 * epochs, weight_decay=0.0),
        detect=DetectConfig(
            head=head,  # type: ignore[arg-type]
            short_side=SIDE,
            long_side=2 * SIDE,
            train_short_sides=(SIDE,),
            anchor_sizes=(8, 16, 32, 64, 128),
            fpn_channels=32,
            head_channels=64,
            rois=64,
        ),
        engine=Engine(accelerator="cpu", precision="32-true", log_every=1, **engine),
    )


CLASSES = ("sky", "road", "car")
COLORS = np.array([(60, 120, 220), (110, 100, 90), (220, 60, 40)])
SIZES = ((64, 80), (64, 80), (72, 56), (96, 64))  # height, width


def scene(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and its labels (H, W): sky over road with a car, and two ignored rows (255) at the top."""
    draw = np.random.default_rng(seed)
    height, width = size
    label = np.zeros(size, dtype=np.uint8)
    label[int(height * draw.uniform(0.4, 0.6)) :] = 1
    top, left = int(height * draw.uniform(0.5, 0.6)), int(width * draw.uniform(0.1, 0.5))
    label[top : top + height // 3, left : left + width // 3] = 2
    pixels = COLORS[label] + draw.integers(-25, 26, (*size, 3))
    label[:2] = 255
    return pixels.clip(0, 255).astype(np.uint8), label


def write_scenes(folder: Path, binary: bool = False) -> Path:
    """Write four images with label maps; train and val are the same."""
    for split in ("train", "val"):
        for kind in ("images", "masks" if binary else "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i, size in enumerate(SIZES):
            pixels, label = scene(size, i)
            Image.fromarray(pixels).save(folder / "images" / split / f"{i}.png")
            stored = (255 * (label == 2)).astype(np.uint8) if binary else label
            Image.fromarray(stored).save(folder / ("masks" if binary else "labels") / split / f"{i}.png")
    if not binary:
        (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


def scenes_recipe(data: Path, **segment: Any) -> SegmentationRecipe:
    config = dict(
        short_side=64, long_side=128, crop=(64, 64), scale=(1.0, 1.0), photometric=False, channels=16, aux_channels=8
    )
    return SegmentationRecipe(
        name="tiny",
        about="for tests",
        model="smt_atto",
        model_args={**MODEL_ARGS, "stem_stride": 2},
        data=str(data),
        epochs=1,
        batch_size=4,
        hardware="any",
        citation="none",
        input=SegmentationInput(interpolation="bilinear", workers=0),
        augment=Augment(hflip=0.0),
        optim=Optim(lr=4e-3, lr_batch=None, warmup_epochs=1.0),
        engine=Engine(accelerator="cpu", precision="32-true", log_every=1),
        segment=SegmentConfig(**{**config, **segment}),
    )


CHECKPOINT_FORMS = ("folder", "best.pt", "best.safetensors")


def checkpoint_in_form(form: str, run: Path, folder: Path) -> Path:
    """A finished run's best weights as the run's folder, as its ``best.pt``, or as ``.safetensors`` in a folder."""
    if form != "best.safetensors":
        return run if form == "folder" else run / form
    best = checkpoints.load(run)
    checkpoints.save({"spec": best.spec, "model": best.weights}, folder / form)
    return folder / form
