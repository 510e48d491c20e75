"""``smt study``."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..bounds import Count, OutputFolder, Processes, Seed
from ..text import printable, shell_word
from .common import EXIT_USAGE, Output, Parser, nearest, new_parser
from .console import PlainConsole
from .progress import progress_callback

if TYPE_CHECKING:
    from ..study.runner import Progress as CellProgress
    from ..study.study import Cell, Study

HELP = "train the variants of a study with several seeds, and report differences with intervals"
EXAMPLES = """\
smt study                                                 list the studies
smt study aggregation --data cifar10.tar.gz --dry-run     list its cells, with the estimated time
smt study aggregation --data cifar10.tar.gz --jobs 2      train the cells that have no result yet
smt study aggregation stacking --report                   write the report of what is finished
smt study my_study.py --run runs/mine                     a study of your own, see docs/guides/study.md
"""


def build_parser(words: list[str]) -> Parser:
    about = (
        f"{HELP}.\nEvery cell (variant, budget, seed) is a training run in a folder of its own; results are "
        "appended to results.jsonl as they come. The same command continues what was stopped."
    )
    parser = new_parser("study", about, EXAMPLES, "smt study [NAME or FILE.py ...] [--OPTION VALUE ...]")
    parser.add_argument("studies", nargs="*", default=[], metavar="STUDY", help="names, or files that define STUDY")
    parser.add_argument("--list", action="store_true", help="list the studies, or the cells of the named ones")
    parser.add_argument("--run", type=OutputFolder, help="folder of the runs and results; default: runs/study")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="PATH", help="the dataset; for studies on several, NAME=PATH of each"
    )
    parser.add_argument(
        "--jobs",
        type=Processes,
        default=1,
        help="cells at a time; one thread each on a CPU; with more jobs than GPUs, several share one",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="these variants only")
    parser.add_argument("--budgets", nargs="+", default=[], metavar="BUDGET", help="these budgets only")
    parser.add_argument("--seeds", type=Count | None, help="number of seeds, from 0; default: the study's")
    parser.add_argument(
        "--first_seed", type=Seed, default=0, help="skip the seeds before this one, e.g. those of another machine"
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="tiny cells on made-up images, in seconds, in runs/study_debug",
    )
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="list the cells and the estimated time")
    parser.add_argument(
        "--report",
        action="store_true",
        help="write the report of the results (without names: of all studies that have any); trains nothing",
    )
    parser.add_argument("--throughput", action="store_true", help="measure images/s of the models that have results")
    parser.add_argument("--results", nargs="+", type=Path, default=[], help="more results files, for the report")
    parser.add_argument("--out", type=OutputFolder | None, help="folder of the report; default: RUN/report")
    return parser


def run(args: Any) -> Output:
    from ..study.runner import run_cells, unique_cells

    args.run = args.run or Path("runs/study_debug" if args.debug else "runs/study")
    named = _studies(args.studies)
    if args.debug:
        named = [study.for_debugging() for study in named]
    studies = _chosen(named, args)
    if args.report and args.throughput:
        raise ValueError("--report and --throughput are two steps: measure first, then write the report")
    if (args.results or args.out) and not args.report:
        raise ValueError(f"{'--results' if args.results else '--out'} is for the report; add --report")
    if not args.studies and not args.report:
        steps = args.throughput, args.dry_run, args.debug
        choices = args.only, args.budgets, args.seeds, args.first_seed
        if any((*steps, *choices, args.data, args.jobs != 1)):
            raise ValueError("which studies? Name them: smt study NAME ...; without a name or option, all are listed")
    if (not args.studies and not args.report) or (args.list and not args.dry_run):
        return _listed(studies, args)
    if args.report:
        return _report(named, studies, args)
    cells = unique_cells(_ordered(studies, args.first_seed))
    data = _data(studies, args)
    if args.throughput:
        return _throughput(cells, data, args)
    if args.dry_run:
        return _dry_run(cells, data, args)
    files = [Path(name).resolve() for name in args.studies if name.endswith(".py")]
    with _display(json=args.json) as on_progress:
        results = run_cells(cells, args.run, data=data, files=files, jobs=args.jobs, on_progress=on_progress)
    rows = [{"cell": cell.label, "value": results[cell.key].value} for cell in cells]
    options = [*args.studies, *(["--debug"] if args.debug else []), "--run", str(args.run), "--report"]
    show = [f"all {len(cells)} cells are done; report: smt study {' '.join(map(shell_word, options))}"]
    return Output({"run": str(args.run), "cells": rows}, show)


def _studies(names: Sequence[str]) -> "list[Study]":
    """The named studies, or all that ship."""
    from ..study.file import study_from_file
    from ..study.studies import STUDIES

    found = []
    for name in names or STUDIES:
        if name.endswith(".py"):
            found.append(study_from_file(Path(name)))
        elif name in STUDIES:
            found.append(STUDIES[name])
        else:
            print(f"smt study: error: unknown study {name!r}{nearest(name, STUDIES)} (smt study lists them)",
                  file=sys.stderr)  # fmt: skip
            raise SystemExit(EXIT_USAGE)
    counts = Counter(study.name for study in found)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"several of these studies have the name {twice[0]!r}; give each a name of its own")
    return found


def _chosen(studies: "Sequence[Study]", args: Any) -> "list[Study]":
    """The studies, restricted to what the arguments name, without those that have none of it."""
    if args.report and args.first_seed:
        raise ValueError("--first_seed chooses the cells to train; a report has those of all seeds: omit --first_seed")
    for study in studies:
        if args.first_seed >= (count := args.seeds or study.seeds):
            raise ValueError(
                f"--first_seed {args.first_seed} leaves no seed of {study.name}, which has the seeds 0 to {count - 1}; "
                f"add e.g. --seeds {args.first_seed + 4}"
            )
    if args.report and args.only:
        raise ValueError(
            "--only chooses the variants to train; a report has all that have results, since verdicts are corrected "
            "for all comparisons of a study: omit --only"
        )
    _check_known("variant", args.only, [study.variants for study in studies], studies)
    _check_known("budget", args.budgets, [study.budgets for study in studies], studies)
    restricted = [_restricted(study, args) for study in studies]
    empty = [study for study in restricted if not (study.variants and study.budgets)]
    if args.studies and empty:
        names = args.budgets if empty[0].variants else args.only
        raise ValueError(f"{empty[0].name} has none of {', '.join(names)}; omit its name")
    return [study for study in restricted if study.variants and study.budgets]


def _check_known(what: str, names: Sequence[str], of_each: Sequence[Mapping[str, Any]],
                 studies: "Sequence[Study]") -> None:  # fmt: skip
    known = list(dict.fromkeys(name for of_one in of_each for name in of_one))
    owner = studies[0].name if len(studies) == 1 else "these studies"
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown {what} of {owner}: {name!r}{nearest(name, known)}; expected one of {', '.join(known)}"
            )


def _restricted(study: "Study", args: Any) -> "Study":
    """The study with the variants, budgets and seeds that the arguments name."""
    variants, budgets = _subset(study.variants, args.only), _subset(study.budgets, args.budgets)
    claims = tuple(
        replace(claim, than=than, published={name: claim.published[name] for name in than if name in claim.published})
        for claim in study.claims
        if (than := tuple(name for name in claim.than if name in variants)) and claim.better in variants
    )
    trend_from = {name: first for name, first in study.trend_from.items() if name in budgets and first in budgets}
    debug_variants = {name: values for name, values in study.debug_variants.items() if name in variants}
    return replace(
        study, variants=variants, budgets=budgets, claims=claims, seeds=args.seeds or study.seeds,
        debug_variants=debug_variants, trend_from=trend_from,
        reference_budgets=tuple(name for name in study.reference_budgets if name in budgets),
    )  # fmt: skip


def _subset(known: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if not names or name in names}


def _ordered(studies: "Sequence[Study]", first_seed: int) -> "list[Cell]":
    """The cells of all studies: the first budget of each before the second, and seed by seed."""
    rank = {(study.name, budget): i for study in studies for i, budget in enumerate(study.budgets)}
    cells = [cell for study in studies for cell in study.cells() if cell.recipe.seed >= first_seed]
    return sorted(cells, key=lambda cell: (rank[cell.study, cell.budget], cell.recipe.seed))


def _data(studies: "Sequence[Study]", args: Any) -> dict[str, str]:
    """Path of each dataset by the name that the recipes have for it."""
    from ..study.debug import write_debug_data

    if args.debug:
        folders = {study.name: str(write_debug_data(study.base, args.run / "debug_data")) for study in studies}
        return {name: folders[study.name] for study in studies for name in _datasets([study])}
    names = _datasets(studies)
    given = dict(entry.split("=", 1) for entry in args.data if entry.partition("=")[0] in names and "=" in entry)
    paths = [entry for entry in args.data if entry.partition("=")[0] not in given]
    if paths and (len(paths) > 1 or len(names) > 1):
        raise ValueError(
            f"invalid data={' '.join(args.data)}: these studies are on {', '.join(names)}; expected "
            f"{' '.join(f'{name}=PATH' for name in names)}"
        )
    return {**dict(zip(names, paths, strict=False)), **given}


def _datasets(studies: "Sequence[Study]") -> list[str]:
    """The names that the recipes of all cells have for their datasets."""
    return list(dict.fromkeys(cell.recipe.data for study in studies for cell in study.cells(seeds=1)))


def _listed(studies: "Sequence[Study]", args: Any) -> Output:
    from ..study.study import to_plain

    if args.studies:
        labels = [cell.label for cell in _ordered(studies, args.first_seed)]
        return Output(labels, [*labels])
    table = Table("study", "question", "variants", "budgets", "seeds", "data", box=None, header_style="bold")
    table.columns[0].no_wrap = True
    for study in studies:
        budgets = ", ".join(study.budgets)
        table.add_row(study.name, study.about, ", ".join(study.variants), budgets, str(study.seeds), study.base.data)
    return Output([to_plain(study) for study in studies], [table])


def _dry_run(cells: "Sequence[Cell]", data: Mapping[str, str], args: Any) -> Output:
    from ..study.estimate import estimate_seconds
    from ..study.results import RESULTS, read_results

    results = read_results([args.run / RESULTS])
    seconds = estimate_seconds(cells, results, data)
    rows = [{"cell": cell.label, "done": cell.key in results, "seconds": seconds.get(cell.key)} for cell in cells]
    show = [f"{cell.label}: {_duration(seconds[cell.key]) if cell.key in seconds else 'done'}" for cell in cells]
    total = sum(seconds.values()) / args.jobs
    show.append(f"{len(seconds)} of {len(cells)} cells to train, about {_duration(total)} with jobs={args.jobs}")
    return Output({"cells": rows, "seconds": total}, show)


def _report(named: "Sequence[Study]", studies: "Sequence[Study]", args: Any) -> Output:
    """The report of the restricted studies; trends and corrections are those of the whole ones, as they were named."""
    from ..study.report import training_commands, write_report
    from ..study.results import FAILURES, RESULTS, read_failures, read_results
    from ..study.statistics import summarize
    from ..study.throughput import read_throughput

    for path in args.results:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file; expected a results file of studies")
    results = read_results([args.run / RESULTS, *args.results])
    failed = read_failures(path.with_name(FAILURES) for path in [args.run / RESULTS, *args.results])
    whole = {study.name: study for study in named}
    summaries = {
        study.name: [
            summary
            for summary in summarize(whole[study.name], results, args.seeds, failed)
            if summary.budget in study.budgets
        ]
        for study in studies
    }
    studies = [study for study in studies if args.studies or summaries[study.name]]
    words = dict(zip(whole, args.studies or (name.removesuffix("_debug") for name in whole), strict=True))
    options = ["--run", str(args.run)]
    options += ["--seeds", str(args.seeds)] if args.seeds else []
    options += ["--debug"] if args.debug else []
    data = {} if args.debug else dict.fromkeys(_datasets(studies), "PATH")
    trained = training_commands([whole[study.name] for study in studies], summaries, words, options, data)
    chosen = [*(words[study.name] for study in studies), *options]
    chosen += ["--budgets", *args.budgets] if args.budgets else []
    command = "\n".join([*trained, f"smt study {' '.join(map(shell_word, chosen))} --report"])
    files = write_report(
        studies, summaries, args.out or args.run / "report", throughput=read_throughput(args.run), command=command
    )
    return Output([str(path) for path in files], [str(path) for path in files])


def _throughput(cells: "Sequence[Cell]", data: dict[str, str], args: Any) -> Output:
    from ..study.throughput import measure_throughput

    with progress_callback("timing") as on_progress:
        path = measure_throughput(cells, args.run, data=data, on_progress=on_progress)
    return Output(str(path), [str(path)])


@contextmanager
def _display(json: bool) -> "Iterator[Any]":
    """A callback that shows progress on standard error: bars on a terminal, a line per finished cell elsewhere."""
    console = PlainConsole(stderr=True)
    if not console.is_terminal:
        yield lambda progress: None if json else _print_events(progress, console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        total = bars.add_task("cells", total=None)
        tasks: dict[str, Any] = {}

        def on_progress(progress: "CellProgress") -> None:
            _print_events(progress, console)
            bars.update(total, completed=progress.done, total=progress.total)
            for label in tasks.keys() - progress.running.keys():
                bars.remove_task(tasks.pop(label))
            for label, fraction in progress.running.items():
                if label not in tasks:
                    tasks[label] = bars.add_task(printable(label), total=1.0)
                bars.update(tasks[label], completed=fraction)

        yield on_progress


def _print_events(progress: "CellProgress", console: PlainConsole) -> None:
    if progress.finished is not None:
        cell, result = progress.finished
        left = "" if progress.seconds_left is None else f"; about {_duration(progress.seconds_left)} left"
        console.print(
            f"[{progress.done}/{progress.total}] {cell.label}: {result.metric} {result.value:.2f} %, "
            f"{_duration(result.seconds)}{left}",
            soft_wrap=True,
        )
    if progress.failed is not None:
        cell, reason = progress.failed
        console.print(f"failed: {cell.label}: {reason}", soft_wrap=True)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
