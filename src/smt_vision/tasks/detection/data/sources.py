"""Images with boxes and masks of objects: sources, transforms, loaders."""

import logging
from pathlib import Path

from ....data.dataset import Split
from .coco import find_coco, open_coco
from .dataset import DetectionDataset, DetectionTarget
from .loaders import DetectionBatch, detection_eval_loader, detection_train_loader
from .masks import rasterize_masks
from .transforms import detection_eval_transform
from .voc import LAYOUT, find_voc, open_voc

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

log = logging.getLogger(__name__)


def open_detection(data: str, split: Split) -> DetectionDataset:
    """Open one split of a set of images with objects, and check it.

    Args:
        data: a folder, of COCO's form: ``annotations/instances_train*.json`` and ``instances_val*.json``, with images
            in ``train*/`` and ``val*/``; or of Pascal VOC's: ``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/``.
        split: ``train`` or ``val``.

    Returns:
        The images, not decoded. Boxes up to two pixels outside of their image are clipped, with a warning.

    Raises:
        ValueError: the folder has no such form, or what it holds cannot be used: missing files, boxes outside of their
            images, unknown categories, duplicate ids; the message names the first few of each, and their number.
    """
    root = Path(data).expanduser()
    if file := find_coco(root, split):
        found = open_coco(root, file)
    elif names := find_voc(root, split):
        found = open_voc(root, names)
    else:
        problem = f"has no annotations for {split}" if root.is_dir() else "is no folder"
        raise ValueError(
            f"data {data!r} {problem}; expected COCO's form (annotations/instances_train*.json and "
            f"instances_val*.json, images in train*/ and val*/) or Pascal VOC's ({LAYOUT}) (on the command line: "
            "--data)"
        )
    log.info("%s: %s", found.where, found.describe())
    return found
