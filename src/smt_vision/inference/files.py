"""What detectors and segmenters say, as files: COCO's results, label maps, and copies of the pictures, drawn on."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import pictures
from ..data import decode
from ..files import write_whole
from ..metrics.detection import run_lengths
from ..recipes import IGNORED, Segment
from .detect import Detections
from .segment import Segmented

DRAWN, LABELS, MAPS, RESULTS = "drawn", "labels", "maps", "detections.json"


def target_names(paths: Sequence[Path]) -> list[Path]:
    """Where in a folder each image's results go: its path below the folder that all are in, ending in ``.png``.

    Raises:
        ValueError: two images would share a name.
    """
    whole = [path.resolve() for path in paths]
    shared = Path(*_shared([path.parent.parts for path in whole]))
    names = [path.relative_to(shared).with_suffix(".png") for path in whole]
    first: dict[Path, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if first.setdefault(name, path) != path:
            raise ValueError(
                f"{first[name]} and {path} differ in their suffix alone, and both would be written to {name}; rename "
                "one, or ask about one at a time"
            )
    return names


def coco_ids(annotations: Path, paths: Sequence[Path]) -> list[int]:
    """The ids of images in a file of COCO's form, by their file names.

    Raises:
        ValueError: it is no such file, or does not name an image.
    """
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        known = {Path(image["file_name"]).name: int(image["id"]) for image in images}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{annotations}: not a file of annotations in COCO's form, with images, their file_name and id: {error!r}"
        ) from error
    if missing := [path for path in paths if path.name not in known]:
        raise ValueError(
            f"{annotations} does not name {len(missing)} of the {len(paths)} images, {missing[0].name} for one; leave "
            "the annotations out, or name the ones of these images"
        )
    return [known[path.name] for path in paths]


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """An image's detections as COCO's results files hold them, with the names of file and class beside the numbers.

    Args:
        found: the detections.
        image_id: of the image.
        category_ids: of the classes, by label.
    """
    masks: Sequence[bytes | None] = [None] * len(found.boxes) if found.masks is None else run_lengths(found.masks)
    rows = []
    for box, score, label, name, mask in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.names, masks, strict=True
    ):
        x1, y1, x2, y2 = (round(side, 4) for side in box)
        row = {
            "image_id": image_id,
            "file_name": Path(found.id).name,
            "category_id": category_ids[label],
            "category": name,
            "bbox": [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)],
            "score": round(score, 6),
        }
        if mask is not None:
            row["segmentation"] = {"size": list(found.size), "counts": mask.decode()}
        rows.append(row)
    return rows


def write_detections(
    results: Iterable[Detections],
    paths: Sequence[Path],
    folder: Path,
    *,
    classes: Sequence[str],
    category_ids: Sequence[int],
    image_ids: Sequence[int],
    score: float,
) -> Iterator[Detections]:
    """Writes detections as they come: each image drawn into ``drawn/``, and at the end all into ``detections.json``.

    Args:
        results: of the images, in order; they are given on as they are.
        paths: of the images.
        folder: where to.
        classes: names, by label.
        category_ids: of the classes, by label.
        image_ids: of the images.
        score: what scores less is in the file but is not drawn.
    """
    rows: list[dict[str, Any]] = []
    for found, path, name, image_id in zip(results, paths, target_names(paths), image_ids, strict=True):
        if found.error is None:
            rows += coco_results(found, image_id, category_ids)
            sure = found.scores >= score
            masks = None if found.masks is None else found.masks[sure]
            drawn = pictures.draw_detections(
                decode(path, 3, name=str(path)),
                found.boxes[sure],
                found.labels[sure],
                found.scores[sure],
                masks,
                classes=classes,
            )
            _save(drawn, folder / DRAWN / name)
        yield found

    def write(part: Path) -> None:
        part.write_text(json.dumps(rows), encoding="utf-8")

    write_whole(folder / RESULTS, write)


def write_segmented(
    results: Iterable[Segmented], paths: Sequence[Path], folder: Path, *, classes: Sequence[str], config: Segment
) -> Iterator[Segmented]:
    """Writes what a segmenter says as it comes, of each image a map of its size and a copy drawn on in ``drawn/``.

    Maps are in ``labels/``, stored as the training's labels are (of ADE20K's kind, one more than the class); those of
    binary segmenters are in ``maps/``, probabilities as grey values of 0 to 255, as salient objects are compared.

    Args:
        results: of the images, in order; they are given on as they are.
        paths: of the images.
        folder: where to.
        classes: names, by label.
        config: the segmenter's.
    """
    for said, path, name in zip(results, paths, target_names(paths), strict=True):
        if said.error is None:
            picture = decode(path, 3, name=str(path))
            if said.label is not None:
                label = said.label
                stored = (label + config.zero_is_ignored).to(torch.uint8)
                _save(Image.fromarray(stored.numpy()), folder / LABELS / name)
            else:
                assert said.probability is not None
                label = torch.where(said.probability >= 0.5, 0, IGNORED)
                grey = (255 * said.probability).round().to(torch.uint8)
                _save(Image.fromarray(grey.numpy()), folder / MAPS / name)
            _save(pictures.draw_label_map(picture, label, classes), folder / DRAWN / name)
        yield said


def shares(said: Segmented, classes: Sequence[str]) -> Mapping[str, float]:
    """Of the image's pixels, the share of each class that occurs, largest first; of a binary one, of the object."""
    if said.probability is not None:
        return {classes[0]: float((said.probability >= 0.5).float().mean())}
    if said.label is None:
        return {}
    counts = np.bincount(said.label.numpy().ravel(), minlength=len(classes)) / said.label.numel()
    return {classes[k]: float(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k]}


def _shared(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What all begin with."""
    length = 0
    while all(len(p) > length for p in parts) and len({p[length] for p in parts}) == 1:
        length += 1
    return parts[0][:length]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
