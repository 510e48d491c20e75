"""``smt bench``."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from .common import EXIT_USAGE, Output, Parser, new_parser
from .forms import FORMS

if TYPE_CHECKING:
    from ..benchmark.cliffs import Cell
    from ..benchmark.compare import Contender, Result

HELP = "measure models side by side: images/s, latency, memory, share of the machine's peak"
EXAMPLES = """\
smt bench smt_tiny smt_tiny:fused convnext_tiny
smt bench smt_tiny:fused+compiled runs/finetune exports/smt_tiny --batch_size 1 4 16
smt bench smt_tiny swin_tiny_patch4_window7_224 --train --batch_size 8
smt bench --peers --out measured                   the models of the picture: accuracy against throughput
smt bench --cliffs                                 where a variant is slow for its work
smt bench --input smt_tiny --data MY_IMAGES        is training bound by the input or by the model?
"""
CLIFF_SIZES = (32, 64, 128, 224, 384, 512)
CLIFF_BATCHES = (1, 4, 16, 64)


def build_parser(words: list[str]) -> Parser:
    about = (
        f"{HELP}. Models take turns, in rounds, in one process; speeds are compared by their medians.\n"
        "A model is a name of timm's (random weights, which time the same), a run's folder, a checkpoint or an "
        "export's folder; forms of it are joined to it by a colon and a plus:\n"
    ) + "\n".join(f"  :{form:<14}{told}" for form, told in FORMS.items())
    parser = new_parser("bench", about, EXAMPLES, "smt bench MODEL[:FORM[+FORM]] ... [--OPTION VALUE ...]")
    parser.add_argument(
        "models", nargs="*", default=[], metavar="MODEL", help="what to measure; the others are related to the first"
    )
    parser.add_argument("--peers", action="store_true", help="add the models of the picture, SMT and others")
    parser.add_argument("--cliffs", action="store_true", help="time per operation over models, sizes and batches")
    parser.add_argument("--input", action="store_true", help="measure the training input beside the model's training")
    parser.add_argument("--train", action="store_true", help="time updates: forward, backward, AdamW")
    parser.add_argument(
        "--batch_size", type=int, nargs="+", help="images a call; default: 1 16, with --cliffs 1 4 16 64"
    )
    parser.add_argument("--size", type=int, nargs="+", help="side in pixels; default: the model's, with --cliffs many")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="as in a recipe")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=int | None, help="of torch, on a CPU; default: torch's own choice")
    parser.add_argument(
        "--allocator",
        choices=("big_blocks", "default"),
        default="big_blocks",
        help="glibc's, on a CPU: told to keep big blocks, as smt train tells it, or left alone",
    )
    parser.add_argument(
        "--rounds", type=int | None, help="turns of each model at each batch size; default: 5, with --cliffs 3"
    )
    parser.add_argument("--seconds", type=float | None, help="timed, a turn; default: 1, with --cliffs 0.1")
    parser.add_argument("--memory", type=bool, default=True, help="measure peak memory, a process for each model")
    parser.add_argument("--data", type=str | None, help="images for --input; default: JPEGs made for it")
    parser.add_argument("--workers", type=int, default=8, help="loader processes, for --input")
    parser.add_argument(
        "--out", type=Path, help="a folder for bench.json, table.md and, of known accuracies, bench.png"
    )
    return parser


def run(args: Any) -> Output:
    if args.peers:
        from ..benchmark.published import PEERS

        args.models = [*args.models, *(peer for peer in PEERS if peer not in args.models)]
    if args.cliffs and not args.models:
        from ..registry import VARIANTS

        args.models = list(VARIANTS)
    if not args.models or (args.cliffs and args.input):
        print("smt bench: error: name models, or one of --peers and --cliffs\nsee smt bench --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    if args.size and len(args.size) > 1 and not args.cliffs:
        raise ValueError(f"--size {' '.join(map(str, args.size))}: one size, but with --cliffs")
    if args.seconds is None:
        args.seconds = 0.1 if args.cliffs else 1.0
    if args.rounds is None:
        args.rounds = 3 if args.cliffs else 5
    _settle(args.device, args.threads, args.allocator)
    return _cliffs(args) if args.cliffs else _input(args) if args.input else _compare(args)


def _settle(device: str, threads: int | None, allocator: str) -> None:
    """What a process must be told before it measures."""
    import torch

    from ..engine.allocator import keep_big_blocks

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cpu" and allocator == "big_blocks":
        keep_big_blocks()


# --- models side by side


def _compare(args: Any) -> Output:
    from ..benchmark.compare import compare
    from ..benchmark.speed import matmul_peak

    batch_sizes = sorted(set(args.batch_size or (1, 16)))
    size = args.size[0] if args.size else None
    contenders = _load(args, size)
    memory = _peak_memory(args, batch_sizes, size) if args.memory else {}  # first: it fails sooner than timing ends
    peak = matmul_peak(args.precision, args.device)
    results = compare(
        contenders,
        batch_sizes,
        train=args.train,
        precision=args.precision,
        device=args.device,
        rounds=args.rounds,
        seconds=args.seconds,
        peak=peak,
        advance=_progress("round"),
    )
    results = [replace(result, peak_memory=memory.get((result.model, result.batch_size))) for result in results]
    about = _about(args)
    data = {**about, "peak_gflops": peak / 1e9, "results": [result.to_dict() for result in results]}
    columns, rows = _columns(results, args.train)
    show: list[Any] = [
        f"{_told(about)}\nthe machine's matrix products: {peak / 1e9:,.0f} GFLOP/s",
        _table(columns, rows),
    ]
    if args.out:
        text = f"{_told(about)}; {peak / 1e9:,.0f} GFLOP/s at matrix products\n\n{_markdown(columns, rows)}"
        show.append(_write(args.out, data, text, partial(_draw, results, about)))
    return Output(data, show)


def _load(args: Any, size: int | None) -> list["Contender"]:
    from .forms import load

    return [load(spelled, args.device, size) for spelled in args.models]


def _peak_memory(args: Any, batch_sizes: list[int], size: int | None) -> dict[tuple[str, int], int | None]:
    """Bytes that each model needs, by its spelling and the batch size."""
    from ..benchmark.memory import peak_memory

    found = {}
    for spelled in args.models:
        prepare = partial(
            _calls, spelled, batch_sizes, size, args.train, args.precision, args.device, args.threads, args.allocator
        )
        for batch_size, mark in zip(batch_sizes, peak_memory(prepare, args.device), strict=True):
            found[spelled, batch_size] = mark
    return found


def _calls(
    spelled: str,
    batch_sizes: Sequence[int],
    size: int | None,
    train: bool,
    precision: str,
    device: str,
    threads: int | None,
    allocator: str,
) -> list[Callable[[], object]]:
    """The calls of a model, by batch size, in a process that has nothing else to do."""
    import torch

    from ..benchmark.speed import inference, training_step
    from .forms import load

    _settle(device, threads, allocator)
    contender = load(spelled, device, size)
    form = training_step if train else inference
    return [
        form(contender.model, torch.randn(batch_size, *contender.input_size, device=device), precision)
        for batch_size in batch_sizes
    ]


def _columns(results: list["Result"], train: bool) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table."""
    columns = ["model", "pixels", "batch", "images/s", "speed", "p50 ms", "p90 ms", "p99 ms", "IQR ms", "GMAC",
               "params M"]  # fmt: skip
    columns += ["memory MB", "saved MB/image"] if train else ["memory MB"]
    rows = []
    for r in results:
        side = " x ".join(dict.fromkeys(map(str, r.input_size[1:])))
        row = [r.model, side, str(r.batch_size), f"{r.images_per_s:,.1f}", f"{r.ratio:.2f}"]
        row += [f"{value:.2f}" for value in (r.p50_ms, r.p90_ms, r.p99_ms, r.iqr_ms)]
        row += [_known(r.gmac, ".3g"), _known(r.parameters, ",.2f", 1e-6), _known(r.peak_memory, ",.0f", 1e-6)]
        row += [_known(r.saved_activations, ",.1f", 1e-6)] if train else []
        share = _known(r.share_of_peak, ".0f", 100)
        rows.append([*row, share and f"{share} %"])
    return [*columns, "of peak"], rows


def _known(value: float | None, form: str, factor: float = 1) -> str:
    return "" if value is None else format(factor * value, form)


def _draw(results: list["Result"], about: dict[str, Any], path: Path) -> str | None:
    """The picture of accuracy against throughput, of the models whose published accuracy belongs to what was run."""
    from .. import pictures
    from ..benchmark.published import PUBLISHED
    from ..registry import VARIANTS
    from .forms import parse

    panels: dict[str, list[pictures.SpeedPoint]] = {}
    for result in results:
        source, forms = parse(result.model)
        architecture = source.partition(".")[0]
        known = PUBLISHED.get(architecture)
        if known and result.input_size == (3, known.size, known.size):
            label = " ".join((known.label, *forms))
            point = pictures.SpeedPoint(label, result.images_per_s, known.top1, architecture in VARIANTS)
            panels.setdefault(f"batch {result.batch_size}", []).append(point)
    if about["mode"] != "inference" or not panels:
        return None
    told = f"throughput: {_told(about)}. Accuracy: the papers' own, not measured here."
    pictures.accuracy_and_throughput(panels, path, "Accuracy and throughput", told)
    return str(path)


# --- time per operation


def _cliffs(args: Any) -> Output:
    from ..benchmark.cliffs import STEEP, cliffs

    cells = cliffs(
        _load(args, None),
        args.size or CLIFF_SIZES,
        args.batch_size or CLIFF_BATCHES,
        train=args.train,
        precision=args.precision,
        device=args.device,
        rounds=args.rounds,
        seconds=args.seconds,
        advance=_progress("round"),
    )
    about = _about(args)
    columns = ["model", "pixels", "batch", "GMAC a call", "ms", "ps a MAC", "over the best"]
    rows = [_cliff_row(cell) for cell in cells]
    steep = [cell.gmac for cell in cells if cell.steep]
    verdict = f"{len(steep)} of {len(cells)} cells take over {STEEP:g} times the best one's time per operation" + (
        f", the largest of them a call of {max(steep):.3g} GMAC" if steep else ""
    )
    data = {**about, "steep": len(steep), "cells": [cell.to_dict() for cell in cells]}
    show: list[Any] = [_told(about), _table(columns, rows), verdict]
    if args.out:
        show.append(_write(args.out, data, f"{_told(about)}\n\n{_markdown(columns, rows)}\n{verdict}\n"))
    return Output(data, show)


def _cliff_row(cell: "Cell") -> list[str]:
    relative = f"{cell.relative:.2f}" + (" !" if cell.steep else "")
    per_mac = 1e12 * cell.seconds / (1e9 * cell.gmac)
    return [cell.model, str(cell.size), str(cell.batch_size), f"{cell.gmac:.3g}", f"{1e3 * cell.seconds:.2f}",
            f"{per_mac:.1f}", relative]  # fmt: skip


# --- input beside training


def _input(args: Any) -> Output:
    from ..benchmark.compare import compare
    from ..data.throughput import measure_input
    from ..recipes import Augment, Input
    from ..tasks.build import resolve_input

    if len(args.models) != 1 or (args.batch_size and len(args.batch_size) > 1):
        raise ValueError("--input measures one model at one batch size; name one of each")
    [contender] = _load(args, args.size[0] if args.size else None)
    [model] = compare(
        [contender],
        args.batch_size or [16],
        train=True,
        precision=args.precision,
        device=args.device,
        rounds=args.rounds,
        seconds=args.seconds,
        peak=1.0,
        advance=_progress("round"),
    )
    channels, size, _ = contender.input_size
    input = resolve_input(Input(size=size, channels=channels), contender.model)
    # Four pipelines and the loader: about as long for each as the model has had.
    speed = measure_input(args.data, input, Augment(), args.workers, model.batch_size, 5 * args.rounds * args.seconds)
    shared = args.device == "cpu" or speed.workers == 0
    told = balance(speed.images_per_s, model.images_per_s, shared)

    about = {**_about(args), "mode": "training"}
    rows = [
        ["input, one core, training", f"{speed.train.ours:,.1f}", _known(speed.train.ratio, ".2f")],
        ["input, one core, evaluation", f"{speed.evaluation.ours:,.1f}", _known(speed.evaluation.ratio, ".2f")],
        [f"input, loader with {speed.workers} workers", f"{speed.images_per_s:,.1f}", ""],
        [f"model, updates of {model.batch_size} images", f"{model.images_per_s:,.1f}", ""],
        ["both, expected", f"{told['together']:,.1f}", ""],
    ]
    columns = [f"{contender.name}, {size} pixels, {speed.source}", "images/s", "over timm's"]
    verdict = (
        f"the bottleneck is the {told['bottleneck']}: it takes {100 * told['share']:.0f} % of the time of training"
        + (", which shares its cores with the input" if shared else "")
    )
    data = {**about, "input": speed.to_dict(), "model": model.to_dict(), **told}
    show: list[Any] = [_told(about), _table(columns, rows), verdict]
    if args.out:
        show.append(_write(args.out, data, f"{_told(about)}\n\n{_markdown(columns, rows)}\n{verdict}\n"))
    return Output(data, show)


def balance(input: float, model: float, shared: bool) -> dict[str, Any]:
    """What training makes of the speeds, in images/s, that its input and its updates have by themselves.

    On one set of cores the two add up: an image takes the time of both. On two, the slower one decides.

    Returns:
        ``together``, images/s; ``bottleneck``, ``input`` or ``model``; ``share``, of the time that it works.
    """
    slower = min(input, model)
    together = 1 / (1 / input + 1 / model) if shared else slower
    return {"together": together, "bottleneck": "input" if input < model else "model", "share": together / slower}


# --- how results are shown


def _about(args: Any) -> dict[str, Any]:
    """What was measured, how, where and when."""
    import timm
    import torch

    from .. import __version__
    from ..engine.summary import hardware

    return {
        "mode": "training" if args.train else "inference",
        "precision": args.precision,
        "device": args.device,
        "allocator": args.allocator if args.device == "cpu" else None,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "hardware": hardware(),
        "versions": {"smt_vision": __version__, "torch": torch.__version__, "timm": timm.__version__},
        "weights": "random where a model is named, trained where a file is",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _told(about: dict[str, Any]) -> str:
    allocator = {"big_blocks": ", big blocks kept", "default": ", allocator left alone", None: ""}[about["allocator"]]
    return (
        f"{about['mode']}, {about['precision']}, {about['device']}{allocator}; {about['hardware']}; "
        f"torch {about['versions']['torch']}; {about['date'][:10]}"
    )


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write(folder: Path, data: Any, text: str, draw: Callable[[Path], str | None] = lambda path: None) -> str:
    """Write the folder of a result; returns the line that says so."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(text, encoding="utf-8")
    written = [str(folder / "bench.json"), str(folder / "table.md")]
    if drawn := draw(folder / "bench.png"):
        written.append(drawn)
    return escape(f"written: {', '.join(written)}")


def _progress(what: str) -> Callable[[int, int], None] | None:
    """Tells how far a measurement is, on a terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(
        f"\r{what} {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True
    )
