"""Chains of runs that are killed at random moments, and compared with the run that is left alone.

Each run is a process of its own, forked from this one, so that a chain costs no imports. Kill ``i`` of a seed has the
same kind and delay each time; what the run was doing then depends on the machine.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from drawn_sets import scenes_recipe, shapes_recipe, write_scenes, write_shapes
from same_run import assert_same_run
from smt_vision import RECIPES
from smt_vision.engine.loop import train
from smt_vision.files import write_text_atomic
from smt_vision.recipe import Recipe
from smt_vision.tasks import TASKS, get_task
from tiny_run import MODEL_ARGS, tiny, write_split

REPORT = "kills.json"
RUN_LIMIT = 600.0  # seconds per run, after which it hangs
SAVING = 120.0  # seconds to wait for a checkpoint to be written


def _classification(folder: Path) -> Recipe:
    """Everything random that a run can have: augmentation, mixup, drop path; an average, and loader processes."""
    return tiny(
        write_split(folder),
        epochs=3,
        model_args={**MODEL_ARGS, "stem_stride": 2, "drop_path_rate": 0.3, "drop_rate": 0.1},
        input=dict(workers=2),
        augment=dict(
            crop="rrc", hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, mixup=0.2, cutmix=1.0
        ),
        engine=dict(ema=0.9, accumulate=2, checkpoint_minutes=0.0, loggers=()),
    )


def _detection(folder: Path) -> Recipe:
    return shapes_recipe(write_shapes(folder / "shapes"), epochs=3, ema=0.9, checkpoint_minutes=0.0, loggers=())


def _segmentation(folder: Path) -> Recipe:
    recipe = replace(scenes_recipe(write_scenes(folder), scale=(0.5, 2.0), photometric=True), epochs=4, batch_size=2)
    return replace(recipe, engine=replace(recipe.engine, ema=0.9, checkpoint_minutes=0.0, loggers=()))


CASES: dict[str, Callable[[Path], Recipe]] = {
    "classification": _classification,
    "detection": _detection,
    "segmentation": _segmentation,
}


def cifar10(data: str) -> Callable[[Path], Recipe]:
    """The recipe of that name on a twentieth of its images, for two epochs."""
    recipe = replace(RECIPES["cifar10"], data=data, epochs=2, train_fraction=0.05, batch_size=128)
    engine = replace(recipe.engine, accelerator="cpu", precision="32-true", checkpoint_minutes=0.0, loggers=())
    return lambda folder: replace(recipe, engine=engine, input=replace(recipe.input, workers=2))


@dataclass(frozen=True)
class Kill:
    """When a run is killed.

    Args:
        kind: ``time``: after a delay; ``step``: when the log has grown by a number of lines; ``save``: when a
            checkpoint is being written for the n-th time.
        number: Seconds, lines or times.
        delay: Seconds to wait then.
    """

    kind: str
    number: float
    delay: float


def draw_kill(rng: Random, seconds: float, lines: int) -> Kill:
    """A random moment within the first seconds and lines of a run."""
    kind = rng.choice(("time", "step", "save", "save"))
    number = {"time": rng.uniform(0, seconds), "step": rng.randint(1, lines), "save": rng.randint(1, 4)}[kind]
    return Kill(kind, number, 0.0 if kind == "time" else rng.choice((0.0, 0.001, 0.003, rng.uniform(0, 0.03))))


def start(recipe: Recipe, folder: Path) -> int:
    """Start the run in a process; returns its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        with open(folder.with_suffix(".txt"), "a") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        train(recipe, folder, display=False, command="smt train")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, limit: float = RUN_LIMIT) -> int:
    """The exit code of a process, negative for a signal; it is killed at the limit."""
    deadline = time.monotonic() + limit
    while (code := _exit_code(child)) is None:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return code


def kill_at(child: int, kill: Kill, folder: Path) -> int:
    """Kill a run at a moment; returns its exit code, which is not that of the signal if the run ended before."""
    log, written = folder / "log.jsonl", 0
    begin = time.monotonic()
    lines_before = _lines(log)
    was_saving = False
    leftover = _parts(folder)
    while (code := _exit_code(child)) is None:
        seconds = time.monotonic() - begin
        if kill.kind == "time":
            due = seconds >= kill.number
        elif kill.kind == "step":
            due = _lines(log) - lines_before >= kill.number
        else:
            saving = bool(_parts(folder) - leftover)
            written += saving and not was_saving
            was_saving = saving
            due = saving and written >= kill.number
        if due or seconds > SAVING:
            time.sleep(kill.delay)
            os.kill(child, signal.SIGKILL)
            return wait(child)
        time.sleep(0.0003)
    return code


def _exit_code(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _parts(folder: Path) -> set[str]:
    """Names of checkpoints that are being written."""
    return (
        {p.name for p in folder.iterdir() if p.name.startswith(".") and p.suffix == ".pt"} if folder.is_dir() else set()
    )


class Killing:
    """Chains of killed runs, continued where the report in the folder ends.

    Args:
        out: Folder of the report; runs and data are below it, and are removed where they are right.
        seed: Seed of all moments.
        cases: Recipes by name; each chain is one of them, in turn.
    """

    def __init__(self, out: Path, seed: int = 0, cases: dict[str, Callable[[Path], Recipe]] | None = None) -> None:
        self.out, self.seed, self.cases = out, seed, CASES if cases is None else cases
        self.report: dict[str, Any] = {"seed": seed, "kills": 0, "chains": 0, "seconds": 0.0, "by_case": {}, "by_moment": {},  # noqa: E501
                                       "failures": []}  # fmt: skip
        self._alone: dict[str, tuple[Recipe, Path, float]] = {}
        before = out / REPORT
        if before.is_file() and json.loads(before.read_text())["seed"] == seed:
            self.report = json.loads(before.read_text())
        torch.set_num_threads(1)
        for task in TASKS:
            get_task(task)  # imported once, before the forks

    def run(
        self, kills: int, per_chain: tuple[int, int] = (2, 8), within: float = 1.0, progress: bool = True
    ) -> dict[str, Any]:
        """Go on to this number of kills in total; returns the report.

        Args:
            kills: Kills in total.
            per_chain: Fewest and most kills of a chain; a run may come to its end before.
            within: Each kill comes within this fraction of the duration of the run that is left alone.
            progress: Print a line after each chain.
        """
        names = list(self.cases)
        while self.report["kills"] < kills:
            chain = self.report["chains"]
            name = names[chain % len(names)]
            began = time.monotonic()
            rng = Random(f"{self.seed}/{chain}")
            self._chain(name, chain, rng, min(rng.randint(*per_chain), kills - self.report["kills"]), within)
            self.report["chains"] += 1
            self.report["seconds"] = round(self.report["seconds"] + time.monotonic() - began, 1)
            write_text_atomic(self.out / REPORT, json.dumps(self.report, indent=1) + "\n")
            if progress:
                print(f"kills: {self.report['kills']} of {kills}, {chain + 1} chains, "
                      f"{len(self.report['failures'])} failures", flush=True)  # fmt: skip
        return self.report

    def _left_alone(self, name: str) -> tuple[Recipe, Path, float]:
        """The recipe of a case, the folder of the run that is left alone, and its duration in seconds."""
        if name not in self._alone:
            folder = self.out / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            recipe = self.cases[name](folder / "data")
            began = time.monotonic()
            if code := wait(start(recipe, folder / "alone")):
                raise RuntimeError(
                    f"the run that is left alone ended with {code}: {(folder / 'alone.txt').read_text()[-2000:]}"
                )
            self._alone[name] = recipe, folder / "alone", time.monotonic() - began
        return self._alone[name]

    def _chain(self, name: str, chain: int, rng: Random, count: int, within: float) -> None:
        recipe, alone, seconds = self._left_alone(name)
        folder = self.out / name / f"chain-{chain}"
        lines = _lines(alone / "log.jsonl")
        by_case, by_moment = Counter(self.report["by_case"]), Counter(self.report["by_moment"])
        done = 0
        problem = ""
        while done < count and not problem:
            kill = draw_kill(rng, within * seconds, max(1, int(within * lines // 2)))
            leftover = _parts(folder)
            code = kill_at(start(recipe, folder), kill, folder)
            if code == 0:  # it came to its end before
                break
            if code != -signal.SIGKILL:
                problem = f"run {done + 1} ended with {code}"
                break
            done += 1
            by_case[name] += 1
            by_moment[_moment(folder, leftover)] += 1
        self.report["kills"] += done
        self.report["by_case"], self.report["by_moment"] = dict(by_case), dict(by_moment)
        if not problem and (code := wait(start(recipe, folder))):
            problem = f"the last run ended with {code}"
        if not problem:
            problem = _difference(folder, alone)
        if problem:
            text = folder.with_suffix(".txt").read_text()[-3000:]
            self.report["failures"].append(
                {"case": name, "chain": chain, "kills": done, "problem": problem, "output": text}
            )
        else:
            shutil.rmtree(folder)
            folder.with_suffix(".txt").unlink()


def _moment(folder: Path, leftover: set[str]) -> str:
    """What a killed run was doing; ``leftover`` is what earlier ones had left behind."""
    if _parts(folder) - leftover:
        return "writing a checkpoint"
    return "training or evaluating" if (folder / "last.pt").exists() else "before the first checkpoint"


def _difference(folder: Path, alone: Path) -> str:
    """What differs between a chain's folder and that of the run that was left alone; empty if nothing does."""
    try:
        assert_same_run(alone, folder)
    except AssertionError as error:
        return f"differs from the run that was left alone: {str(error)[:500]}"
    if (folder / "metrics.json").read_bytes() != (alone / "metrics.json").read_bytes():
        return "another metrics.json"
    if names := sorted({path.name for path in folder.iterdir()} ^ {path.name for path in alone.iterdir()}):
        return f"other files: {', '.join(names)}"
    return ""


def summary(report: dict[str, Any]) -> str:
    """The line at the end."""
    moments = ", ".join(f"{count} {moment}" for moment, count in report["by_moment"].items())
    return (
        f"kills: {report['kills']} in {report['chains']} chains in {report['seconds']:.0f} s ({moments}); "
        f"{len(report['failures'])} chains differ from the run that was left alone"
    )
