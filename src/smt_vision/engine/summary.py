"""A run's result on one page."""

import os
import platform
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch

from .._version import __version__
from .journal import LOG_NAME, read_log


def hardware() -> str:
    """What this process computes on, in one line: CPU and cores, torch threads, GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    line = f"{_cpu()}, {cores} cores, {torch.get_num_threads()} torch threads"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    for name in dict.fromkeys(names):
        line += f", {names.count(name)} x {name}"
    return line


def write_summary(
    folder: Path,
    *,
    recipe: dict[str, Any],
    metrics: dict[str, Any],
    best_epoch: int,
    seconds: float,
    hardware: str,
    command: str,
    classes: Sequence[str],
    parameters: int,
    gmac: float,
) -> None:
    """Writes ``summary.md``: what was trained on what, how well, where it errs, and how to go on.

    Args:
        folder: the run's folder.
        recipe: the recipe, as a dictionary.
        metrics: of the best epoch: top1, top5 and ece (percent), loss (nats), count, confusion (nested lists or a
            tensor, or ``None``), and per_class, a list of ``{"class": name, "count": images, "accuracy": percent}``.
        best_epoch: the epoch they are of.
        seconds: that training took.
        hardware: that it took place on, in one line.
        command: the exact command line.
        classes: names, by index.
        parameters: of the model.
        gmac: multiply-adds of one image, in units of 10**9.
    """
    size, channels = recipe["input"]["size"], recipe["input"]["channels"]
    facts = {
        "model": f"`{recipe['model']}`: {parameters / 1e6:.2f} M parameters, {gmac:.3g} GMAC at {size} x {size}",
        "data": f"`{recipe['data']}`: {len(classes)} classes, {channels} x {size} x {size} pixels",
        "length": f"{recipe['epochs']} epochs, {recipe['batch_size']} images a batch and process",
        "seed": str(recipe["seed"]),
        "time": str(timedelta(seconds=round(seconds))) + _speed(folder),
        "hardware": hardware,
        "versions": f"smt_vision {__version__}, torch {torch.__version__}, timm {timm.__version__}",
    }
    result = (
        f"`{recipe['model']}` on `{recipe['data']}`: **{metrics['top1']:.2f} % top-1** of {metrics['count']} images, "
        f"by the weights of epoch {best_epoch} of {recipe['epochs']}, the best on these same images."
    )
    page = [
        f"# {recipe['name']}",
        "",
        result,
        "",
        *_result(metrics, recipe.get("expected", {}), recipe.get("expected_source", "")),
        "![curves](curves.png)",
        "",
        "## Run",
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
        "",
        "```sh",
        command,
        "```",
        "",
        *_classes(metrics["per_class"]),
        *_confusions(metrics["confusion"], classes),
        "![mistakes](mistakes.png)",
        "",
        "## Go on",
        "",
        "```sh",
        f"smt predict {folder} IMAGE_OR_FOLDER   # what is in an image",
        f"smt eval {folder}                      # this result again",
        f"smt train --resume {folder}            # continue from the last checkpoint",
        "```",
    ]
    (Path(folder) / "summary.md").write_text("\n".join(page) + "\n", encoding="utf-8")


def _result(metrics: dict[str, Any], expected: dict[str, float], source: str) -> list[str]:
    names = {"top1": "top-1 (%)", "top5": "top-5 (%)", "loss": "loss (nats)", "ece": "calibration error (%)"}
    lines = ["| metric | this run | expected | difference |", "|---|---:|---:|---:|"]
    for key, name in names.items():
        digits = 4 if key == "loss" else 2
        wanted, gap = "", ""
        if key in expected:
            wanted, gap = f"{expected[key]:.{digits}f}", f"{metrics[key] - expected[key]:+.{digits}f}"
        lines.append(f"| {name} | {metrics[key]:.{digits}f} | {wanted} | {gap} |")
    return [*lines, "", *([f"Expected: {source}.", ""] if source else [])]


def _classes(per_class: list[dict[str, Any]]) -> list[str]:
    seen = [row for row in per_class if row["count"]]
    ranked = sorted(seen, key=lambda row: -row["accuracy"])
    shown = min(5, len(ranked) // 2) or len(ranked)  # no class is both among the best and the worst
    lines = ["## Classes", "", "| class | images | accuracy (%) |", "|---|---:|---:|"]
    for label, rows in (("best", ranked[:shown]), ("worst", ranked[::-1][:shown])):
        lines.append(f"| **{label} {len(rows)}** | | |")
        lines += [f"| {_cell(row['class'])} | {row['count']} | {row['accuracy']:.2f} |" for row in rows]
    return [*lines, ""]


def _confusions(confusion: Any, classes: Sequence[str]) -> list[str]:
    if confusion is None:  # too many classes
        return []
    matrix = np.asarray(confusion)
    images = matrix.sum(axis=1)
    wrong = matrix - np.diag(matrix.diagonal())
    worst = [np.unravel_index(cell, wrong.shape) for cell in np.argsort(-wrong, axis=None, kind="stable")[:5]]
    lines = ["Most frequent confusions:", "", "| true class | taken for | images | share (%) |", "|---|---|---:|---:|"]
    lines += [
        f"| {_cell(classes[row])} | {_cell(classes[column])} | {wrong[row, column]} "
        f"| {100 * wrong[row, column] / images[row]:.2f} |"
        for row, column in worst
        if wrong[row, column]
    ]
    return [*lines, "", "![confusion](confusion.png)", ""]


def _cell(name: str) -> str:
    return name.replace("|", "\\|")


def _speed(folder: Path) -> str:
    """The median training speed, where a log tells it."""
    if not (Path(folder) / LOG_NAME).exists():
        return ""
    speeds = [line["images_per_s"] for line in read_log(folder) if "images_per_s" in line]
    return f", {median(speeds):.0f} images/s in training (median)" if speeds else ""


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    except OSError:  # not Linux
        models = []
    return models[0] if models else platform.processor() or platform.machine()
