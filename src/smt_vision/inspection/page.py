"""The HTML page of an inspection."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.decode import decode_picture
from ..pages import html_page, table_lines
from ..pictures.drawing import resize_long_side, sample_grid
from ..recipe import Input
from ..tasks.inspection import Counts, TaskInspection
from ..text import code, markdown
from . import charts
from .duplicates import BITS
from .measure import SplitInspection

CLASSES, UNREADABLE, GROUPS, GROUP = 200, 50, 20, 5  # rows of tables, and images named of a group
SHEET_CLASSES, SHEET_COLUMNS, SHEET_SIDE = 20, 8, 128  # sample sheet of a classification dataset; side in pixels
SHEET_IMAGES, DRAWN_SIDE = 8, 400  # sample sheet with labels
PAIRS = 6  # near duplicates that are shown


def inspection_page(
    report: Mapping[str, Any], splits: Mapping[str, SplitInspection], task: TaskInspection[Any], input: Input
) -> str:
    """The page, as HTML.

    Args:
        report: The result of the inspection.
        splits: The splits of the dataset.
        task: The task's part of the inspection.
        input: How the images are decoded.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = [f"# {markdown(report['data'])}", "", *_overview(report), *_classes(report, folder)]
        readable = {name: split for name, split in splits.items() if len(split.measured.rows)}
        if readable:
            values = {name: split.measured.values for name, split in readable.items()}
            lines += _images(report, values, folder)
            if report["task"] == "detect":
                lines += _objects(report, readable, folder)
            lines += _samples(readable, task, input, report["seed"], folder)
        lines += [*_duplicates(report, splits, input, folder), *_unreadable(report), *_method(report)]
        return html_page(f"smt inspect {report['data']}", "\n".join(lines) + "\n", folder)


def sample_note(facts: Mapping[str, Any]) -> str:
    """A note on the sample of a split's images that was read; empty if all were."""
    sampled = facts["read"] < facts["images"]
    return f" (in a sample of {facts['read']:,} of its {facts['images']:,} images)" if sampled else ""


def _overview(report: Mapping[str, Any]) -> list[str]:
    columns = {"images": "images", "objects": "objects", "read": "read"}
    rows = [
        (name, *(facts[key] for key in columns if key in facts), len(facts["unreadable"]))
        for name, facts in report["splits"].items()
    ]
    some = next(iter(report["splits"].values()))
    header = ["split", *(text for key, text in columns.items() if key in some), "unreadable"]
    task = {"classify": "Classification", "detect": "Detection", "segment": "Segmentation"}[report["task"]]
    findings = [f"- {markdown(text)}" for text in report["findings"]] or ["Nothing stands out."]
    classes = f"{len(some['classes'])} {'class' if len(some['classes']) == 1 else 'classes'}"
    return [f"{task}, {classes}.", "", *table_lines(header, rows), "", "## Findings", "", *findings, ""]


def _classes(report: Mapping[str, Any], folder: Path) -> list[str]:
    splits = report["splits"]
    value = {"detect": "objects", "segment": "pixels"}.get(report["task"], "images")
    unit = "labeled pixels (%)" if value == "pixels" else value
    counts = {split: [row[value] for row in facts["classes"]] for split, facts in splits.items()}
    names = [row["class"] for row in next(iter(splits.values()))["classes"]]
    charts.class_balance(names, counts, unit, folder / "classes.svg")
    columns = [(split, key) for split in splits for key in dict.fromkeys(("images", value))]
    header = ["class", *(f"{split}: {unit if key == value else key}" for split, key in columns)]
    order = np.argsort(-np.asarray(next(iter(counts.values())), dtype=np.float64), kind="stable").tolist()
    left_out = len(order) - CLASSES
    shown = order if left_out <= 0 else [*order[: CLASSES // 2], *order[-CLASSES // 2 :]]
    rows = [(names[k], *(splits[split]["classes"][k][key] for split, key in columns)) for k in shown]
    note = (
        [f"{left_out} classes between these are left out; {code('inspect.json')} has all.", ""] if left_out > 0 else []
    )
    ignored = [
        f"- {split}: {facts['ignored_pixels']:.2f} % of the pixels are ignored{sample_note(facts)}"
        for split, facts in splits.items()
        if "ignored_pixels" in facts
    ]
    sampled = [
        f"- {split}: classes are counted in the label maps of {facts['read']:,} of {facts['images']:,} images"
        for split, facts in splits.items()
        if "label_maps" in facts and sample_note(facts)
    ]
    return [
        "## Classes", "", "![images, objects or pixels per class](classes.svg)", "",
        *table_lines(header, rows), "", *note, *sampled, *ignored, "",
    ]  # fmt: skip


def _images(report: Mapping[str, Any], values: Mapping[str, Any], folder: Path) -> list[str]:
    charts.image_sizes(values, folder / "sizes.png")
    charts.brightness(values, folder / "brightness.svg")
    keys = ("width", "height", "aspect_ratio", "brightness", "contrast")
    rows = [
        (
            f"{key.replace('_', ' ')}: {statistic}",
            *(_short(report["splits"][split][key][statistic]) for split in values),
        )
        for key in keys
        for statistic in ("min", "median", "max")
    ]
    rows += [("gray images", *(str(report["splits"][split]["gray_images"]) for split in values))]
    first = report["splits"][next(iter(values))]
    numbers = {name: ", ".join(f"{value:.4f}" for value in first[name]) for name in ("mean", "std")}
    return [
        "## Images", "", "![widths, heights and aspect ratios](sizes.png)", "",
        "![brightness and contrast](brightness.svg)", "", *table_lines(["", *values], rows), "",
        f"Mean and standard deviation of the channels, each image weighted equally, for values in 0 to 1 "
        f"({next(iter(values))}):", "",
        "```sh", f"--input.mean '[{numbers['mean']}]' --input.std '[{numbers['std']}]'", "```", "",
        f"In gray (one channel): {first['gray_mean']:.4f} and {first['gray_std']:.4f}. Pretrained weights expect the "
        "values that they were trained with, which are the default.", "",
    ]  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and value < 100 else f"{value:.0f}"


def _objects(report: Mapping[str, Any], splits: Mapping[str, SplitInspection], folder: Path) -> list[str]:
    facts = {name: report["splits"][name] for name in splits}
    centers = np.sum([each["centers"] for each in facts.values()], axis=0)
    charts.objects({name: split.labels.arrays for name, split in splits.items()}, centers, folder / "objects.svg")
    header = ["split", "objects", "small", "medium", "large", "per image", "most in one", "empty images", "crowds"]
    rows = [
        (
            name, each["objects"], *each["object_sizes"].values(), each["objects_per_image"]["mean"],
            each["objects_per_image"]["max"], each["images_without_objects"], each["crowds"],
        )
        for name, each in facts.items()
    ]  # fmt: skip
    return [
        "## Objects", "", "![sizes of the objects, objects per image, centers](objects.svg)", "",
        *table_lines(header, rows), "",
        "Sizes are COCO's, by area in pixels of the original image: small below 32 x 32, large from 96 x 96 on. Crowds "
        "and difficult objects are counted only in the last column.", "",
    ]  # fmt: skip


def _samples(
    splits: Mapping[str, SplitInspection], task: TaskInspection[Any], input: Input, seed: int, folder: Path
) -> list[str]:
    """Images of each class, or with their labels drawn; of each split."""
    lines = ["## Samples", ""]
    for name, split in splits.items():
        rng = np.random.default_rng((seed, *name.encode()))
        sheet = (_drawn_sheet if task.draws_labels else _class_sheet)(split, task, input, rng)
        if sheet is not None:
            sheet.save(folder / f"{name}.png")
            lines += [f"### {name}", "", f"![images of {name}]({name}.png)", ""]
    return lines


def _class_sheet(
    split: SplitInspection, task: TaskInspection[Any], input: Input, rng: np.random.Generator
) -> Image.Image | None:
    """A row of random images per class; of many classes, from the most to the least frequent."""
    members = _members(split)
    order = sorted(members, key=lambda k: -len(members[k]))
    shown = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(len(order), SHEET_CLASSES)).astype(int))]
    blank = Image.new("RGB", (SHEET_SIDE, 1), "white")
    rows = []
    for k in shown:
        chosen = rng.choice(members[k], min(len(members[k]), SHEET_COLUMNS), replace=False)
        images = [resize_long_side(_read(split, i, input)[0], SHEET_SIDE)[0] for i in chosen.tolist()]
        rows.append([*images, *[blank] * (SHEET_COLUMNS - len(images))])
    names = [split.images.classes[k] for k in shown]
    return sample_grid(rows, [""] * SHEET_COLUMNS, names, [], split.images.classes) if rows else None


def _drawn_sheet(
    split: SplitInspection, task: TaskInspection[Any], input: Input, rng: np.random.Generator
) -> Image.Image:
    """Images beside the same with their labels, chosen so that rare classes are among them."""
    members = _members(split)
    chosen: dict[int, None] = {}
    for k in sorted(members, key=lambda k: len(members[k])):
        if len(chosen) < SHEET_IMAGES and not np.isin(members[k], list(chosen)).any():
            chosen[int(rng.choice(members[k]))] = None
    others = np.setdiff1d(split.measured.rows, list(chosen))
    chosen |= dict.fromkeys(rng.permutation(others)[: SHEET_IMAGES - len(chosen)].tolist())
    panels, labels = [], split.labels.label[np.isin(split.labels.image, list(chosen))]
    for i in chosen:
        image, target = _read(split, i, input)
        small, _ = resize_long_side(image, DRAWN_SIDE)
        panels.append([small, task.panel(image, target, split.images.classes, DRAWN_SIDE)])
    names = [split.images.id(i) for i in chosen]
    return sample_grid(panels, ("image", "labels"), names, labels.tolist(), split.images.classes)


def _members(split: SplitInspection) -> dict[int, Counts]:
    """The readable images of each class that has some."""
    readable = np.isin(split.labels.image, split.measured.rows)
    image, label = split.labels.image[readable], split.labels.label[readable]
    return {int(k): image[label == k] for k in np.unique(label)}


def _read(split: SplitInspection, i: int, input: Input) -> tuple[Image.Image, Any]:
    """An image and its target; the image has been read before."""
    raw, target, name = split.images.read(i)
    return decode_picture(raw, input, name=name), target


def _duplicates(
    report: Mapping[str, Any], splits: Mapping[str, SplitInspection], input: Input, folder: Path
) -> list[str]:
    lines = []
    for key, title in (("duplicates", "Identical files"), ("near_duplicates", "Near duplicates")):
        found = report[key]
        lines += [f"## {title}", "", f"Groups: {found['groups']}; images in them: {found['images']}.", ""]
        if found["groups"]:
            rows = [
                (", ".join(f"{image['split']}: {image['id']}" for image in group[:GROUP])
                 + (" ..." if len(group) > GROUP else ""),)
                for group in found["listed"][:GROUPS]
            ]  # fmt: skip
            title = "group" if found["groups"] <= GROUPS else f"group (the first {GROUPS})"
            lines += [*table_lines([title], rows), ""]
    if report["near_duplicates"]["groups"]:
        panels, names = [], []
        for group in report["near_duplicates"]["listed"][:PAIRS]:
            # The first image, and if there is one, an image of another split.
            pair = (group[0], next((image for image in group if image["split"] != group[0]["split"]), group[1]))
            images = [_read(splits[image["split"]], image["index"], input)[0] for image in pair]
            panels.append([resize_long_side(image, DRAWN_SIDE // 2)[0] for image in images])
            names.append(" and ".join(f"{image['split']}: {image['id']}" for image in pair))
        sample_grid(panels, ("", ""), names, [], ()).save(folder / "near.png")
        lines += ["![pairs of near duplicates](near.png)", ""]
    return lines


def _unreadable(report: Mapping[str, Any]) -> list[str]:
    rows = [(split, each["error"]) for split, facts in report["splits"].items() for each in facts["unreadable"]]
    if not rows:
        return ["## Unreadable images", "", "None.", ""]
    left_out = len(rows) - UNREADABLE
    more = [f"... and {left_out} more; {code('inspect.json')} has all.", ""] if left_out > 0 else []
    return ["## Unreadable images", "", *table_lines(["split", "error"], rows[:UNREADABLE]), "", *more]


def _method(report: Mapping[str, Any]) -> list[str]:
    sampled = [name for name, facts in report["splits"].items() if facts["read"] < facts["images"]]
    labels = ", and the pixels and images per class," if report["task"] == "segment" else ""
    read = (
        f"Of {' and '.join(sampled)}, {report['max_images']:,} images were read, sampled at random with seed "
        f"{report['seed']}; duplicates, unreadable images, sizes and colors{labels} are those of the sample."
        if sampled
        else "All images were read."
    )
    splits = (
        "Splits are those of the dataset; training holds out images from one without a validation split."
        if report["task"] == "segment"
        else "Splits are the ones that training uses: images are held out from a dataset without a validation split."
    )
    return [
        "## Method", "",
        f"{read} {splits} Identical files are found by a hash of their content, near duplicates by a difference hash "
        f"of 64 bits (at most {BITS} differ) and the difference of the reduced images: copies of another size or "
        "compression, not flipped or cropped ones, and also frames of a static camera and simple shapes that look "
        "alike, e.g. digits. Brightness and contrast are the mean and the standard deviation of an image's gray "
        "values, 0 to 1. "
        f"smt_vision {report['version']}.", "",
    ]  # fmt: skip
