"""Candidates built from model spec strings, and their peak memory."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.utils import reparameterize_model
from torch import nn

from ..bounds import Side, checked
from ..deploy.exported import ExportedModel
from ..forms.inference import fuse
from ..tasks.build import create_model
from ..tasks.load import load
from .compare import Candidate
from .memory import peak_memory
from .model_spec import parse_spec
from .published import PUBLISHED
from .timing import Call, inference_step, training_step


@checked
def load_candidate(spec: str, device: str = "cpu", size: Side | None = None) -> Candidate:
    """Build a candidate: random weights for a model name, trained weights for a run, a checkpoint or an export.

    Args:
        spec: Model spec string.
        device: Device of the model.
        size: Image side in pixels; default: that of the published accuracy or of the weights.

    Raises:
        ValueError: The model or variant is unknown, or the model does not support the variant.
    """
    source, variants = parse_spec(spec)
    original: Any
    if Path(source).exists():
        predictor = load(source, device, require_classes=False)
        if predictor.spec.task != "classify":
            raise ValueError(f"{spec!r}: only classifiers can be compared, and this is {predictor.kind}")
        original, (channels, default_size, _) = predictor.flops_model()
        if isinstance(original, ExportedModel):
            if variants:
                raise ValueError(f"{spec!r}: an exported model has no execution variants; remove :{'+'.join(variants)}")
            side = size or default_size
            return Candidate(spec, original, (channels, side, side), None, original.manifest.parameters)
    else:
        original = create_model(source).to(device)
        channels, default_size = original.pretrained_cfg["input_size"][:2]
        published = PUBLISHED.get(original.pretrained_cfg["architecture"])
        default_size = published.size if published else default_size
    side = size or default_size
    return Candidate(spec, _apply_variants(original.eval(), variants), (channels, side, side), original)


def candidate_peak_memory(
    spec: str,
    batch_sizes: Sequence[int],
    *,
    size: int | None = None,
    train: bool = False,
    precision: str = "32-true",
    device: str = "cpu",
    setup: Callable[[], object] | None = None,
) -> dict[int, int | None]:
    """Peak memory of a candidate in bytes by batch size; see :func:`smt_vision.benchmark.memory.peak_memory`.

    Args:
        spec: Model spec string.
        batch_sizes: Images per call.
        size: Image side in pixels; default: that of the published accuracy or of the weights.
        train: Measure training steps instead of forward passes.
        precision: ``32-true``, or ``bf16-mixed`` (autocast).
        device: Device of the model.
        setup: Called in the measuring process before the model is built; must be picklable.

    Raises:
        RuntimeError: The measuring process died, e.g. because memory ran out.
    """
    batch_sizes = sorted(set(batch_sizes))
    prepare = partial(_prepare, spec, batch_sizes, size, train, precision, device, setup)
    return dict(zip(batch_sizes, peak_memory(prepare, device), strict=True))


def _prepare(
    spec: str,
    batch_sizes: Sequence[int],
    size: int | None,
    train: bool,
    precision: str,
    device: str,
    setup: Callable[[], object] | None,
) -> list[Call]:
    if setup is not None:
        setup()
    candidate = load_candidate(spec, device, size)
    make_step = training_step if train else inference_step
    return [
        make_step(candidate.model, torch.randn(batch_size, *candidate.input_size, device=device), precision)
        for batch_size in batch_sizes
    ]


def _apply_variants(model: nn.Module, variants: Sequence[str]) -> nn.Module:
    if "channels_last" in variants:
        model = model.to(memory_format=torch.channels_last)
    if "fused" in variants:
        model = _fuse(model)
    if "compiled" in variants:
        # No graph breaks and no dynamic shapes: the compiled model is timed, or compiling fails.
        model = cast(nn.Module, torch.compile(model, fullgraph=True, dynamic=False))
    return model


def _fuse(model: nn.Module) -> nn.Module:
    """The fused model: timm's reparameterization if any module defines one, otherwise :func:`fuse`."""
    hooks = ("fuse", "reparameterize", "switch_to_deploy")
    if any(hasattr(module, hook) for module in model.modules() for hook in hooks):
        return reparameterize_model(model)
    return fuse(model)
