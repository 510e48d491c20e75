"""``python -m soak COMMAND``."""

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

from .fuzz import Fuzzing, Inputs, judge, summary, work


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fuzz = commands.add_parser("fuzz", help="mutated inputs for every reader")
    fuzz.add_argument("--inputs", type=int, default=100_000, help="inputs in total; those done before count")
    fuzz.add_argument("--seed", type=int, default=0)
    fuzz.add_argument("--workers", type=int, default=2)
    fuzz.add_argument("--targets", nargs="*", default=[], help="names of targets; default: all")
    fuzz.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder of the report")
    kills = commands.add_parser("kills", help="runs that are killed, and continued")
    kills.add_argument("--kills", type=int, default=300, help="kills in total; those done before count")
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("--cifar10", metavar="DATA", help="only the recipe cifar10, with its data here, in one chain")
    kills.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder of the report")
    replay = commands.add_parser("replay", help="one input again, with its traceback")
    replay.add_argument("index", type=int)
    replay.add_argument("--seed", type=int, default=0)
    replay.add_argument("--targets", nargs="*", default=[])
    guided = commands.add_parser("guided", help="one target, guided by coverage (needs Atheris)")
    guided.add_argument("target")
    guided.add_argument("--runs", type=int, default=10_000)
    guided.add_argument("--out", type=Path, default=Path("runs/soak/guided"), help="folder of the input that failed")
    read = commands.add_parser("read", help="a file, e.g. one that failed")
    read.add_argument("target")
    read.add_argument("file", type=Path)
    worker = commands.add_parser("worker")
    worker.add_argument("seed", type=int)
    worker.add_argument("folder", type=Path)
    worker.add_argument("targets", nargs="*")
    args = parser.parse_args()
    if args.command == "worker":
        work(args.seed, args.folder, args.targets)
    elif args.command == "fuzz":
        report = Fuzzing(args.out, args.seed, args.targets, args.workers).run(args.inputs)
        for row in report["failures"]:
            print(f"{row['count']:6} x {row['target']}: {row['kind']}: {row['place']} (input {row['index']}): "
                  f"{row['message'][:200]!r}")  # fmt: skip
        print(summary(report))
        return 1 if report["failures"] else 0
    elif args.command == "kills":
        from . import kills as killed  # imports torch

        if args.cifar10:  # one run, killed so often
            cases = {"cifar10": killed.cifar10(args.cifar10)}
            killing = killed.Killing(args.out, args.seed, cases)
            report = killing.run(args.kills, per_chain=(args.kills, args.kills), within=1 / args.kills)
        else:
            report = killed.Killing(args.out, args.seed).run(args.kills)
        for row in report["failures"]:
            print(f"chain {row['chain']} ({row['case']}), {row['kills']} kills: {row['problem']}\n{row['output']}")
        print(killed.summary(report))
        return 1 if report["failures"] else 0
    elif args.command == "guided":
        from .guided import run

        run(args.target, args.runs, args.out)
    elif args.command == "replay":
        with tempfile.TemporaryDirectory() as folder:
            inputs = Inputs(args.seed, Path(folder), args.targets)
            target, path = inputs.write(args.index)
            return _show(target, path, Path(folder) / "case")
    else:
        from .targets import TARGETS

        return _show(TARGETS[args.target], args.file, args.file.parent)
    return 0


def _show(target, path: Path, folder: Path) -> int:  # type: ignore[no-untyped-def]
    print(f"{target.name}: {path.name}, {path.stat().st_size} bytes: {path.read_bytes()[:300]!r}")
    try:
        target.read(path)
    except Exception:
        traceback.print_exc()
    kind, place, message = judge(target.read, path, folder)
    print(kind, place, message)
    return 0 if kind in ("accepted", "refused") else 1


if __name__ == "__main__":
    sys.exit(main())
