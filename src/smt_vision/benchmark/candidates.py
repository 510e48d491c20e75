"""Candidates built from model spec strings, and their peak memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import reparameterize_model
from torch import nn

from ..bounds import Side, checked
from ..deploy.exported import ExportedModel, Provider, is_export
from ..forms.inference import fuse
from ..tasks.backbone import Backbone
from ..tasks.build import create_model
from ..tasks.image_size import arguments_for_size
from ..tasks.load import load
from .compare import Candidate
from .engines import compiled, run_by
from .memory import peak_memory
from .model_spec import RUNTIMES, engine_precision, parse_spec
from .published import PUBLISHED
from .timing import Call, inference_step, training_step


@checked
def load_candidate(
    spec: str,
    device: str = "cpu",
    size: tuple[Side, Side] | None = None,
    *,
    engine: str = "eager",
    precision: str = "fp32",
    train: bool = False,
    providers: Sequence[Provider] = (),
) -> Candidate:
    """Build a candidate: random weights for a model name, trained weights for a run, a checkpoint or an export.

    Args:
        spec: Model spec string.
        device: Device of the model.
        size: Image height and width in pixels; default: those of the published accuracy or of the weights.
        engine: Engine; see :func:`~smt_vision.benchmark.engines.run_by`.
        precision: Precision of inference; ``auto``: ``bf16`` if the engine, or the format of an export, has it and the
            device instructions for it.
        train: Whether the candidate is to be trained: its weights stay float32.
        providers: Execution providers of ONNX Runtime, for ONNX exports and its engine.

    Raises:
        ValueError: The model or variant is unknown, or the model does not support the variant, the engine or the
            precision, or the engine the device.
    """
    if engine in RUNTIMES and torch.device(device).type != "cpu":
        raise ValueError(
            f"invalid device={device}: engine {engine!r} runs on the CPU, and ONNX Runtime on what --providers names; "
            "omit --device, or use an engine of PyTorch (--engine eager or compiled)"
        )
    source, variants = parse_spec(spec)
    precision = "fp32" if train else precision
    original: Any
    if Path(source).exists():
        providers_of_export = providers if is_export(source) else ()
        given: Any = precision if precision in ("auto", "bf16") and is_export(source) else None
        predictor = load(source, device, require_classes=False, precision=given, providers=providers_of_export)
        if predictor.spec.task != "classify":
            raise ValueError(f"{spec!r}: only classifiers can be compared, and this is {predictor.kind}")
        original, (channels, default_size, _) = predictor.flops_model()
        if isinstance(original, ExportedModel):
            if variants:
                raise ValueError(f"{spec!r}: an exported model has no execution variants; remove :{'+'.join(variants)}")
            if engine != "eager":
                raise ValueError(f"{spec!r}: an exported model has an engine already; omit --engine {engine}")
            if precision not in ("auto", "fp32") and original.precision != precision:
                raise ValueError(f"{spec!r}: this export runs in {original.precision}; omit --precision {precision}")
            sides = size or (default_size, default_size)
            return Candidate(spec, original, (channels, *sides), None, original.manifest.parameters)
    else:
        original = create_model(source)
        channels, default_size = original.pretrained_cfg["input_size"][:2]
        published = PUBLISHED.get(original.pretrained_cfg["architecture"])
        default_size = published.size if published else default_size
        if arguments := arguments_for_size(source, {}, size or (default_size, default_size)):
            original = create_model(source, **arguments)
        original = original.to(device)
    precision = engine_precision(engine, precision, device)
    sides = size or (default_size, default_size)
    if "features" in variants:
        if Path(source).exists():
            raise ValueError(f"{spec!r}: feature maps are for model names; remove features")
        original = create_backbone(source, sides).to(device)
    dtype = torch.bfloat16 if precision == "bf16" and engine in ("eager", "compiled") else None
    model = run_by(_apply_variants(original.eval(), variants, dtype), engine, precision, train, providers)
    return Candidate(spec, model, (channels, *sides), original)


def run_once(
    candidate: Candidate,
    batch_sizes: Sequence[int],
    device: str = "cpu",
    *,
    train: bool = False,
    precision: str = "fp32",
) -> None:
    """Run a candidate once at every batch size, which builds its programs.

    Args:
        candidate: The candidate.
        batch_sizes: Images per call.
        device: Device of the model.
        train: Run training steps instead of forward passes.
        precision: That of training.

    Raises:
        ValueError: The model fails, e.g. since its layers are for images of another size, or cannot be trained.
    """
    for batch_size in batch_sizes:
        call = _call(candidate, batch_size, train, precision, device)
        try:
            call()
        except (AssertionError, RuntimeError) as error:
            shape = " x ".join(map(str, (batch_size, *candidate.input_size)))
            raise ValueError(f"{candidate.name} fails for a batch of {shape}: {error}") from error


def create_backbone(name: str, size: tuple[int, int]) -> Backbone:
    """The feature maps of a timm model with random weights, for images of one height and width."""
    return Backbone(create_model(name, features_only=True, **arguments_for_size(name, {}, size)))


def candidate_peak_memory(
    spec: str,
    batch_sizes: Sequence[int],
    *,
    size: tuple[Side, Side] | None = None,
    train: bool = False,
    engine: str = "eager",
    precision: str = "fp32",
    device: str = "cpu",
    providers: Sequence[Provider] = (),
    setup: Callable[[], object] | None = None,
) -> dict[int, int | None]:
    """Peak memory of a candidate in bytes by batch size; see :func:`smt_vision.benchmark.memory.peak_memory`.

    Args:
        spec: Model spec string.
        batch_sizes: Images per call.
        size: Image height and width in pixels; default: those of the published accuracy or of the weights.
        train: Measure training steps instead of forward passes.
        engine: Engine for inference.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        device: Device of the model.
        providers: Execution providers of ONNX Runtime.
        setup: Called in the measuring process before the model is built; must be picklable.

    Raises:
        RuntimeError: The measuring process died, e.g. because memory ran out.
    """
    batch_sizes = sorted(set(batch_sizes))
    prepare = partial(_prepare, spec, batch_sizes, size, train, engine, precision, device, providers, setup)
    return dict(zip(batch_sizes, peak_memory(prepare, device), strict=True))


def _prepare(
    spec: str,
    batch_sizes: Sequence[int],
    size: tuple[Side, Side] | None,
    train: bool,
    engine: str,
    precision: str,
    device: str,
    providers: Sequence[Provider],
    setup: Callable[[], object] | None,
) -> Iterator[Call]:
    """One call after the other: what an earlier one holds is not in the memory of a later one."""
    if setup is not None:
        setup()
    candidate = load_candidate(spec, device, size, engine=engine, precision=precision, train=train, providers=providers)
    candidate = replace(candidate, original=None)  # or the memory of a fused model would include the one it was made of
    precision = engine_precision(engine, precision, device)
    for batch_size in batch_sizes:
        yield _call(candidate, batch_size, train, precision, device)


def _call(candidate: Candidate, batch_size: int, train: bool, precision: str, device: str) -> Call:
    x = torch.randn(batch_size, *candidate.input_size, device=device)
    return training_step(candidate.model, x, precision) if train else inference_step(candidate.model, x)


def _apply_variants(model: nn.Module, variants: Sequence[str], dtype: torch.dtype | None) -> nn.Module:
    if "channels_last" in variants:
        model = model.to(memory_format=torch.channels_last)
    if "fused" in variants:
        model = _fuse(model, dtype)
    return compiled(model) if "compiled" in variants else model


def _fuse(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The fused model: timm's reparameterization if any module defines one, otherwise :func:`fuse`."""
    hooks = ("fuse", "reparameterize", "switch_to_deploy")
    if any(hasattr(module, hook) for module in model.modules() for hook in hooks):
        return reparameterize_model(model)
    return fuse(model, dtype)
