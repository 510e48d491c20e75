"""Small detection and segmentation datasets of known content."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Json = dict[str, Any]
SIDES = ("xmin", "ymin", "xmax", "ymax")


def write_image(path: Path, width: int, height: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_labels(path: Path, labels: npt.ArrayLike, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, dtype=np.uint8))
    if palette:
        image.putpalette(range(255, -1, -1))  # colors differ from the labels
    image.save(path)


def annotation(id: int, image: int, category: int, bbox: Sequence[float], **more: Any) -> Json:
    x, y, w, h = bbox
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    entry = {"id": id, "image_id": image, "category_id": category, "bbox": list(bbox), "segmentation": polygon}
    return entry | {"area": w * h, "iscrowd": 0} | more


def coco_content() -> Json:
    """Three images, the last without objects; two classes with ids that are neither consecutive nor sorted."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 50},
            {"id": 90, "file_name": "sub/c.png", "width": 32, "height": 32},
        ],
        "annotations": [
            annotation(5, 3, 44, (2, 3, 10, 20)),
            annotation(1, 7, 44, (0, 0, 8, 6)),
            annotation(2, 7, 18, (10, 10, 20, 15)),
            annotation(9, 7, 18, (0, 20, 40, 10), iscrowd=1, segmentation=encode_rle(30, 40, (0, 20, 40, 30))),
        ],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 18, "name": "dog"}],
    }


def encode_rle(height: int, width: int, box: tuple[int, int, int, int]) -> Json:
    """A filled box as an uncompressed RLE mask, in column-major order."""
    mask = np.zeros((height, width), dtype=np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 1
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0))
    return {"size": [height, width], "counts": np.diff(edges, prepend=0, append=mask.size).tolist()}


def write_coco(root: Path, content: Json | None = None, split: str = "train") -> Path:
    """Write ``annotations/instances_SPLIT.json`` and its images."""
    content = content or coco_content()
    for k, image in enumerate(content["images"]):
        write_image(root / split / image["file_name"], image["width"], image["height"], seed=k)
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return root


def write_voc(root: Path, objects: Mapping[str, Sequence[tuple[str, Sequence[float], int]]]) -> Path:
    """Write images of 40 x 30 pixels in ``train.txt``, each with (name, (xmin, ymin, xmax, ymax), difficult)."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for k, (stem, boxes) in enumerate(objects.items()):
        write_image(root / "JPEGImages" / f"{stem}.png", 40, 30, seed=k)
        items = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
            + "".join(f"<{side}>{value}</{side}>" for side, value in zip(SIDES, box, strict=True))
            + "</bndbox></object>"
            for name, box, difficult in boxes
        )
        size = "<size><width>40</width><height>30</height></size>"
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{items}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(objects) + "\n")
    return root


def write_yolo(root: Path, content: Json | None = None, split: str = "train", polygons: bool = True) -> Path:
    """Write ``images/SPLIT/``, ``labels/SPLIT/`` and ``data.yaml`` of a COCO set without crowds."""
    content = content or yolo_content()
    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: k for k, category in enumerate(categories)}
    for k, image in enumerate(content["images"]):
        write_image(root / "images" / split / image["file_name"], image["width"], image["height"], seed=k)
        rows = []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                (x, y, w, h), (width, height) = entry["bbox"], (image["width"], image["height"])
                box = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                corners = zip(entry["segmentation"][0], [width, height] * 99, strict=False)
                values = [value / side for value, side in corners] if polygons else box
                rows.append(" ".join(map(repr, [class_of[entry["category_id"]], *values])))
        label = (root / "labels" / split / image["file_name"]).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        if rows:
            label.write_text("\n".join(rows) + "\n")
    names = {k: category["name"] for k, category in enumerate(categories)}
    root.mkdir(parents=True, exist_ok=True)
    config = root / "data.yaml"
    before = config.read_text() if config.is_file() else json.dumps({"names": names})
    config.write_text(json.dumps({**json.loads(before), split: f"images/{split}"}))
    return root


def yolo_content() -> Json:
    """The content of :func:`coco_content` without crowds, in images whose sides are powers of two."""
    content = coco_content()
    for image in content["images"]:
        image["width"], image["height"] = 64, 32
    content["images"][1]["height"] = 64
    content["annotations"] = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    return content


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>dog</name></label><label><name>bottle</name></label></labels></task></meta>
{images}</annotations>"""


def write_cvat(root: Path, content: Json, polygons: bool, subset: str = "") -> Path:
    """Write ``annotations.xml`` and ``images/`` of a COCO set without crowds."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = []
    for k, image in enumerate(content["images"]):
        write_image(root / "images" / subset / image["file_name"], image["width"], image["height"], seed=k)
        shapes = []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                (x, y, w, h), label = entry["bbox"], names[entry["category_id"]]
                corners = np.reshape(entry["segmentation"][0], (-1, 2)).tolist()
                points = ";".join(f"{a:.2f},{b:.2f}" for a, b in corners)
                box = f'<box label="{label}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" occluded="0" z_order="0"/>'
                shapes.append(f'<polygon label="{label}" points="{points}"/>' if polygons else box)
        attributes = f'id="{k}" name="{image["file_name"]}" subset="{subset}"'
        size = f'width="{image["width"]}" height="{image["height"]}"'
        images.append(f"<image {attributes} {size}>{''.join(shapes)}<tag label='good'/></image>\n")
    (root / "annotations.xml").write_text(CVAT.format(images="".join(images)))
    return root
