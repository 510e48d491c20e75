"""Reports of measurements: tables, and the conditions under which they were made."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch

from .._version import __version__
from ..extras import version_of
from ..hardware import describe_hardware
from ..text import markdown
from .compare import Result


def measurement_conditions(runtimes: Iterable[str] = (), **settings: Any) -> dict[str, Any]:
    """The settings of a measurement together with hardware, versions and date, as plain data for JSON.

    ``runtimes`` are packages beside PyTorch that ran models, e.g. ``onnxruntime``.
    """
    return {
        **settings,
        "hardware": describe_hardware(),
        "versions": {
            "smt_vision": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            **{package: version_of(package) for package in sorted(runtimes)},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def conditions_line(conditions: Mapping[str, Any]) -> str:
    """Conditions with a mode, precision, device and allocator, in one line."""
    versions = [f"{name} {v}" for name, v in conditions["versions"].items() if name not in ("smt_vision", "timm")]
    allocator = {"large": ", large allocations kept", "default": ", default allocator", None: ""}
    return (
        f"{conditions['mode']}, {conditions.get('engine', 'eager')}, {conditions['precision']}, "
        f"{conditions['device']}{allocator[conditions['allocator']]}; "
        f"{conditions['hardware']}; {', '.join(versions)}; {conditions['date'][:10]}"
    )


def failure_lines(failures: Mapping[str, str]) -> list[str]:
    """One line for each model that could not be run."""
    return [f"not measured: {name}: {reason}" for name, reason in failures.items()]


def result_table(results: Sequence[Result], train: bool) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows of the comparison table; the first column is text, the others are numbers."""
    columns = ["model", "pixels", "batch", "images/s", "speed", "p50 ms", "p90 ms", "p99 ms", "IQR ms", "GMAC",
               "params M", "memory MB"]  # fmt: skip
    columns += ["saved MB/image"] if train else []
    columns += ["of peak"]
    rows = []
    for r in results:
        size = " x ".join(dict.fromkeys(map(str, r.input_size[1:])))
        row = [r.model, size, str(r.batch_size), f"{r.images_per_s:,.1f}", f"{r.ratio:.2f}"]
        row += [f"{value:.2f}" for value in (r.p50_ms, r.p90_ms, r.p99_ms, r.iqr_ms)]
        row += [_number(r.gmac, ".3g"), _number(r.parameters, ",.2f", 1e-6), _number(r.peak_memory, ",.0f", 1e-6)]
        row += [_number(r.saved_activations, ",.1f", 1e-6)] if train else []
        rows.append([*row, "" if r.share_of_peak is None else f"{100 * r.share_of_peak:.0f} %"])
    return columns, rows


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table padded to be readable as plain text; the first column is aligned left, the others right."""
    columns, rows = [markdown(column) for column in columns], [[markdown(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in (columns, *rows))) for i in range(len(columns))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for first, *others in (columns, rule, *rows):
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def write_json(data: Any, path: Path) -> Path:
    """Write plain data to a JSON file, creating its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def _number(value: float | None, format_spec: str, factor: float = 1) -> str:
    return "" if value is None else format(factor * value, format_spec)
