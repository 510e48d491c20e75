"""``smt predict``."""

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.markup import escape
from rich.table import Table

from .changes import add_changes, changes_of
from .common import EXIT_ERROR, Output, Parser, new_parser

T = TypeVar("T")

HELP = "classify images, find objects in them, or label their pixels"
EXAMPLES = """\
smt predict runs/finetune PHOTO.jpg
smt predict smt_femto.cifar10 PHOTOS/ --csv out.csv       weights that ship with the package: no network
smt predict runs/finetune PHOTOS/ --json
smt predict runs/nuclei PHOTOS/ --out found               found/detections.json, and pictures in found/drawn/
smt predict runs/camvid PHOTOS/ --out labelled            labelled/labels/*.png, and pictures in labelled/drawn/
"""
SHARES = 4  # classes told of a label map


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("predict", f"{HELP}; what it does is the model's task.", EXAMPLES)
    parser.add_argument(
        "model", help="a run's or an export's folder, a checkpoint, or a name of timm's (its pretrained weights)"
    )
    parser.add_argument("images", nargs="+", help="images, or folders, which are searched whole")
    parser.add_argument("--batch_size", type=int | None, help="images a forward pass; default: 32 to classify, else 4")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    classify = parser.add_argument_group("of classifiers")
    classify.add_argument("--top", type=int | None, help="classes told an image; default: 3")
    classify.add_argument("--csv", type=Path, help="write a CSV file: image, label, probability, the others, error")
    classify.add_argument("--picture", type=Path, help="draw the first 25 images with what was said of them into a PNG")
    dense = parser.add_argument_group("of detectors and segmenters")
    dense.add_argument("--out", type=Path | None, help="a folder for results and drawn copies; default: predictions")
    dense.add_argument("--score", type=float | None, help="detections below it are not drawn or told; default: 0.4")
    dense.add_argument("--annotations", type=Path | None, help="a file of COCO's form, to take the images' ids from")
    add_changes(parser)
    return parser


def run(args: Any) -> Output:
    from ..engine.allocator import keep_big_blocks
    from ..inference import Detector, Segmenter, find_images, load

    if args.top is not None and args.top < 1:
        raise ValueError(f"--top {args.top}: at least 1")
    if args.device == "cpu":
        keep_big_blocks()
    images = find_images(args.images)
    model = load(args.model, args.device, changes_of(args))
    if isinstance(model, Detector):
        _refuse(args, model, "top", "csv", "picture")
        return _detect(args, model, images)
    if isinstance(model, Segmenter):
        _refuse(args, model, "top", "csv", "picture", "score", "annotations")
        return _segment(args, model, images)
    _refuse(args, model, "out", "score", "annotations")
    return _classify(args, model, images)


def _refuse(args: Any, model: Any, *names: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is not for {args.model}, which is {model.kind}; leave it out")


def _classify(args: Any, model: Any, images: list[Path]) -> Output:
    predictions = list(_progress(model.stream(images, args.batch_size, args.top or 3), len(images)))
    show: list[Any] = []
    if args.csv:
        _write_csv(args.csv, predictions)
        show.append(f"{len(predictions)} predictions written to {args.csv}")
    else:
        table = Table("image", "label", "probability", "then", box=None, header_style="bold")
        for p in predictions:
            others = ", ".join(f"{label} {100 * value:.1f} %" for label, value in p.top[1:])
            if p.error:
                table.add_row(escape(p.id), "[red]unreadable[/]", "", escape(p.error))
            else:
                table.add_row(*map(escape, (p.id, p.label or "", f"{100 * p.probability:.1f} %", others)))
        show.append(table)
    if args.picture:
        _draw(args.picture, predictions)
        show.append(f"drawn into {args.picture}")
    return Output([asdict(p) for p in predictions], show, _code(predictions))


def _detect(args: Any, model: Any, images: list[Path]) -> Output:
    from ..inference.files import DRAWN, RESULTS, coco_ids, write_detections
    from ..tasks.detect import SAMPLE_SCORE

    score = SAMPLE_SCORE if args.score is None else args.score
    ids = coco_ids(args.annotations, images) if args.annotations else list(range(1, len(images) + 1))
    folder = _folder(args, images)
    results = write_detections(
        model.stream(images, args.batch_size),
        images,
        folder,
        classes=model.classes,
        category_ids=model.category_ids,
        image_ids=ids,
        score=score,
    )
    table = Table("image", f"objects of a score of {score:g} or more", box=None, header_style="bold")
    data: list[dict[str, Any]] = []
    for found, id in zip(_progress(results, len(images)), ids, strict=True):
        rows = zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
        objects = [{"label": name, "score": value, "box": box} for name, value, box in rows if value >= score]
        data.append({"id": found.id, "image_id": id, "objects": objects, "error": found.error})
        counts = Counter(item["label"] for item in objects)
        told = ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "none"
        table.add_row(escape(found.id), f"[red]unreadable[/] {escape(found.error)}" if found.error else escape(told))
    show = [table, f"written: {folder / RESULTS} (every detection), {folder / DRAWN}"]
    return Output(data, show, _code(data))


def _segment(args: Any, model: Any, images: list[Path]) -> Output:
    from ..inference.files import DRAWN, LABELS, MAPS, shares, write_segmented

    folder = _folder(args, images)
    results = write_segmented(
        model.stream(images, args.batch_size), images, folder, classes=model.classes, config=model.config
    )
    table = Table("image", "of its pixels", box=None, header_style="bold")
    data: list[dict[str, Any]] = []
    for said in _progress(results, len(images)):
        parts = shares(said, model.classes)
        data.append({"id": said.id, "shares": parts, "error": said.error})
        told = ", ".join(f"{name} {100 * part:.1f} %" for name, part in list(parts.items())[:SHARES])
        table.add_row(escape(said.id), f"[red]unreadable[/] {escape(said.error)}" if said.error else escape(told))
    maps = MAPS if model.config.kind == "binary" else LABELS
    return Output(data, [table, f"written: {folder / maps}, {folder / DRAWN}"], _code(data))


def _folder(args: Any, images: list[Path]) -> Path:
    """Where results go. Nothing that is asked about may be overwritten by an answer."""
    folder: Path = args.out or Path("predictions")
    if inside := [path for path in images if folder.resolve() in path.resolve().parents]:
        raise ValueError(f"{inside[0]} is in the folder of the results, {folder}; name another with --out")
    return folder


def _progress(results: Iterable[T], total: int) -> Iterator[T]:
    for done, result in enumerate(results, start=1):
        if sys.stderr.isatty():
            print(f"\rimage {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
        yield result


def _code(results: list[Any]) -> int:
    """An error where not one image could be read."""
    errors = [r["error"] if isinstance(r, dict) else r.error for r in results]
    return EXIT_ERROR if all(errors) else 0


def _write_csv(path: Path, predictions: list[Any]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "probability", "others", "error"])
        for p in predictions:
            others = "; ".join(f"{label} {value:.4f}" for label, value in p.top[1:])
            writer.writerow([p.id, p.label or "", f"{p.probability:.6f}" if p.label else "", others, p.error or ""])


def _draw(path: Path, predictions: list[Any]) -> None:
    from .. import pictures
    from ..data import decode

    readable = [p for p in predictions if not p.error][:25]
    pictures.predictions(
        [
            pictures.Prediction(decode(Path(p.id), 3, name=p.id), p.label, p.probability, Path(p.id).name)
            for p in readable
        ],
        path,
    )
