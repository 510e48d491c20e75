"""Detection datasets by folder layout; data loaders and transforms."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from ....data.dataset import Split
from ....data.files import warn_if_test
from ....data.subset import hold_some_out
from ....text import get_logger
from .coco import ROBOFLOW, find_coco, open_coco
from .cvat import CvatSplit, find_cvat, open_cvat
from .dataset import DetectionDataset, DetectionTarget
from .fields import SPLIT_NAMES, DetectionSplit
from .loaders import DetectionBatch, detection_eval_loader, detection_train_loader
from .masks import rasterize_masks
from .transforms import detection_eval_transform
from .voc import LAYOUT as VOC_LAYOUT
from .voc import find_voc, open_voc
from .yolo import CONFIG_SUFFIXES, find_yolo, open_yolo
from .yolo import LAYOUT as YOLO_LAYOUT

__all__ = [
    "DetectionBatch",
    "DetectionDataset",
    "DetectionTarget",
    "detection_eval_loader",
    "detection_eval_transform",
    "detection_train_loader",
    "open_detection",
    "rasterize_masks",
]

log = get_logger(__name__)


# Per layout: what finds a split in a folder, and what opens it. The first that finds a split is used.
LAYOUTS: tuple[tuple[Callable[[Path, DetectionSplit], Any], Callable[..., DetectionDataset]], ...] = (
    (find_coco, open_coco),
    (find_cvat, open_cvat),
    (find_voc, open_voc),
    (find_yolo, open_yolo),
)
EXPECTED = (
    "COCO layout (annotations/instances_train*.json and instances_val*.json, images in train*/ and val*/; or "
    f"{ROBOFLOW} beside the images in train/ and valid/), Pascal VOC layout ({VOC_LAYOUT}), YOLO layout "
    f"({YOLO_LAYOUT}, or that file), or CVAT's annotations.xml and images/"
)


def open_detection(
    data: str, split: DetectionSplit, val_fraction: float | None = None, seed: int = 0, clip_boxes: bool = False
) -> DetectionDataset:
    """Open and validate one split of a detection dataset.

    Args:
        data: Folder in COCO layout: ``annotations/instances_train*.json`` and ``instances_val*.json``, with images in
            ``train*/`` and ``val*/``; in Roboflow's: ``_annotations.coco.json`` and the images in ``train/`` and
            ``valid/``; in Pascal VOC layout: ``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/``; in YOLO's:
            ``data.yaml``, ``images/`` and ``labels/``; or in CVAT's: ``annotations.xml`` and ``images/``.
        split: ``train``, ``val`` or ``test``.
        val_fraction: Fraction of the training images that is held out if there is no validation split; with 1, all are
            for validation. ``None``: all are for training.
        seed: Random seed of the held-out images.
        clip_boxes: Clip any number of boxes that extend outside of their image.

    Returns:
        Dataset with images not decoded. Boxes that extend outside of their image are clipped, with a
        warning, if it is by up to two pixels, or if they are at most 5 % of the objects; evaluation uses them as
        stored.

    Raises:
        ValueError: The folder has none of these layouts, or its content is invalid: missing files, boxes outside of
            their images, unknown categories, duplicate ids, invalid masks, no objects. The message has the number of
            each and the first few cases.
    """
    root = Path(data).expanduser()
    own = _find(root, split)
    holds_out = val_fraction is not None and split != "test" and _find(root, "val") is None
    opened = _find(root, "train") if holds_out else own
    if opened is None:
        problem = f"has no annotations for {split}" if root.exists() else "is not a directory"
        if root.is_file() and root.suffix not in CONFIG_SUFFIXES:
            problem = "is not a supported file (unpack an archive)"
        if any(root.glob("labels/")) or any(root.glob("*/labels/")):
            problem += ": it has labels/, but no data.yaml or classes.txt with the class names"
        raise ValueError(f"data {data!r} {problem}; expected {EXPECTED}; set --data")
    if split == "val" and not holds_out and val_fraction is not None and val_fraction < 1 and _is_test(root, opened):
        warn_if_test("test", root)
    dataset = opened(clip_boxes=clip_boxes)
    dataset.check_sizes()
    dataset.check_crowds()
    if holds_out:
        dataset = hold_some_out(dataset, cast(Split, split), val_fraction=cast(float, val_fraction), seed=seed)
    log.info("%s: %s", dataset.where, dataset.describe())
    return dataset


def find_splits(root: Path) -> list[DetectionSplit]:
    """The splits that a folder has, in one of the layouts of :func:`open_detection`."""
    return [split for split in SPLIT_NAMES if _find(root, split) is not None]


def _is_test(root: Path, opened: "partial[DetectionDataset]") -> bool:
    """Whether a split is the test split."""
    try:
        test = _find(root, "test")
    except ValueError:  # e.g. several files; it is not used
        return False
    found = [each and each.args[1] for each in (opened, test)]
    one, other = (each.subset if isinstance(each, CvatSplit) else each for each in found)  # XML cannot be compared
    return bool(one == other)


def _find(root: Path, split: DetectionSplit) -> "partial[DetectionDataset] | None":
    """A function that opens a split; ``None`` if there is none."""
    for find, open_split in LAYOUTS:
        if (found := find(root, split)) is not None:
            return partial(open_split, root, found)
    return None
