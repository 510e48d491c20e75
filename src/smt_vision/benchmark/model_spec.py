"""Model spec strings: ``SOURCE`` or ``SOURCE:VARIANT+VARIANT``, e.g. ``smt_tiny:fused+compiled``.

The source is a timm model name, or the path of a run, a checkpoint or an export. An execution variant changes how the
model is run, not what it computes.
"""

import difflib
from pathlib import Path

from ..precision import resolve_precision

# Engines, and the precisions that they run models in.
ENGINES = {
    "eager": ("fp32", "bf16"),
    "compiled": ("fp32", "bf16"),
    "onnxruntime": ("fp32",),
    "openvino": ("fp32", "bf16", "int8"),
}
TRAINING_ENGINES = ("eager", "compiled")
RUNTIMES = ("onnxruntime", "openvino")  # engines other than PyTorch's, which run on the CPU; names of packages
EXECUTION_VARIANTS = {
    "fused": "inference-optimized: BatchNorm folded, projections merged, parallel branches reparameterized",
    "compiled": "torch.compile, one graph per batch size",
    "channels_last": "weights in channels-last memory format",
    "features": "the four feature maps that detection and segmentation use, without the classifier",
}


def engine_precision(engine: str, precision: str, device: str = "cpu") -> str:
    """The precision of an engine: for ``auto``, ``bf16`` if the engine has it and the device instructions for it."""
    if precision == "auto" and "bf16" not in ENGINES[engine]:
        return "fp32"
    return resolve_precision(precision, device)


def parse_spec(spec: str) -> tuple[str, tuple[str, ...]]:
    """Split a model spec string into source and execution variants; colons of paths and hub names are kept.

    Raises:
        ValueError: A variant of a known source is unknown or repeated.
    """
    source, colon, suffix = spec.rpartition(":")
    variants = tuple(suffix.split("+"))
    if not colon or Path(spec).exists():
        return spec, ()
    invalid = [variant for variant in variants if variant not in EXECUTION_VARIANTS or variants.count(variant) > 1]
    if not invalid:
        return source, variants

    import timm  # imported late: slow, and the command's help does without

    if timm.is_model(source) or Path(source).exists():
        close = difflib.get_close_matches(invalid[0], EXECUTION_VARIANTS, n=1)
        suggestion = f"; did you mean {close[0]}?" if close and close[0] not in variants else ""
        raise ValueError(
            f"invalid variant {invalid[0]!r} in {spec!r}: expected one or more of {', '.join(EXECUTION_VARIANTS)}, "
            f"each once, joined by +{suggestion}"
        )
    return spec, ()
