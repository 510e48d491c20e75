"""Inspection of a dataset: its content as plain data, and as one HTML page."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..bounds import Range, checked
from ..data.dataset import RawDataset
from ..files import write_text_atomic
from ..tasks import INSPECTED, get_inspection
from ..tasks.classes import with_classes
from ..tasks.inspection import Options
from .duplicates import count_between_splits, near_duplicates, same_files
from .measure import SplitInspection, measure_images
from .page import inspection_page, sample_note

JSON_NAME, PAGE_NAME = "inspect.json", "inspect.html"
MAX_IMAGES = 10_000
LISTED_GROUPS, LISTED_IMAGES = 1000, 20  # groups of duplicates, and images of each, in the JSON
Limit = Annotated[int, Range(ge=1, le=100_000_000)]
Seed = Annotated[int, Range(ge=0, le=2**63 - 1)]


@checked
def inspect(
    data: str | Path,
    folder: str | Path | None = None,
    *,
    task: str | None = None,
    max_images: Limit = MAX_IMAGES,
    seed: Seed = 0,
    overrides: Options | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Describe a dataset before training: its classes, sizes, brightness, unreadable and duplicate images, and labels.

    Args:
        data: The images, as for training.
        folder: Where to write ``inspect.html``, a self-contained page, and ``inspect.json``, the returned data;
            ``None`` writes nothing.
        task: ``classify``, ``detect`` or ``segment``; ``None`` infers it from the layout of the data.
        max_images: Images per split that are read, sampled at random if there are more. The classes of images and
            objects are counted in all images, everything else only in the images that are read, including the classes
            of pixels (``label_maps`` is the number of label maps read).
        seed: Seed of this sample, and of the images held out from a classification or detection dataset without a
            validation split.
        overrides: Fields that differ from a recipe's defaults, by group, e.g. ``{"segment": {"kind": "binary"}}``. For
            ``classify``: ``input`` (``val_fraction``, ``allow_damaged``, ``channels``, ``max_value``), ``classify``
            (``multi_label``) and ``labels``. For ``detect``: ``input`` (``val_fraction``, ``clip_boxes``, ``channels``,
            ``max_value``). For ``segment``: ``input`` (``channels``, ``max_value``) and ``segment`` (``kind``,
            ``zero_is_ignored``).
        on_progress: Called with the number of images read and the total to read.

    Returns:
        Plain data, ready for JSON; per split and class, and for all splits ``findings``, the potential problems.

    Raises:
        ValueError: The data cannot be opened for the task, the task is unknown, or a field belongs to another task.
    """
    data = str(data)
    name = task or next(each for each in INSPECTED if get_inspection(each).recognizes(data))
    parts = get_inspection(name)
    options = overrides or {}
    for option in (f"{group}.{field}" for group, values in options.items() for field in values):
        known = [f"{group}.{field}" for group, names in parts.options.items() for field in names]
        if option not in known:
            raise ValueError(f"{option} does not apply to task {name}: expected one of {', '.join(known)}; omit it")
    input = parts.input(options)
    opened, problems = _with_the_same_classes(parts.open(data, seed, options))
    samples = {split: _sample(len(images), max_images, seed) for split, images in opened.items()}
    done, total = 0, sum(map(len, samples.values()))

    def count(images: int) -> None:
        nonlocal done
        done += images
        if on_progress is not None:
            on_progress(done, total)

    splits = {}
    for split, images in opened.items():
        measured = measure_images(images, samples[split], parts, input, count)
        splits[split] = SplitInspection(images, measured, parts.labels(images, measured.rows, measured.labels))
    report: dict[str, Any] = {
        "data": data,
        "task": name,
        "version": __version__,
        "seed": seed,
        "max_images": max_images,
        "splits": {split: _describe(each) for split, each in splits.items()},
        **_duplicates(splits),
    }
    report["findings"] = [*problems, *find_problems(report)]
    if folder is not None:
        folder = Path(folder)
        write_text_atomic(folder / JSON_NAME, json.dumps(report, indent=1))
        write_text_atomic(folder / PAGE_NAME, inspection_page(report, splits, parts, input))
    return report


def _with_the_same_classes(
    splits: Mapping[str, RawDataset[Any]],
) -> tuple[dict[str, RawDataset[Any]], list[str]]:
    """The splits with the classes of the first one, as in training, and what keeps training from doing so.

    A split with classes that the first one lacks has them after the others.
    """
    name, first = next(iter(splits.items()))
    out: dict[str, RawDataset[Any]] = {}
    problems = []
    for split, images in splits.items():
        try:
            out[split] = with_classes(images, first.classes, owner=f"the {name} split")
        except ValueError as error:
            problems.append(f"{split}: {error}")
            classes = tuple(dict.fromkeys([*first.classes, *images.classes]))
            out[split] = images.relabel(classes, [classes.index(each) for each in images.classes])
    return out, problems


def _sample(count: int, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """At most ``limit`` of ``count`` indices, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _describe(split: SplitInspection) -> dict[str, Any]:
    values = split.measured.values
    out: dict[str, Any] = {
        "images": len(split.images),
        "read": len(values) + len(split.measured.unreadable),
        "unreadable": [{"id": id, "error": error} for id, error in split.measured.unreadable],
        "classes": split.labels.classes,
        **split.labels.facts,
    }
    if len(values):
        mean, gray = values["mean"].mean(axis=0), values["brightness"].mean()
        gray_square = (values["contrast"] ** 2 + values["brightness"] ** 2).mean()
        out |= {
            "width": _spread(values["width"]),
            "height": _spread(values["height"]),
            "aspect_ratio": _spread(values["width"] / values["height"]),
            "brightness": _spread(values["brightness"]),
            "contrast": _spread(values["contrast"]),
            "gray_images": int(values["is_gray"].sum()),
            "mean": mean.tolist(),
            "std": np.sqrt((values["square"].mean(axis=0) - mean**2).clip(0)).tolist(),
            "gray_mean": float(gray),
            "gray_std": float(np.sqrt(max(gray_square - gray**2, 0))),
        }
    return out


def _spread(values: npt.NDArray[Any]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0, 0.5, 1)).tolist()
    return {"min": low, "median": median, "max": high}


def _duplicates(splits: Mapping[str, SplitInspection]) -> dict[str, Any]:
    """The groups of the same files and of near duplicates, over all splits."""
    names = list(splits)
    parts = [each.measured for each in splits.values()]
    split = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    rows = np.concatenate([part.rows for part in parts])
    values = np.concatenate([part.values for part in parts])
    fingerprints = np.concatenate([each.images.select(each.measured.rows).fingerprints() for each in splits.values()])
    # Images that are not files have fingerprints of their names.
    same = same_files(np.where(values["content"] != 0, values["content"], fingerprints))
    copies = np.concatenate([group[1:] for group in same]) if same else np.zeros(0, dtype=np.int64)
    once = np.setdiff1d(np.arange(len(rows)), copies)  # the first of each group of the same files
    near = [once[group] for group in near_duplicates(values["hash"][once], values["cells"][once])]

    def image(i: int) -> dict[str, Any]:
        name = names[split[i]]
        return {"split": name, "index": int(rows[i]), "id": splits[name].images.id(int(rows[i]))}

    def report(groups: list[npt.NDArray[np.int64]]) -> dict[str, Any]:
        return {
            "groups": len(groups),
            "images": sum(map(len, groups)),
            "groups_between_splits": sum(len(set(split[group])) > 1 for group in groups),
            "between_splits": [
                {"split": names[own], "in": names[first], "images": count}
                for (first, own), count in sorted(count_between_splits(groups, split).items())
            ],
            "listed": [
                [image(i) for i in _first_of_each(group, split)[:LISTED_IMAGES]]
                for group in sorted(groups, key=lambda group: len(set(split[group])), reverse=True)[:LISTED_GROUPS]
            ],
        }

    return {"duplicates": report(same), "near_duplicates": report(near)}


def _first_of_each(group: npt.NDArray[np.int64], split: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A group with the first image of each split before the others."""
    _, first = np.unique(split[group], return_index=True)
    return np.concatenate([group[np.sort(first)], np.delete(group, first)])


def find_problems(report: Mapping[str, Any]) -> list[str]:
    """What should be looked at before training, one sentence each, with names as they are."""
    found = []
    splits = report["splits"]
    found += [
        f"{split}: no images in this split, which training needs; evaluating the whole dataset does not"
        for split in ("train", "val")
        if split not in splits
    ]
    for split, facts in splits.items():
        sample = sample_note(facts)
        if facts["unreadable"]:
            count = _number(len(facts["unreadable"]), "image")
            found.append(f"{split}: {count} or labels cannot be read or used{sample}")
        if facts["read"] and not facts.get("mean"):
            found.append(f"{split}: no image can be used{sample}")
    for key, what in (("duplicates", "the same file as"), ("near_duplicates", "nearly the same picture as")):
        for pair in report[key]["between_splits"]:
            found.append(
                f"{_number(pair['images'], 'image')} of {pair['split']}: {what} an image of {pair['in']}, so metrics "
                f"on {pair['split']} would be too high"
            )
        if within := report[key]["groups"] - report[key]["groups_between_splits"]:
            found.append(f"{_number(within, 'group')} of images of one split: {what} another image of the group")
    train = splits.get("train")
    if train:
        unit = "objects" if report["task"] == "detect" else "pixels" if report["task"] == "segment" else "images"
        counts = {row["class"]: row[unit] for row in train["classes"]}
        sample = sample_note(train) if "label_maps" in train else ""
        if missing := [name for name, count in counts.items() if not count]:
            names = ", ".join(missing[:10])
            found.append(f"train: {_number(len(missing), 'class', 'es')} without {unit}{sample}: {names}")
        present = [count for count in counts.values() if count]
        if present and max(present) >= 10 * min(present):
            found.append(
                f"train: the most frequent class has {max(present) / min(present):,.0f} times the {unit} of the "
                f"rarest{sample}: see loss.class_weights and sampling.method"
            )
    for split, facts in splits.items():
        if facts.get("ignored_pixels", 0) > 50:
            found.append(f"{split}: {facts['ignored_pixels']:.1f} % of the pixels are ignored{sample_note(facts)}")
        if facts.get("images_without_objects", 0) > facts["images"] / 2:
            found.append(f"{split}: {_number(facts['images_without_objects'], 'image')} without objects")
        if facts.get("gray_images") and facts["gray_images"] == facts["read"] - len(facts["unreadable"]):
            found.append(f"{split}: all images are gray{sample_note(facts)}: input.channels=1 suffices")
    return found


def _number(count: int, unit: str, plural: str = "s") -> str:
    return f"{count:,} {unit}{'' if count == 1 else plural}"
