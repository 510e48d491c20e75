"""Comparison of models side by side: speed, latency, cost and share of the machine's peak."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..bounds import Count, NotEmpty, Seconds, checked
from ..cost import ModelInfo, describe
from ..deploy.exported import ExportedModel
from .memory import saved_activations
from .timing import Call, ProgressCallback, Timing, autocast, inference_step, interleave, matmul_peak, training_step


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    Args:
        name: Unique name.
        model: Model to run: original, fused, compiled or exported.
        input_size: ``(C, H, W)``.
        original: Unmodified model on which parameters and GMAC are counted; ``None`` if there is none, e.g. for an
            exported model, whose GMAC are unknown.
        parameters: Number of parameters if known without ``original``.
    """

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    original: nn.Module | None
    parameters: int | None = None

    @property
    def exported(self) -> tuple[str, str] | None:
        """Format of an export, and the precision in which it runs; ``None`` for other models."""
        if not isinstance(self.model, ExportedModel):
            return None
        return self.model.manifest.format, self.model.precision


@dataclass(frozen=True)
class Result:
    """Measurements of a candidate at one batch size.

    Attributes:
        model: Name of the candidate.
        batch_size: Images per call.
        input_size: ``(C, H, W)``.
        parameters: Number of parameters; ``None`` if unknown.
        gmac: Multiply-accumulates of one image's forward pass divided by 1e9; ``None`` if unknown.
        images_per_s: Batch size divided by the median time of a call.
        ratio: Median speed divided by that of the first candidate at the same batch size.
        p50_ms, p90_ms, p99_ms: Percentiles of the time of a call.
        iqr_ms: Interquartile range of the time of a call.
        calls: Number of timed calls.
        share_of_peak: Floating-point operations per second divided by the machine's peak in matrix products. A training
            step counts as three forward passes. ``None`` if GMAC are unknown.
        saved_activations: Bytes per image that training saves for the backward pass; ``None`` for inference.
        peak_memory: Bytes; ``None`` if not measured.
        exported: Format of an export, and the precision in which it ran; ``None`` for other models.
    """

    model: str
    batch_size: int
    input_size: tuple[int, int, int]
    parameters: int | None
    gmac: float | None
    images_per_s: float
    ratio: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    iqr_ms: float
    calls: int
    share_of_peak: float | None = None
    saved_activations: int | None = None
    peak_memory: int | None = None
    exported: tuple[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def forward_equivalents(train: bool) -> int:
    """Cost of a call in forward passes: the backward pass has two products (input and weight) for each forward one."""
    return 3 if train else 1


@checked
def compare(
    candidates: Sequence[Candidate],
    batch_sizes: Annotated[Sequence[Count], NotEmpty()],
    *,
    train: bool = False,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    rounds: Count = 5,
    seconds: Seconds = 1.0,
    peak: float | None = None,
    on_progress: ProgressCallback | None = None,
) -> list[Result]:
    """Time candidates in turn at every batch size; see :func:`smt_vision.benchmark.timing.interleave`.

    Args:
        candidates: Models with unique names, on ``device``.
        batch_sizes: Images per call.
        train: Time a training step (forward, backward, AdamW) instead of a forward pass.
        precision: ``fp32`` or ``bf16``: the peak that speeds are compared with, and whether training is under
            autocast. A model for inference is in its precision already. ``int8`` has no peak.
        device: Device of the models.
        rounds: Number of turns of each candidate at each batch size.
        seconds: Duration of a turn.
        peak: The machine's peak rate in matrix products in FLOP/s; ``None``: measured.
        on_progress: Called after each round with the number of rounds done and the total.

    Returns:
        One result per candidate and batch size, ordered by batch size.

    Raises:
        ValueError: Names are not unique, a batch size is below 1, or the precision is unknown.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"duplicate candidates in {names}: expected unique names")
    by_name = {candidate.name: candidate for candidate in candidates}
    costs = {c.name: describe(c.original, c.input_size) for c in candidates if c.original is not None}
    if peak is None and precision != "int8":
        peak = matmul_peak(precision, device)
    inputs = {
        (c.name, batch_size): torch.randn(batch_size, *c.input_size, device=device)
        for batch_size in batch_sizes
        for c in candidates
    }
    calls: dict[tuple[str, int], Call] = {
        (name, batch_size): training_step(by_name[name].model, x, precision)
        if train
        else inference_step(by_name[name].model, x)
        for (name, batch_size), x in inputs.items()
    }
    timings = interleave(calls, rounds=rounds, seconds=seconds, device=device, on_progress=on_progress)
    results = []
    for (name, batch_size), timing in timings.items():
        result = _result(by_name[name], costs.get(name), batch_size, timing, timings[names[0], batch_size])
        share = None
        if result.gmac is not None and peak is not None:
            share = 2e9 * forward_equivalents(train) * result.gmac * result.images_per_s / peak
        saved = _saved_per_image(by_name[name].model, inputs[name, batch_size], precision) if train else None
        results.append(replace(result, share_of_peak=share, saved_activations=saved))
    return results


def combine_pairs(pairs: Sequence[Sequence[Result]], peaks: Sequence[float] = ()) -> list[Result]:
    """One comparison from several, each of which compares other models with the same first one.

    The machine's speed differs between comparisons. Therefore, the speed of the first model is its median over all of
    them, and that of another model is its ratio times this median; times are scaled accordingly.

    Args:
        pairs: Results of :func:`compare`; the first one of each batch size is of the same model in all of them.
        peaks: The machine's peak in each of them; ``share_of_peak`` is then of the largest.

    Returns:
        Results ordered by batch size, the first model once per batch size.
    """
    if peaks:
        pairs = [
            [_of_peak(result, peak / max(peaks)) for result in results]
            for results, peak in zip(pairs, peaks, strict=True)
        ]
    combined = []
    for batch_size in sorted({result.batch_size for results in pairs for result in results}):
        groups = [[result for result in results if result.batch_size == batch_size] for results in pairs]
        speed = median(first.images_per_s for first, *_ in groups)
        combined.append(_at_speed(min((g[0] for g in groups), key=lambda r: abs(r.images_per_s - speed)), speed))
        combined += [_at_speed(result, result.ratio * speed) for _, *others in groups for result in others]
    return combined


def relative_to_first(results: Sequence[Result], names: Sequence[str]) -> list[Result]:
    """Results of separate comparisons as one: by batch size and in the order of the names, relative to the first model.

    Args:
        results: Results of :func:`compare`, of different models.
        names: Names of the models; those without results are passed over.
    """
    ordered = sorted(results, key=lambda result: (result.batch_size, names.index(result.model)))
    first: dict[int, Result] = {}
    for result in ordered:
        first.setdefault(result.batch_size, result)
    return [replace(r, ratio=r.images_per_s / first[r.batch_size].images_per_s) for r in ordered]


def _of_peak(result: Result, factor: float) -> Result:
    share = result.share_of_peak
    return replace(result, share_of_peak=None if share is None else share * factor)


def _at_speed(result: Result, images_per_s: float) -> Result:
    """A result on a machine of another speed."""
    factor = images_per_s / result.images_per_s
    return replace(
        result,
        images_per_s=images_per_s,
        p50_ms=result.p50_ms / factor,
        p90_ms=result.p90_ms / factor,
        p99_ms=result.p99_ms / factor,
        iqr_ms=result.iqr_ms / factor,
        share_of_peak=None if result.share_of_peak is None else result.share_of_peak * factor,
    )


def _result(candidate: Candidate, cost: ModelInfo | None, batch_size: int, timing: Timing, first: Timing) -> Result:
    return Result(
        model=candidate.name,
        batch_size=batch_size,
        input_size=candidate.input_size,
        parameters=cost.parameters if cost else candidate.parameters,
        gmac=cost.gmac if cost else None,
        images_per_s=batch_size / timing.median,
        ratio=first.median / timing.median,
        p50_ms=1e3 * timing.median,
        p90_ms=1e3 * timing.percentile(90),
        p99_ms=1e3 * timing.percentile(99),
        iqr_ms=1e3 * timing.iqr,
        calls=len(timing.seconds),
        exported=candidate.exported,
    )


def _saved_per_image(model: nn.Module, x: Tensor, precision: str) -> int:
    """By the difference of two batch sizes: autocast also saves weights in the other precision, once per batch."""
    more, fewer = (x, x[: len(x) // 2]) if len(x) > 1 else (torch.cat([x, x]), x)
    with autocast(x.device, precision):
        saved = saved_activations(model, more) - saved_activations(model, fewer)
    return saved // (len(more) - len(fewer))
