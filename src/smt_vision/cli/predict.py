"""``smt predict``."""

from pathlib import Path
from typing import Any

from rich.table import Table

from ..bounds import Count, Fraction, OutputFolder
from ..precision import describe_precision
from .common import EXIT_ERROR, Output, Parser, new_parser
from .console import styled
from .overrides import add_overrides, add_precision, add_providers, overrides_of, providers_of
from .progress import progress_callback, track
from .startup import no_garbage_collection

HELP = "predict the classes, objects or label maps of images and videos"
EXAMPLES = """\
smt predict runs/finetune PHOTO.jpg
smt predict smt_femto.cifar10 PHOTOS/ --out found         predictions.csv and a contact sheet; no network needed
smt predict runs/finetune PHOTOS/ --json
smt predict runs/nuclei PHOTOS/ --out found               found/detections.json, and pictures in found/drawn/
smt predict runs/camvid PHOTOS/ --out labeled             labeled/labels/*.png, and pictures in labeled/drawn/
smt predict runs/nuclei CLIP.mp4 --every 5                predictions/CLIP.jsonl, and predictions/drawn/CLIP.mp4
"""
MAX_ROWS = 1000  # images in the table on standard output where files are written
OPTIONS = ("top_k", "score", "annotations", "draw")  # of some tasks only


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("predict", f"{HELP}, depending on the model's task.", EXAMPLES)
    parser.add_argument(
        "model", help="a run or export folder, a checkpoint, or a timm model name (its pretrained weights)"
    )
    parser.add_argument("images", nargs="+", help="images or videos, or folders, which are searched recursively")
    parser.add_argument(
        "--out",
        type=OutputFolder | None,
        help="output folder; default: predictions. A classifier writes no files for images unless it is given",
    )
    parser.add_argument(
        "--batch_size", type=Count | None, help="images per forward pass; default: 32 to classify, else 4"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--top_k", type=Count | None, help="classes reported per image; default: 3 (classifiers only)")
    parser.add_argument(
        "--score", type=Fraction | None, help="lowest score that is shown and reported; default: 0.4 (detectors only)"
    )
    parser.add_argument(
        "--annotations", type=Path | None, help="COCO annotations to take the images' ids from (detectors only)"
    )
    parser.add_argument(
        "--draw", type=bool | None, help="draw the results over copies of the images; default: true (not classifiers)"
    )
    parser.add_argument("--every", type=Count | None, help="predict only every n-th frame; default: 1 (videos only)")
    add_precision(parser)
    add_providers(parser)
    add_overrides(parser)
    return parser


def run(args: Any) -> Output:
    from ..allocator import keep_large_allocations
    from ..data.files import find_images
    from ..data.video import SUFFIXES, find_videos

    if args.device == "cpu":
        keep_large_allocations()
    videos = find_videos(args.images)
    if args.every and not videos:
        raise ValueError(f"--every is for videos ({', '.join(SUFFIXES)}), and these are images; omit it")
    images = [] if videos else find_images(args.images)
    with no_garbage_collection():
        from ..tasks.load import load

        model = load(
            args.model, args.device, overrides_of(args), providers=providers_of(args), precision=args.precision
        )
    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    if refused := [name for name in options if name not in model.options]:
        raise ValueError(f"--{refused[0]} does not apply to {args.model}, which is {model.kind}; omit it")
    model.check_options(**options)
    if "top_k" in model.options:
        options.setdefault("top_k", 3)
    if videos:
        return _videos(model, videos, args, options)
    folder = args.out if args.out or "top_k" in model.options else Path("predictions")

    shown = len(images) if folder is None else MAX_ROWS  # the others, if readable, are in the files
    rows: list[tuple[str, str | None, tuple[str, ...]]] = []
    data: list[Any] = []
    readable = 0

    # The files have all detections; the score is for what is shown and drawn.
    of_results = {name: value for name, value in options.items() if name != "score"}

    def results() -> Any:
        nonlocal readable
        for result in track(model.stream(images, args.batch_size, **of_results), len(images), "predicting"):
            readable += not result.error
            if args.json:
                data.append(model.to_dict(result, **options))
            elif result.error or len(rows) < shown:
                rows.append((result.id, result.error, model.row(result, **options)))
            yield result

    if folder is None:
        for _ in results():
            pass
        written = []
    else:
        _refuse_own_input(folder, images)
        written = model.save(results(), folder, images=images, **options)

    table = Table("image", *model.columns, box=None, header_style="bold")
    for id, error, cells in rows:
        table.add_row(id, *((styled(("unreadable", "red")), error) if error else cells))
    show: list[Any] = [table]
    if not args.json and len(images) > len(rows):
        show.append(f"images in the files only: {len(images) - len(rows):,}")
    if args.precision:
        show.append(describe_precision(model.precision, args.device))
    if written:
        show.append(f"written: {', '.join(map(str, written))}")
    return Output(data, show, 0 if readable else EXIT_ERROR)


def _videos(model: Any, videos: list[Path], args: Any, options: dict[str, Any]) -> Output:
    from ..data.files import relative_names
    from ..tasks.video import predict_video

    if "annotations" in options:
        raise ValueError("--annotations has the ids of images, and these are videos; omit it")
    if "draw" in options:
        raise ValueError("--draw is for images, and these are videos, of which results are always drawn; omit it")
    folder = args.out or Path("predictions")
    _refuse_own_input(folder, videos)
    stems: dict[Path, Path] = {}
    outputs = dict.fromkeys(videos, folder)
    if len({path.stem for path in videos}) < len(videos):  # into folders as they are in
        names = relative_names(videos)
        outputs = {path: folder / Path(name).parent for path, name in zip(videos, names, strict=True)}
    for path in videos:
        if (other := stems.setdefault(outputs[path] / path.stem, path)) is not path:
            raise ValueError(f"{other} and {path} have the same name; rename one, or predict them in separate calls")
    data: list[Any] = []
    show: list[Any] = [describe_precision(model.precision, args.device)] if args.precision else []
    for path in videos:
        with progress_callback(f"predicting {path.name}") as on_progress:
            written = predict_video(
                model,
                path,
                outputs[path],
                every=args.every or 1,
                batch_size=args.batch_size,
                on_progress=on_progress,
                **options,
            )
        frames = written[0].read_bytes().count(b"\n")
        data.append({"video": str(path), "frames": frames, "written": list(map(str, written))})
        show.append(f"{path}: {frames} frames; written: {', '.join(map(str, written))}")
    return Output(data, show)


def _refuse_own_input(folder: Path, images: list[Path]) -> None:
    """No input image may be overwritten by a result."""
    if inside := [path for path in images if folder.resolve() in path.resolve().parents]:
        raise ValueError(f"{inside[0]} is in the output folder {folder}; choose another with --out")
