"""``smt bench``."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..bounds import Count, OutputFolder, Processes, Seconds, Side
from .common import EXIT_USAGE, Output, Parser, new_parser
from .overrides import add_providers, providers_of
from .progress import progress_callback, track

if TYPE_CHECKING:
    from ..benchmark.compare import Candidate, Result

    Measured = tuple[list[Result], dict[str, str], float | None]

HELP = "compare models side by side: images/s, latency, memory, fraction of the machine's peak FLOP/s"
EXAMPLES = """\
smt bench smt_tiny smt_tiny:fused convnext_tiny
smt bench smt_tiny:fused+compiled runs/finetune exports/smt_tiny --batch_size 1 4 16
smt bench smt_tiny swin_tiny_patch4_window7_224 --train --batch_size 8 --precision bf16
smt bench --baselines --pairs --engine openvino --precision bf16 --out measured
smt bench smt_tiny:features+fused convnext_tiny:features --size 800 1280 --batch_size 1
"""


def build_parser(words: list[str]) -> Parser:
    from ..benchmark.model_spec import ENGINES, EXECUTION_VARIANTS

    about = (
        f"{HELP}.\nModels of one runtime are timed in turn, in rounds, in one process; speeds are ratios of medians. "
        "MODEL is a timm model name (random weights, which do not change the time), or a classifier's run folder, "
        "checkpoint or export folder. Execution variants are appended after a colon:\n"
    ) + "\n".join(f"  :{name:<14}{meaning}" for name, meaning in EXECUTION_VARIANTS.items())
    parser = new_parser("bench", about, EXAMPLES, "smt bench MODEL[:VARIANT[+VARIANT]] ... [--OPTION VALUE ...]")
    parser.add_argument("models", nargs="*", default=[], metavar="MODEL", help="speeds are relative to the first one")
    parser.add_argument("--baselines", action="store_true", help="add SMT and the baselines with published accuracies")
    parser.add_argument(
        "--skip_failures",
        action="store_true",
        help="report models that fail to run and continue, as for --baselines",
    )
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="time each model in a separate process together with the first one; slower, but accurate with many models",
    )
    parser.add_argument("--train", action="store_true", help="time training steps: forward, backward, AdamW")
    parser.add_argument("--batch_size", type=Count, nargs="+", default=[1, 16], help="images per call")
    parser.add_argument(
        "--size", type=Side, nargs="+", default=[],
        help="image side, or height and width, in pixels; default: the model's",
    )  # fmt: skip
    engines = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in ENGINES.items())
    parser.add_argument(
        "--engine", choices=tuple(ENGINES), default="eager",
        help=f"what runs the models, and in what precisions: {engines}",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "int8"), default="fp32",
        help="auto: bf16 if the engine and the processor have it; training in bf16 keeps weights in fp32",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    add_providers(parser)
    parser.add_argument(
        "--threads", type=Processes | None, help="PyTorch threads on a CPU; default: PyTorch's own choice"
    )
    parser.add_argument(
        "--allocator",
        choices=("large", "default"),
        default="large",
        help="glibc allocator on a CPU: keep large allocations for reuse, as smt train does, or its default",
    )
    parser.add_argument("--rounds", type=Count, default=5, help="turns of each model at each batch size")
    parser.add_argument("--seconds", type=Seconds, default=1.0, help="duration of a turn")
    parser.add_argument("--memory", type=bool, default=True, help="measure peak memory, in one process per model")
    parser.add_argument(
        "--out", type=OutputFolder, help="folder for bench.json, table.md and, if accuracies are published, bench.png"
    )
    return parser


def run(args: Any) -> Output:
    from ..benchmark.model_spec import engine_precision
    from ..benchmark.published import BASELINES
    from ..benchmark.report import conditions_line, failure_lines, measurement_conditions, result_table

    # What is fused is for inference only.
    known = [name.removesuffix(":fused") for name in BASELINES] if args.train else BASELINES
    baselines = [name for name in known if args.baselines and name not in args.models]
    if not args.models and not baselines:
        print("smt bench: error: expected MODEL or --baselines\nsee smt bench --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    if len(args.size) > 2:
        raise ValueError(f"invalid --size {' '.join(map(str, args.size))}: expected a side, or a height and a width")
    args.size = None if not args.size else (args.size[0], args.size[-1])
    if providers_of(args) and not any(_package(args, spec) == "onnxruntime" for spec in [*args.models, *baselines]):
        raise ValueError(
            f"--providers {args.providers} is for ONNX exports and --engine onnxruntime, and there is none; omit it"
        )
    batch_sizes = sorted(set(args.batch_size))
    configure_process(args.device, args.threads, args.allocator)
    measure = _in_pairs if args.pairs else _by_runtime
    results, failures, peak = measure(args, [*args.models, *baselines], batch_sizes)
    if not results:
        raise ValueError(f"no model runs in this way: {'; '.join(failure_lines(failures))}")
    conditions = measurement_conditions(
        mode="training" if args.train else "inference",
        engine=args.engine,
        precision=engine_precision(args.engine, args.precision, args.device),
        device=args.device,
        runtimes={package for result in results if (package := _package(args, result.model))},
        allocator=args.allocator if args.device == "cpu" else None,
        **({"providers": list(providers_of(args))} if args.providers else {}),
        rounds=args.rounds,
        seconds=args.seconds,
        weights="random for model names, trained for files",
        **({"pairs": True} if args.pairs else {}),
    )
    data = {**conditions, "peak_gflops": peak and peak / 1e9, "results": [result.to_dict() for result in results]}
    data |= {"failures": failures} if failures else {}
    exports = {result.model: result.exported for result in results if result.exported}
    data |= {"exports": exports} if exports else {}
    heading = [conditions_line(conditions), *failure_lines(failures)]
    heading += [f"{name}: an export, run by {format} in {precision}" for name, (format, precision) in exports.items()]
    heading += [f"peak of matrix products: {peak / 1e9:,.0f} GFLOP/s"] if peak else []
    show: list[Any] = [*heading, _table(*result_table(results, args.train))]
    if args.out:
        written = _write(args.out, data, "\n\n".join(heading), results, conditions)
        show.append(f"written: {', '.join(map(str, written))}")
    return Output(data, show)


def _package(args: Any, spec: str) -> str | None:
    """The package that runs a model; ``None`` for PyTorch."""
    from ..benchmark.model_spec import RUNTIMES
    from ..deploy.exported import RUNTIME_PACKAGES, Manifest, is_export

    if not is_export(spec):
        return args.engine if args.engine in RUNTIMES else None
    try:
        return RUNTIME_PACKAGES[Manifest.read(Path(spec).expanduser()).format]
    except ValueError:  # a damaged manifest, as loading it will say
        return None


def _by_runtime(args: Any, specs: list[str], batch_sizes: list[int]) -> "Measured":
    """As :func:`_together`; models of different runtimes one runtime after the other, each in a process of its own.

    In one process, the threads of a runtime wait actively for work while another one computes, which slows it down.
    """
    from ..benchmark.compare import relative_to_first
    from ..benchmark.memory import in_fresh_process

    groups: dict[str | None, list[str]] = {}
    for spec in specs:
        groups.setdefault(_package(args, spec), []).append(spec)
    if len(groups) == 1:
        return _together(args, specs, batch_sizes)
    results: list[Result] = []
    failures: dict[str, str] = {}
    peaks: list[float] = []
    for group in groups.values():
        try:
            measured, failed, peak = in_fresh_process(_in_process, args, group, batch_sizes)
        except RuntimeError as error:  # the process died
            measured, failed, peak = [], {spec: _reason(args, spec, error) for spec in group}, None
        results += measured
        failures |= failed
        peaks += [peak] if peak else []
    return relative_to_first(results, specs), failures, max(peaks, default=None)


def _together(args: Any, specs: list[str], batch_sizes: list[int]) -> "Measured":
    """Results of all models in this process, the reasons why models do not run in this way, and the machine's peak."""
    from ..benchmark.compare import compare
    from ..benchmark.model_spec import engine_precision
    from ..benchmark.timing import matmul_peak

    candidates, failures = _candidates(args, specs, batch_sizes)
    if not candidates:
        return [], failures, None
    memory: dict[tuple[str, int], int | None] = {}
    if args.memory:  # before timing, which takes longer to fail
        memory = _peak_memory(args, [candidate.name for candidate in candidates], batch_sizes, failures)
        candidates = [candidate for candidate in candidates if candidate.name not in failures]
        if not candidates:
            return [], failures, None
    precision = engine_precision(args.engine, args.precision, args.device)
    peak = None if precision == "int8" else matmul_peak(precision, args.device)
    with progress_callback("rounds") as on_progress:
        results = compare(
            candidates,
            batch_sizes,
            train=args.train,
            precision=precision,
            device=args.device,
            rounds=args.rounds,
            seconds=args.seconds,
            peak=peak,
            on_progress=on_progress,
        )
    results = [replace(result, peak_memory=memory.get((result.model, result.batch_size))) for result in results]
    return results, failures, peak


def _in_pairs(args: Any, specs: list[str], batch_sizes: list[int]) -> "Measured":
    """As :func:`_together`, each model in a process of its own beside the first one."""
    from ..benchmark.compare import combine_pairs
    from ..benchmark.memory import in_fresh_process

    first, *others = specs
    if not others:
        raise ValueError("--pairs compares models with the first one: expected two models or more")
    pairs: list[list[Result]] = []
    failures: dict[str, str] = {}
    peaks: list[float] = []
    for spec in track(others, len(others), "pairs"):
        try:
            if _package(args, first) == _package(args, spec):
                results, failed, peak = in_fresh_process(_in_process, args, [first, spec], batch_sizes)
            else:
                results, failed, peak = _by_runtime(args, [first, spec], batch_sizes)
        except RuntimeError as error:  # the process died
            failures[spec] = _reason(args, spec, error)
            continue
        if first in failed:
            raise ValueError(f"{first}: {failed[first]}")
        failures |= failed
        pairs += [results]
        peaks += [peak] if peak else []
    return combine_pairs(pairs, peaks), failures, max(peaks, default=None)


def _in_process(args: Any, specs: list[str], batch_sizes: list[int]) -> "Measured":
    configure_process(args.device, args.threads, args.allocator)
    return _together(args, specs, batch_sizes)


def configure_process(device: str, threads: int | None, allocator: str) -> None:
    """Set threads and allocator, in every process that measures."""
    import torch

    from ..allocator import keep_large_allocations

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cpu" and allocator == "large":
        keep_large_allocations()


def _candidates(args: Any, specs: list[str], batch_sizes: list[int]) -> tuple[list["Candidate"], dict[str, str]]:
    """The models, and the reasons why some do not run in this way, by name."""
    from ..benchmark.candidates import load_candidate, run_once
    from ..benchmark.model_spec import engine_precision

    precision = engine_precision(args.engine, args.precision, args.device)
    load = partial(
        load_candidate,
        device=args.device,
        size=args.size,
        engine=args.engine,
        precision=args.precision,
        train=args.train,
        providers=providers_of(args),
    )
    candidates: list[Candidate] = []
    failures: dict[str, str] = {}
    for spec in track(specs, len(specs), "loading"):
        try:
            candidate = load(spec)
            run_once(candidate, batch_sizes, args.device, train=args.train, precision=precision)
            candidates.append(candidate)
        except Exception as error:  # exporters and runtimes raise almost any
            failures[spec] = _reason(args, spec, error)
    return candidates, failures


def _reason(args: Any, spec: str, error: Exception) -> str:
    """Why a model does not run, if that may be; else the error is raised."""
    if spec in args.models and not args.skip_failures:
        raise error
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _peak_memory(
    args: Any, models: list[str], batch_sizes: list[int], failures: dict[str, str]
) -> dict[tuple[str, int], int | None]:
    """Peak memory in bytes by model and batch size; the reason is added to ``failures`` where it cannot be measured."""
    import torch

    from ..benchmark.candidates import candidate_peak_memory
    from ..benchmark.memory import forget_peak

    measure = partial(
        candidate_peak_memory,
        batch_sizes=batch_sizes,
        size=args.size,
        train=args.train,
        engine=args.engine,
        precision=args.precision,
        device=args.device,
        providers=providers_of(args),
        setup=partial(configure_process, args.device, args.threads, args.allocator),
    )
    forget_peak(torch.device(args.device))  # the other process needs the memory that the first calls here left cached
    found: dict[tuple[str, int], int | None] = {}
    for spec in track(models, len(models), "peak memory"):
        try:
            found |= {(spec, batch_size): peak for batch_size, peak in measure(spec).items()}
        except RuntimeError as error:  # the process died
            failures[spec] = _reason(args, spec, error)
    return found


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _write(
    folder: Path, data: dict[str, Any], heading: str, results: list["Result"], conditions: dict[str, Any]
) -> list[Path]:
    from ..benchmark.picture import plot_accuracy_and_throughput, speed_points
    from ..benchmark.report import conditions_line, markdown_table, result_table, write_json

    training = conditions["mode"] == "training"
    written = [write_json(data, folder / "bench.json"), folder / "table.md"]
    written[1].write_text(f"{heading}\n\n{markdown_table(*result_table(results, training))}", encoding="utf-8")
    if not training and (panels := speed_points(results)):
        footnote = f"Throughput: {conditions_line(conditions)}. Accuracy: as published, not measured here."
        title = f"Accuracy and throughput: {conditions['engine']}, {conditions['precision']}"
        plot_accuracy_and_throughput(panels, folder / "bench.png", title, footnote)
        written.append(folder / "bench.png")
    return written
