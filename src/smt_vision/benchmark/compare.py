"""Models side by side: speed, cost and share of what the machine can do."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cost import describe
from .memory import saved_activations
from .speed import autocast, inference, interleave, matmul_peak, training_step

# Backward is two products for every one of forward: by its input and by its weight.
PASSES = {False: 1, True: 3}


@dataclass(frozen=True)
class Contender:
    """A model that takes part in a comparison.

    Args:
        name: what to call it; different for each.
        model: what runs: an ordinary, fused, compiled or exported model.
        input_size: ``(C, H, W)``.
        plain: the ordinary form of it, on which parameters and GMAC are counted; ``None`` where there is none, as of
            an export, whose GMAC are then not known.
        parameters: of a model without a plain form, where it is known.
    """

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    plain: nn.Module | None
    parameters: int | None = None


@dataclass(frozen=True)
class Result:
    """A contender at one batch size.

    Attributes:
        model: the contender's name.
        batch_size: images a call.
        input_size: ``(C, H, W)``.
        parameters: trained numbers; ``None`` where they are not known.
        gmac: multiply-accumulates of one image's forward pass, over 1e9; ``None`` where they are not known.
        images_per_s: the batch over the median time of a call.
        ratio: its median speed over that of the first contender at this batch size.
        p50_ms, p90_ms, p99_ms: so many percent of the calls took at most that long.
        iqr_ms: width of the middle half of the times.
        calls: that were timed.
        share_of_peak: floating-point operations a second over the machine's best at matrix products; of a training
            step, three times those of its forward pass are counted. ``None`` where GMAC are not known.
        saved_activations: bytes an image that training keeps for the backward pass; ``None`` of inference.
        peak_memory: bytes; ``None`` where it was not measured.
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
    share_of_peak: float | None
    saved_activations: int | None = None
    peak_memory: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def compare(
    contenders: Sequence[Contender],
    batch_sizes: Sequence[int],
    *,
    train: bool = False,
    precision: str = "32-true",
    device: torch.device | str = "cpu",
    rounds: int = 5,
    seconds: float = 1.0,
    peak: float | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Time contenders in turn at every batch size; see :func:`smt_vision.benchmark.speed.interleave`.

    Args:
        contenders: of unlike names, on ``device``.
        batch_sizes: images a call.
        train: time an update (forward, backward, AdamW) in place of a forward pass.
        precision: ``32-true``, or ``bf16-mixed``, which is autocast.
        device: where they are.
        rounds: turns of each contender at each batch size.
        seconds: timed, a turn.
        peak: the machine's best rate at matrix products, in FLOP/s; measured unless given.
        advance: called after each round with the number done and the number of all.

    Returns:
        A result for each contender and batch size, ordered by batch size.

    Raises:
        ValueError: two contenders have one name, a batch size is below 1, or the precision is none that is measured.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise ValueError(f"contenders {names}: two have the same name; name each once")
    if any(batch_size < 1 for batch_size in batch_sizes):
        raise ValueError(f"batch_sizes={list(batch_sizes)} cannot work: at least 1 image a call")
    by_name = {contender.name: contender for contender in contenders}
    costs = {c.name: describe(c.plain, c.input_size) for c in contenders if c.plain is not None}
    peak = peak or matmul_peak(precision, device)
    form = training_step if train else inference
    inputs = {
        (c.name, batch_size): torch.randn(batch_size, *c.input_size, device=device)
        for batch_size in batch_sizes
        for c in contenders
    }
    calls = {key: form(by_name[key[0]].model, x, precision) for key, x in inputs.items()}
    timings = interleave(calls, rounds=rounds, seconds=seconds, device=device, advance=advance)

    results = []
    for (name, batch_size), timing in timings.items():
        contender, cost, first = by_name[name], costs.get(name), timings[names[0], batch_size]
        flops = 2e9 * PASSES[train] * cost.gmac * batch_size if cost else None
        results.append(
            Result(
                model=name,
                batch_size=batch_size,
                input_size=contender.input_size,
                parameters=cost.parameters if cost else contender.parameters,
                gmac=cost.gmac if cost else None,
                images_per_s=batch_size / timing.median,
                ratio=first.median / timing.median,
                p50_ms=1e3 * timing.median,
                p90_ms=1e3 * timing.percentile(90),
                p99_ms=1e3 * timing.percentile(99),
                iqr_ms=1e3 * timing.iqr,
                calls=len(timing.seconds),
                share_of_peak=flops / timing.median / peak if flops else None,
                saved_activations=_saved(contender.model, inputs[name, batch_size], precision) if train else None,
            )
        )
    return results


def _saved(model: nn.Module, x: Tensor, precision: str) -> int:
    with autocast(x.device, precision):
        return saved_activations(model, x) // len(x)
