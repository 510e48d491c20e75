"""A model as ``smt bench`` spells it: ``SOURCE``, or ``SOURCE:FORM`` with forms joined by ``+``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .common import nearest

if TYPE_CHECKING:
    from torch import nn

    from ..benchmark.compare import Contender

FORMS = {
    "fused": "for inference: BatchNorm folded and what else the model offers",
    "compiled": "through torch.compile, anew for each batch size",
    "channels_last": "weights in channels-last memory, which convolutions of other models may like better",
}


def parse(spelled: str) -> tuple[str, tuple[str, ...]]:
    """Source and forms of a spelling; a colon that is part of a path or of a hub's name stays.

    Raises:
        ValueError: a known source has an unknown form, or one twice.
    """
    import timm

    source, colon, last = spelled.rpartition(":")
    forms = tuple(last.split("+"))
    if not colon or Path(spelled).exists():
        return spelled, ()
    wrong = [form for form in forms if form not in FORMS or forms.count(form) > 1]
    if not wrong:
        return source, forms
    if timm.is_model(source) or Path(source).exists():
        raise ValueError(
            f"{spelled}: {wrong[0]!r} is no form{nearest(wrong[0], FORMS)}; expected one or more of "
            f"{', '.join(FORMS)}, each once, joined by +"
        )
    return spelled, ()


def load(spelled: str, device: str = "cpu", size: int | None = None) -> "Contender":
    """Build a model in its form: random weights for a name, the trained ones for a run, a checkpoint or an export.

    Args:
        spelled: timm's name, or the path of a run, a checkpoint or an export, with its forms.
        device: where to put it.
        size: side of the images in pixels; by default the one its published accuracy or its weights belong to.

    Raises:
        ValueError: there is no such model or form, or the model does not have that form.
    """
    import torch
    from torch import nn

    from ..benchmark.compare import Contender
    from ..benchmark.published import PUBLISHED
    from ..deploy.exported import ExportedModel
    from ..inference import Classifier
    from ..tasks.build import create_model

    source, forms = parse(spelled)
    plain: Any
    if Path(source).exists():
        classifier = Classifier.load(source, device)
        plain, channels, side = classifier.model, classifier.input.channels, classifier.input.size
        if isinstance(plain, ExportedModel):
            if forms:
                raise ValueError(f"{spelled}: an export is what it is; leave :{'+'.join(forms)} out")
            pixels = size or side
            return Contender(spelled, plain, (channels, pixels, pixels), None, plain.manifest.parameters)
    else:
        plain = create_model(source).to(device)
        channels, side = plain.pretrained_cfg["input_size"][:2]
        published = PUBLISHED.get(plain.pretrained_cfg["architecture"])
        side = published.size if published else side
    model: nn.Module = plain.eval()
    if "channels_last" in forms:
        model = model.to(memory_format=torch.channels_last)
    if "fused" in forms:
        model = _fused(model)
    if "compiled" in forms:
        # A whole graph or an error, and one for each shape: what is timed is what was asked for.
        model = cast(nn.Module, torch.compile(model, fullgraph=True, dynamic=False))
    return Contender(spelled, model, (channels, size or side, size or side), plain)


def _fused(model: "nn.Module") -> "nn.Module":
    """The model's form for inference: ours of an SMT, timm's of a model whose parts bring one."""
    from timm.utils import reparameterize_model

    from ..forms.inference import fuse

    if any(hasattr(part, way) for part in model.modules() for way in ("fuse", "reparameterize", "switch_to_deploy")):
        return reparameterize_model(model)
    return fuse(model)
