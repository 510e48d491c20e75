"""Fuzzing: mutated inputs for every reader, in worker processes that may crash, hang or run out of memory.

Input ``i`` of a seed is a pure function of both: its target, its example and its mutation. What a reader may do with it is
to accept it, or to raise ``ValueError`` or ``OSError`` with a message that names the file. Everything else is a failure.
"""

import ctypes
import json
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from smt_vision.files import write_text_atomic

TIME_LIMIT = 30.0  # seconds per input, after which it hangs
MAX_ALLOCATED = 6144  # MiB that one input may allocate; what is touched of it is limited per target
MAX_GROWTH = 128  # MiB that a worker may hold more after LIFE inputs than after WARM_UP
WARM_UP, LIFE = 1000, 10_000  # inputs of a worker
MAX_MESSAGE = 20_000  # characters of an error
PACKAGE = "smt_vision"
REPORT = "fuzz.json"


@dataclass(frozen=True)
class Failure:
    """What a reader must not do.

    Args:
        kind: ``exception``, ``message`` (the error does not name the file, or is endless), ``memory``, ``hang``,
            ``crash`` or ``growth``.
        target: Name of the target.
        place: Exception and innermost function of the package, or a description.
        message: The error.
        index: The first input with this failure.
    """

    kind: str
    target: str
    place: str
    message: str
    index: int


def judge(read: Callable[[Path], object], path: Path, folder: Path) -> tuple[str, str, str]:
    """Read a file; returns ``accepted`` or ``refused``, or the kind, place and message of a failure."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        if not any(name in message for name in (path.name, path.stem, str(folder))) and path.name != "words.json":
            return "message", _place(error), message
        if len(message) > MAX_MESSAGE:
            return "message", f"{_place(error)}: {len(message)} characters", message[:500]
        return "refused", "", message
    except MemoryError as error:
        return "memory", _place(error), str(error)
    except Exception as error:
        kind = "memory" if "allocate memory" in str(error) else "exception"
        return kind, _place(error), f"{type(error).__name__}: {str(error)[:500]}"
    return "accepted", "", ""


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"/{PACKAGE}/" in frame.filename]
    frame = (ours or list(frames))[-1]
    return f"{type(error).__name__} in {frame.filename.rpartition(f'/{PACKAGE}/')[2]}, {frame.name}"


class Inputs:
    """The inputs of a seed, written to a folder.

    Args:
        seed: Seed of all inputs.
        folder: Folder for the examples and the inputs.
        names: Names of the targets; all by default.
    """

    def __init__(self, seed: int, folder: Path, names: Sequence[str] = ()) -> None:
        from .targets import TARGETS  # imports torch

        self.seed, self.folder = seed, folder
        self.targets = [TARGETS[name] for name in names or TARGETS]
        self._shares = [target.share for target in self.targets]
        self._examples: dict[str, list[Any]] = {}
        self._case, self._last = folder / "case", ("", -1, "")

    def write(self, index: int) -> tuple[Any, Path]:
        """Write an input; returns its target and the path of its foreign file."""
        rng = Random(f"{self.seed}/{index}")
        (target,) = rng.choices(self.targets, self._shares)
        if target.name not in self._examples:
            support = self.folder / target.name
            support.mkdir()
            self._examples[target.name] = list(target.examples(support))
        examples = self._examples[target.name]
        number = rng.randrange(len(examples))
        example = examples[number]
        content = example.files[example.foreign]
        try:
            content = rng.choice(target.mutators)(content, rng)
        except Exception:  # a mutation that cannot be written down, e.g. text that is not Unicode
            content = content[: rng.randrange(len(content) + 1)]
        # The reader may have changed the folder: it is written anew, except after another input of the same file.
        if self._last != (target.name, number, "clean"):
            shutil.rmtree(self._case, ignore_errors=True)
            for name, data in example.files.items():
                path = self._case / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        self._last = target.name, number, "clean" if len(example.files) == 1 else ""
        path = self._case / example.foreign
        path.write_bytes(content)
        return target, path


def work(seed: int, folder: Path, names: Sequence[str]) -> None:
    """A worker: reads an index per line from the standard input, writes a line of JSON per input."""
    import logging
    import warnings

    out = os.fdopen(os.dup(1), "w", buffering=1)
    with open(folder / "output.txt", "w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    inputs = Inputs(seed, folder, names)
    print("ready", file=out)
    for count, line in enumerate(iter(sys.stdin.readline, ""), start=1):
        target, path = inputs.write(int(line))
        print(json.dumps([target.name, str(path.relative_to(folder / "case"))]), file=out)
        with _Memory() as memory:
            result = judge(target.read, path, folder / "case")
        if memory.growth > target.memory and result[0] in ("accepted", "refused"):
            result = "memory", f"more than {target.memory} MiB", f"{memory.growth} MiB; {result[2]}"
        held = _held_mib() if count % WARM_UP == 0 else None
        print(json.dumps([*result, held]), file=out)


class _Memory:
    """Peak growth of the process's resident memory in MiB; what it allocates is limited to MAX_ALLOCATED."""

    growth = 0

    def __enter__(self) -> "_Memory":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.before = _status_mib("VmRSS")
        _, self.hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, ((_status_mib("VmData") + MAX_ALLOCATED) << 20, self.hard))
        return self

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (self.hard, self.hard))
        self.growth = _status_mib("VmHWM") - self.before


def _status_mib(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status[status.index(f"{field}:") :].split(maxsplit=2)[1]) >> 10


def _held_mib() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    return _status_mib("VmRSS")


class _Worker:
    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="soak-"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        words = [sys.executable, "-m", "soak", "worker", str(seed), str(self.folder), *names]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, env=environment, bufsize=0)
        self.index: int | None = None
        self.target, self.file = "", ""
        self.deadline = time.monotonic() + 10 * TIME_LIMIT
        self.lines: list[bytes] = []
        self.rest = b""
        self.count = 0
        self.held: list[int] = []

    def send(self, index: int) -> None:
        assert self.process.stdin is not None
        self.index, self.target = index, ""
        self.deadline = time.monotonic() + TIME_LIMIT + (60 if self.count < WARM_UP else 0)  # examples are made
        self.process.stdin.write(f"{index}\n".encode())

    def read(self) -> Iterator[Any] | None:
        """Lines that have arrived; ``None`` at the end of the process."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return (json.loads(line) if line != b"ready" else None for line in lines)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Fuzzing:
    """A run of the fuzzer, which continues where the report in its folder ends.

    Args:
        out: Folder of the report and of the inputs that failed.
        seed: Seed of all inputs.
        names: Names of the targets; all by default.
        workers: Number of worker processes.
    """

    def __init__(self, out: Path, seed: int = 0, names: Sequence[str] = (), workers: int = 2) -> None:
        self.out, self.seed, self.names, self.workers = out, seed, list(names), workers
        self.counts: dict[str, Counter[str]] = {}
        self.failures: dict[tuple[str, str, str], list[Any]] = {}  # failure and number of inputs
        self.done, self.seconds, self.growth = 0, 0.0, 0
        before = out / REPORT
        if before.is_file():
            report = json.loads(before.read_text())
            if (report["seed"], report["targets"]) == (seed, self.names):
                self.done, self.seconds, self.growth = report["inputs"], report["seconds"], report["growth_mib"]
                self.counts = {name: Counter(counts) for name, counts in report["by_target"].items()}
                for row in report["failures"]:
                    count = row.pop("count")
                    failure = Failure(**row)
                    self.failures[failure.kind, failure.target, failure.place] = [failure, count]

    def run(self, inputs: int, progress: bool = True) -> dict[str, Any]:
        """Run up to this number of inputs in total; returns the report."""
        start, before, shown = time.monotonic(), self.seconds, 0.0
        pending = iter(range(self.done, inputs))
        selector = selectors.DefaultSelector()
        active: list[_Worker] = []

        def open_worker() -> None:
            worker = _Worker(self.seed, self.names)
            active.append(worker)
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

        def close_worker(worker: _Worker) -> None:
            selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
            active.remove(worker)
            worker.close()

        def replace(worker: _Worker, kind: str, place: str) -> None:
            if worker.index is None:
                raise RuntimeError(f"a worker could not start: {(worker.folder / 'output.txt').read_text()[-2000:]}")
            self._add(worker, kind, place, "")
            self.done += 1
            close_worker(worker)
            open_worker()

        for _ in range(self.workers if self.done < inputs else 0):
            open_worker()
        try:
            while active:
                for key, _ in selector.select(timeout=0.5):
                    worker = key.data
                    lines = worker.read()
                    if lines is None:
                        code = worker.process.wait()
                        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                        replace(worker, "crash", name)
                        continue
                    for line in lines:
                        if line is not None and not worker.target:
                            worker.target, worker.file = line
                            continue
                        if line is not None:
                            self._finish(worker, *line)
                        index = next(pending, None)
                        if index is None or worker.count >= LIFE:
                            close_worker(worker)
                            if index is not None:
                                open_worker()
                                pending = _chain(index, pending)
                            break
                        worker.send(index)
                for worker in list(active):
                    if time.monotonic() > worker.deadline:
                        replace(worker, "hang", f"more than {TIME_LIMIT:g} s")
                self.seconds = before + time.monotonic() - start
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    self.write()
                    if progress:
                        print(f"fuzz: {self.done:,} of {inputs:,} inputs, {self.done / self.seconds:.0f} per second, "
                              f"{len(self.failures)} kinds of failures", flush=True)  # fmt: skip
        finally:
            for worker in list(active):
                close_worker(worker)
        return self.write()

    def _finish(self, worker: _Worker, kind: str, place: str, message: str, held: int | None) -> None:
        worker.count += 1
        self.done += 1
        self._add(worker, kind, place, message)
        if held is not None:
            worker.held.append(held)
            growth = held - worker.held[0]
            self.growth = max(self.growth, growth)
            if growth > MAX_GROWTH:
                self._add(worker, "growth", f"more than {MAX_GROWTH} MiB", f"{growth} MiB after {worker.count} inputs")
        worker.index, worker.target = None, ""

    def _add(self, worker: _Worker, kind: str, place: str, message: str) -> None:
        assert worker.index is not None
        counts = self.counts.setdefault(worker.target, Counter())
        counts[kind if kind in ("accepted", "refused") else "failed"] += 1
        if kind in ("accepted", "refused"):
            return
        key = kind, worker.target, place
        if key in self.failures:
            self.failures[key][1] += 1
            return
        self.failures[key] = [Failure(kind, worker.target, place, message, worker.index), 1]
        case = worker.folder / "case" / worker.file
        if case.is_file():
            folder = self.out / "failures" / f"{worker.target.replace(' ', '_')}-{worker.index}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(case, folder / case.name)

    def write(self) -> dict[str, Any]:
        """Write the report."""
        report = {
            "seed": self.seed,
            "targets": self.names,
            "inputs": self.done,
            "seconds": round(self.seconds, 1),
            "growth_mib": self.growth,
            "time_limit_s": TIME_LIMIT,
            "by_target": {name: dict(counts) for name, counts in sorted(self.counts.items())},
            "failures": [{**asdict(failure), "count": count} for failure, count in self.failures.values()],
        }
        write_text_atomic(self.out / REPORT, json.dumps(report, indent=1) + "\n")
        return report


def _chain(first: int, rest: Iterator[int]) -> Iterator[int]:
    yield first
    yield from rest


def summary(report: dict[str, Any]) -> str:
    """The line at the end."""
    failed = sum(row["count"] for row in report["failures"])
    kinds = Counter(row["kind"] for row in report["failures"])
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    return (
        f"fuzz: {report['inputs']:,} inputs in {report['seconds']:.0f} s, {failed} failed; kinds: {named}; "
        f"memory grew by {report['growth_mib']} MiB at most"
    )
