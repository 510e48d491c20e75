"""Detection datasets by folder layout; data loaders and transforms."""

from pathlib import Path

from ....data.dataset import Split
from ....text import get_logger
from .coco import ROBOFLOW, find_coco, open_coco
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

log = get_logger(__name__)


def open_detection(data: str, split: Split) -> DetectionDataset:
    """Open and validate one split of a detection dataset.

    Args:
        data: Folder in COCO layout: ``annotations/instances_train*.json`` and ``instances_val*.json``, with images in
            ``train*/`` and ``val*/``; in Roboflow's: ``_annotations.coco.json`` and the images in ``train/`` and
            ``valid/``; or in Pascal VOC layout: ``Annotations/``, ``JPEGImages/`` and
            ``ImageSets/Main/``.
        split: ``train`` or ``val``.

    Returns:
        Dataset with images not decoded. Boxes up to two pixels outside of their image are clipped, with a warning.

    Raises:
        ValueError: The folder has none of these layouts, or its content is invalid: missing files, boxes outside of
            their images, unknown categories, duplicate ids, invalid masks, no objects. The message has the number of
            each and the first few cases.
    """
    root = Path(data).expanduser()
    if file := find_coco(root, split):
        dataset = open_coco(root, file)
    elif names := find_voc(root, split):
        dataset = open_voc(root, names)
    else:
        problem = f"has no annotations for {split}" if root.is_dir() else "is not a directory"
        raise ValueError(
            f"data {data!r} {problem}; expected COCO layout (annotations/instances_train*.json and "
            f"instances_val*.json, images in train*/ and val*/; or {ROBOFLOW} beside the images in train/ and valid/) "
            f"or Pascal VOC layout ({LAYOUT}); set --data"
        )
    dataset.check_sizes()
    dataset.check_crowds()
    log.info("%s: %s", dataset.where, dataset.describe())
    return dataset
