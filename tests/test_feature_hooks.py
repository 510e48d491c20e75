"""Modules whose output is a feature map ``B C H W``, for hooks, Grad-CAM and attribution methods."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debug_model import create, images
from smt_vision.forms.inference import fuse

MAPS = {"stem": (16, 4), "stem.norm": (16, 4)}  # channels and stride
MAPS |= {f"stages.{i}": (16 * 2**i, 4 * 2**i) for i in range(4)}
MAPS |= {f"stages.{i}.norm": (16 * 2**i, 4 * 2**i) for i in range(4)}


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", ["training", "evaluation", "fused"])
def test_hooks_see_maps(form: str, gradients: bool, features_only: bool) -> None:
    net = create(features_only=features_only).train(form == "training")
    net = fuse(net) if form == "fused" else net
    model = net.model if features_only else net
    seen: dict[str, Any] = {}
    for name in MAPS:
        model.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: seen.update({name: out.shape}))
    with torch.set_grad_enabled(gradients):
        net(images(2, 3, 64, 160))
    assert seen == {name: (2, channels, 64 // stride, 160 // stride) for name, (channels, stride) in MAPS.items()}


def grad_cam(model: nn.Module, layer: nn.Module, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Channel weights ``(B, C)`` and the map ``(B, H, W)`` before its ReLU, for a layer with output ``B C H W``."""
    kept: list[Tensor] = []
    with layer.register_forward_hook(lambda module, args, out: kept.append(out)):
        score = model(x)[:, target].sum()
    (activation,) = kept
    weights = torch.autograd.grad(score, activation)[0].mean(dim=(2, 3))
    return weights, torch.einsum("bc,bchw->bhw", weights, activation).detach()


@pytest.mark.parametrize("name", ["stem", "stages.1", "stages.2", "stages.3"])
@pytest.mark.parametrize("fused", [False, True])
def test_channel_weights_are_finite_differences(name: str, fused: bool) -> None:
    torch.manual_seed(0)
    model = create(num_classes=3).double().eval()
    nn.init.normal_(model.head.fc.weight)  # for scores that are not tiny
    model = fuse(model) if fused else model
    layer, x = model.get_submodule(name), images(1, 3, 64, 160).double().requires_grad_()
    weights, cam = grad_cam(model, layer, x, target=1)
    C, stride = MAPS[name]
    assert cam.shape == (1, 64 // stride, 160 // stride)
    for channel in (0, C // 2, C - 1):
        unit = torch.zeros(1, C, 1, 1, dtype=torch.float64)
        unit[:, channel] = 1e-6
        scores = []
        for sign in (1, -1):
            with layer.register_forward_hook(lambda m, args, out, sign=sign, unit=unit: out + sign * unit):
                scores.append(model(x)[0, 1].item())
        slope = (scores[0] - scores[1]) / 2e-6 / cam[0].numel()
        assert weights[0, channel].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("place", [(16, 112), (40, 16), (0, 144)])
def test_a_map_shows_where_an_object_is(place: tuple[int, int]) -> None:
    """The change of the map that an object makes has its center at the object, on an image that is not square."""
    torch.manual_seed(0)
    model = create(num_classes=3).eval()
    top, left = place
    empty = images(1, 3, 64, 160)
    full = empty.clone()
    full[:, :, top : top + 16, left : left + 16] += 3 * images(1, 3, 16, 16, seed=1)
    for layer in (model.stem, model.stages[0], model.stages[1]):
        kept: list[Tensor] = []
        with layer.register_forward_hook(lambda module, args, out, kept=kept: kept.append(out.detach())):
            model(torch.cat([full, empty]))
        weights, _ = grad_cam(model, layer, full, target=0)
        change = torch.einsum("bc,bchw->bhw", weights, kept[0].diff(dim=0))
        change = F.interpolate(change.abs()[None], size=(64, 160), mode="bilinear")[0, 0]
        assert (change.sum(1) @ torch.arange(64.0)) / change.sum() == pytest.approx(top + 8, abs=8)
        assert (change.sum(0) @ torch.arange(160.0)) / change.sum() == pytest.approx(left + 8, abs=8)


def test_the_docstring_names_the_module() -> None:
    model = timm.create_model("smt_atto")
    assert "``stages[i]``" in (type(model.stages[-1]).__doc__ or "")
