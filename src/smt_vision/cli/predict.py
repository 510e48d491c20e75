"""``smt predict``."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from .common import EXIT_ERROR, Output, Parser, new_parser

HELP = "classify images"
EXAMPLES = """\
smt predict runs/finetune PHOTO.jpg
smt predict smt_femto.cifar10 PHOTOS/ --csv out.csv       weights that ship with the package: no network
smt predict runs/finetune PHOTOS/ --json
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("predict", f"{HELP}; prints a table, JSON or CSV.", EXAMPLES)
    parser.add_argument(
        "model", help="a run's or an export's folder, a checkpoint, or a name of timm's (its pretrained weights)"
    )
    parser.add_argument("images", nargs="+", help="images, or folders, which are searched whole")
    parser.add_argument("--top", type=int, default=3, help="classes told an image")
    parser.add_argument("--batch_size", type=int, default=32, help="images a forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--csv", type=Path, help="write a CSV file: image, label, probability, the others, error")
    parser.add_argument("--picture", type=Path, help="draw the first 25 images with what was said of them into a PNG")
    return parser


def run(args: Any) -> Output:
    from ..engine.allocator import keep_big_blocks
    from ..inference import Classifier, find_images

    if args.top < 1:
        raise ValueError(f"--top {args.top}: at least 1")
    if args.device == "cpu":
        keep_big_blocks()
    images = find_images(args.images)
    classifier = Classifier.load(args.model, args.device)
    predictions = classifier(images, args.batch_size, args.top)
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
        _draw(args.picture, predictions, classifier)
        show.append(f"drawn into {args.picture}")
    failed = all(p.error for p in predictions)
    return Output([asdict(p) for p in predictions], show, EXIT_ERROR if failed else 0)


def _write_csv(path: Path, predictions: list[Any]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "probability", "others", "error"])
        for p in predictions:
            others = "; ".join(f"{label} {value:.4f}" for label, value in p.top[1:])
            writer.writerow([p.id, p.label or "", f"{p.probability:.6f}" if p.label else "", others, p.error or ""])


def _draw(path: Path, predictions: list[Any], classifier: Any) -> None:
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
