"""Fuzzing: mutated inputs for every reader, in worker processes that may crash, hang or run out of memory.

Input ``i`` of a seed is a pure function of both: its target, its example and its mutation. What a reader may do with
it is to accept it, or to raise ``ValueError`` or ``OSError`` with a message that names the file. Everything else is a
failure.
"""

import ctypes
import json
import math
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
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, TextIO

from smt_vision.files import write_text_atomic

TIME_LIMIT = 20.0  # seconds to read an input, after which it hangs
WRITING_LIMIT = 300.0  # seconds to make it
MAX_ALLOCATED = 6144  # MiB that one input may allocate; what is touched of it is limited per target
MAX_GROWTH = 128  # MiB that a worker may hold more after LIFE inputs than after WARM_UP
WARM_UP, LIFE = 1000, 10_000  # inputs of a worker's child
CLOSED, USED_UP = 70, 71  # exit codes of a child
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
        index: The first input with this failure; negative for the corpus, from its end.
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
        from .corpus import corpus  # import torch
        from .targets import TARGETS

        self.seed, self.folder = seed, folder
        self.targets = [TARGETS[name] for name in names or TARGETS]
        self._shares = [target.share for target in self.targets]
        self._by_name = {target.name: target for target in self.targets}
        self.examples: dict[str, list[Any]] = {}
        for target in self.targets:
            (folder / target.name).mkdir()
            self.examples[target.name] = list(target.examples(folder / target.name))
        self.corpus = corpus(self.examples)
        self.case = folder / "case"

    def write(self, index: int) -> tuple[Any, Path]:
        """Write an input; returns its target and the path of its foreign file.

        Args:
            index: Of the input; negative for the corpus, from its end.
        """
        if index < 0:
            name, _, example = self.corpus[index]
            return self._by_name[name], self.write_example(example)
        rng = Random(f"{self.seed}/{index}")
        (target,) = rng.choices(self.targets, self._shares)
        examples = self.examples[target.name]
        number = rng.randrange(len(examples))
        example = examples[number]
        content = example.files[example.foreign]
        try:
            content = rng.choice(target.mutators)(content, rng)
        except Exception:  # a mutation that cannot be written down, e.g. text that is not Unicode
            content = content[: rng.randrange(len(content) + 1)]
        return target, self.write_example(replace(example, files={**example.files, example.foreign: content}))

    def write_example(self, example: Any) -> Path:
        """Write an example into an empty folder; returns the path of its foreign file."""
        shutil.rmtree(self.case, ignore_errors=True)
        for name, data in example.files.items():
            path = self.case / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        path: Path = self.case / example.foreign
        return path


def work(seed: int, folder: Path, names: Sequence[str]) -> None:
    """A worker: children of it read an index per line from the standard input, and write lines of JSON.

    The lines are the size of the corpus; the process id of each child; per input, the target and the file before it is
    read, and the result then; and how a child died.
    """
    import logging
    import warnings

    out = os.fdopen(os.dup(1), "w", buffering=1)
    with open(folder / "output.txt", "w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    inputs = Inputs(seed, folder, names)
    print(len(inputs.corpus), file=out)
    code = 0
    while code != CLOSED:  # imports and examples are made once; what ends a child costs a fork
        if not (child := os.fork()):
            try:
                os._exit(_serve(inputs, out))
            finally:  # an error of the fuzzer's own
                traceback.print_exc()
                os._exit(1)
        print(child, file=out)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (CLOSED, USED_UP):
            print(json.dumps(["died", code]), file=out)


def _serve(inputs: Inputs, out: TextIO) -> int:
    """Read inputs until the standard input is closed, or LIFE inputs are read."""
    for count in range(1, LIFE + 1):
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := os.read(0, 1)):
                return CLOSED
            line += byte
        target, path = inputs.write(int(line))
        print(json.dumps([target.name, str(path.relative_to(inputs.case))]), file=out)
        with _Memory() as memory:
            result = judge(target.read, path, inputs.case)
        if memory.growth > target.memory and result[0] in ("accepted", "refused"):
            result = "memory", f"more than {target.memory} MiB", f"{memory.growth} MiB; {result[2]}"
        held = _held_mib() if count % WARM_UP == 0 else None
        print(json.dumps([*result, count, held]), file=out)
    return USED_UP


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
    """A worker process, as :func:`work` describes it."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="soak-"))
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": path}
        words = [sys.executable, "-m", "soak", "worker", str(seed), str(self.folder), *names]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, env=environment, bufsize=0)
        self.corpus: int | None = None  # number of its entries, once the worker is ready
        self.child = 0
        self.index: int | None = None
        self.target, self.file = "", ""
        self.deadline = math.inf
        self.held = 0
        self._rest = b""

    def send(self, index: int) -> None:
        assert self.process.stdin is not None
        self.index, self.target = index, ""
        self.deadline = time.monotonic() + WRITING_LIMIT
        self.process.stdin.write(f"{index}\n".encode())

    def read(self) -> list[Any]:
        """The lines that have arrived."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            raise RuntimeError(f"a worker ended: {(self.folder / 'output.txt').read_text()[-2000:]}")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        if self.child:
            with suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
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
        self.done, self.corpus, self.seconds, self.growth = 0, 0, 0.0, 0
        before = out / REPORT
        if before.is_file():
            report = json.loads(before.read_text())
            if (report["seed"], report["targets"]) == (seed, self.names):
                self.done, self.corpus = report["inputs"], report["corpus"]
                self.seconds, self.growth = report["seconds"], report["growth_mib"]
                self.counts = {name: Counter(counts) for name, counts in report["by_target"].items()}
                for row in report["failures"]:
                    count = row.pop("count")
                    failure = Failure(**row)
                    self.failures[failure.kind, failure.target, failure.place] = [failure, count]

    def run(self, inputs: int, progress: bool = True) -> dict[str, Any]:
        """Run up to this number of inputs in total, and the corpus if it is new; returns the report."""
        start, before, shown = time.monotonic(), self.seconds, 0.0
        pending: Iterator[int] = iter(range(self.done, inputs))
        selector = selectors.DefaultSelector()
        workers = [_Worker(self.seed, self.names) for _ in range(self.workers if self.done < inputs else 0)]
        for worker in workers:
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        active = set(workers)
        try:
            while active:
                for key, _ in selector.select(timeout=0.5):
                    worker = key.data
                    for line in worker.read():
                        if worker.corpus is None:
                            worker.corpus = line
                            if not self.done and not self.corpus:
                                self.corpus = line
                                pending = chain(range(-line, 0), pending)
                            continue
                        if isinstance(line, int):
                            worker.child = line
                        elif not worker.target and line[0] != "died":
                            worker.target, worker.file = line
                            worker.deadline = time.monotonic() + TIME_LIMIT
                        elif line[0] == "died":
                            is_late = time.monotonic() > worker.deadline
                            name = signal.Signals(-line[1]).name if line[1] < 0 else f"exit code {line[1]}"
                            late = "hang", f"more than {TIME_LIMIT:g} s"
                            self._finish(worker, *(late if is_late else ("crash", name)), "", 0, None)
                        else:
                            self._finish(worker, *line)
                        if worker.index is None and worker in active and (isinstance(line, int) or line[0] != "died"):
                            index = next(pending, None)
                            if index is None:
                                active.remove(worker)
                            else:
                                worker.send(index)
                for worker in active:
                    if worker.index is not None and time.monotonic() > worker.deadline:
                        with suppress(ProcessLookupError):
                            os.kill(worker.child, signal.SIGKILL)
                self.seconds = before + time.monotonic() - start
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    self.write()
                    if progress:
                        print(f"fuzz: {self.done:,} of {inputs:,} inputs, {self.done / self.seconds:.0f} per second, "
                              f"{len(self.failures)} kinds of failures", flush=True)  # fmt: skip
        finally:
            for worker in workers:
                worker.close()
        return self.write()

    def _finish(self, worker: _Worker, kind: str, place: str, message: str, count: int, held: int | None) -> None:
        assert worker.index is not None
        self.done += worker.index >= 0
        self._add(worker, kind, place, message)
        if held is not None:
            worker.held = held if count == WARM_UP else worker.held
            growth = held - worker.held
            self.growth = max(self.growth, growth)
            if growth > MAX_GROWTH:
                self._add(worker, "growth", f"more than {MAX_GROWTH} MiB", f"{growth} MiB after {count} inputs")
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
            "corpus": self.corpus,
            "seconds": round(self.seconds, 1),
            "growth_mib": self.growth,
            "time_limit_s": TIME_LIMIT,
            "by_target": {name: dict(counts) for name, counts in sorted(self.counts.items())},
            "failures": [{**asdict(failure), "count": count} for failure, count in self.failures.values()],
        }
        write_text_atomic(self.out / REPORT, json.dumps(report, indent=1) + "\n")
        return report


def summary(report: dict[str, Any]) -> str:
    """The line at the end."""
    failed = sum(row["count"] for row in report["failures"])
    kinds = Counter(row["kind"] for row in report["failures"])
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    return (
        f"fuzz: {report['inputs']:,} inputs and a corpus of {report['corpus']} in {report['seconds']:.0f} s, {failed} failed; kinds: {named}; "  # noqa: E501
        f"memory grew by {report['growth_mib']} MiB at most"
    )
