"""``smt embed``."""

from pathlib import Path
from typing import Any

from ..bounds import Count, Fraction, OutputFolder
from .common import Output, Parser, new_parser
from .overrides import add_labels, add_overrides, labels_of, overrides_of
from .progress import progress_callback

HELP = "write the features of images to a file, and report duplicates and leakage between splits"
EXAMPLES = """\
smt embed runs/finetune MY_IMAGES --out features.npz
smt embed smt_tiny MY_IMAGES --out features.parquet --report similar      train and val compared: similar/report.md
smt embed smt_femto.cifar10 OLD_PHOTOS NEW_PHOTOS --report similar        two folders compared; no network needed
"""


def build_parser(arguments: list[str]) -> Parser:
    about = (
        f"{HELP}.\nThe features are what a classifier's last layer reads, or the last feature map of a detector's or "
        "segmenter's backbone, averaged."
    )
    parser = new_parser("embed", about, EXAMPLES)
    parser.add_argument("model", help="a run folder, a checkpoint, or a timm model name (its pretrained weights)")
    parser.add_argument(
        "data", nargs="+",
        help="a dataset, as for smt train, with its splits and classes; or images and folders, each folder a split",
    )  # fmt: skip
    parser.add_argument("--out", type=Path | None, help="file of the features, .npz or .parquet; default: features.npz")
    parser.add_argument("--report", type=OutputFolder | None, help="folder for report.md, report.json and a picture")
    parser.add_argument(
        "--threshold",
        type=Fraction | None,
        help="lowest cosine similarity of near duplicates; default: 0.95 (--report)",
    )
    parser.add_argument("--top_k", type=Count | None, help="nearest neighbors per image; default: 5 (--report)")
    parser.add_argument("--batch_size", type=Count, default=32, help="images per forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    add_overrides(parser)
    add_labels(parser)
    return parser


def run(args: Any) -> Output:
    from ..allocator import keep_large_allocations
    from ..embedding.embeddings import check_output, embed
    from ..embedding.report import write_report

    options = {name: value for name in ("threshold", "top_k") if (value := getattr(args, name)) is not None}
    if options and not args.report:
        raise ValueError(f"--{next(iter(options))} applies to the report only; add --report FOLDER")
    out = check_output(args.out or Path("features.npz"))
    if args.device == "cpu":
        keep_large_allocations()
    with progress_callback("embedding images") as on_progress:
        found = embed(
            args.model, args.data, device=args.device, batch_size=args.batch_size, overrides=overrides_of(args),
            labels=labels_of(args), on_progress=on_progress,
        )  # fmt: skip
    found.save(out)
    counts = {split: found.splits.count(split) for split in found.datasets}
    data: dict[str, Any] = {
        "model": found.model, "images": counts, "features": found.features.shape[1],
        "unreadable": list(found.unreadable), "written": [str(out)],
    }  # fmt: skip
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    show = [f"{len(found):,} images ({splits}), {found.features.shape[1]} features each"]
    show += [f"unreadable, left out: {text}" for text in found.unreadable]
    if args.report:
        with progress_callback("comparing images") as on_progress:
            report = write_report(found, args.report, device=args.device, on_progress=on_progress, **options)
        data["report"] = report["counts"]
        data["written"] += [str(path) for path in sorted(args.report.iterdir()) if path.stem in ("report", "pairs")]
        show += [f"{name.replace('_', ' ')}: {number:,}" for name, number in report["counts"].items()]
    show.append(f"written: {', '.join(data['written'])}")
    return Output(data, show)
