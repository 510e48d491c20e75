"""The form for inference: the same outputs, from any SMT and whatever is built around one."""

import copy
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.utils import freeze
from torch import nn
from torch.nn.utils import prune

from debug_model import create, images
from smt_vision.forms.fused_layers import FusedLinear
from smt_vision.forms.inference import AutocastModel, at_dtype, fuse, is_fused
from smt_vision.kernels import onednn
from smt_vision.model import SAM

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": dict(layer_scale=0.3),
    "no aggregation": dict(aggregation="none"),
    "sum": dict(modulation="sum"),
    "sum, no aggregation": dict(modulation="sum", aggregation="none"),
    "one convolution": dict(conv_heads=1, conv_kernels=(7,)),
    "two linear layers": dict(aggregation="mlp"),
    "focal modulation": dict(mixers=("F", "S", "FA", "A")),
    "other mixers": dict(mixers=("A", "SA", "S", "AS")),
    "heads": dict(conv_heads=(1, 2, 4, 8), expand_ratio=3),
    "stem 7, stride 2": dict(stem_kernel=7, stem_stride=2),
    "grey, stride 1": dict(in_chans=1, stem_stride=1),
    "dilated by 4": dict(output_stride=8, mixers=("S", "S", "SA", "SA")),
    "dilated by 2": dict(output_stride=16, mixers=("S", "S", "SA", "SA")),
}


def lively(**kwargs: Any) -> Any:
    """A debug-size model whose statistics and weights are not those of initialisation."""
    model = create(num_classes=7, **kwargs).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(std=0.2, generator=generator)
                module.bias.normal_(generator=generator)
    return model


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_maps_agree(case: str) -> None:
    model = lively(**CASES[case])
    fused = fuse(model)
    for shape in ((1, model.stem.conv1.in_channels, 32, 32), (3, model.stem.conv1.in_channels, 45, 61)):
        x = images(*shape)
        with torch.inference_mode():
            (expected, maps), (found, found_maps) = (m.forward_intermediates(x) for m in (model, fused))
            assert torch.allclose(fused(x), model(x), rtol=1e-4, atol=1e-4)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found_maps, maps, strict=True))


def test_the_model_is_left_alone() -> None:
    model = lively().train()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert model.training
    assert not fused.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(p.requires_grad for p in fused.parameters())
    assert not {p.data_ptr() for p in fused.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def test_what_holds_an_smt_can_be_fused() -> None:
    features = timm.create_model("smt_atto", features_only=True, out_indices=(0, 2)).eval()
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(fuse(features)(x), features(x), strict=True):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_without_an_smt_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to fuse in this ResNet"):
        fuse(timm.create_model("resnet10t"))


def test_a_fused_model_is_not_fused_again() -> None:
    with pytest.raises(ValueError, match="this SMT is fused already"):
        fuse(fuse(lively()))


class Adapter(nn.Module):
    """A LoRA-like wrapper in a linear layer's place, with its attributes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 1


def _adapter(model: Any) -> str:
    model.stages[0].blocks[0].ffn.fc1 = Adapter(model.stages[0].blocks[0].ffn.fc1)
    return "stages.0.blocks.0.ffn.fc1"


def _pruned(model: Any) -> str:
    prune.l1_unstructured(model.stages[3].blocks[0].mixer.qkv, "weight", 0.5)
    return "stages.3.blocks.0.mixer.qkv"


def _instance_forward(model: Any) -> str:
    layer = model.stages[1].downsample.conv
    layer.forward = lambda x: type(layer).forward(layer, x) * 2
    return "stages.1.downsample.conv"


def _circular(model: Any) -> str:
    model.stages[0].blocks[0].mixer.mhmc.convs[2].padding_mode = "circular"
    return "stages.0.blocks.0.mixer.mhmc.convs.2"


def _group_norm(model: Any) -> str:
    model.stages[0].blocks[0].mixer.saa.norm = nn.GroupNorm(4, 32)
    return "stages.0.blocks.0.mixer.saa.norm"


def _other_activation(model: Any) -> str:
    model.stem.act = nn.GELU()
    return "stem.act"


def _approximate_gelu(model: Any) -> str:
    model.stages[0].blocks[0].mixer.saa.act.approximate = "tanh"
    return "stages.0.blocks.0.mixer.saa.act"


class DoubledSAM(SAM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def _subclass(model: Any) -> str:
    model.stages[0].blocks[0].mixer.__class__ = DoubledSAM
    return "stages.0.blocks.0.mixer"


@pytest.mark.parametrize(
    "change",
    [_adapter, _pruned, _instance_forward, _circular, _group_norm, _other_activation, _approximate_gelu, _subclass],
)
def test_what_fusion_would_lose_is_refused(change: Callable[[Any], str]) -> None:
    model = lively()
    name = change(model)
    with pytest.raises(ValueError, match=rf"cannot fuse {re.escape(name)} \("):
        fuse(model)


def _scaled(y: torch.Tensor) -> torch.Tensor:
    return y * torch.linspace(0.5, 1.5, y[0].numel()).view_as(y[0])


def _scaled_forward(module: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    return _scaled(type(module).forward(module, *args, **kwargs))


@pytest.mark.parametrize("kind", ["hook", "forward"])
def test_changed_calls_are_kept_or_refused(kind: str) -> None:
    """Of every module, not only of layers: also of the stem, downsampling, blocks, mixers, MHMC, SAA and FFN."""
    model, x = lively(), images(1, 3, 32, 32)
    for name, module in model.named_modules():
        if kind == "hook":
            hook = module.register_forward_hook(lambda module, args, output: _scaled(output))
        else:
            module.forward = partial(_scaled_forward, module)  # as accelerate does
        in_part = re.match(r"stem|stages\.([1-9]\.downsample|\d\.blocks\.\d)", name)
        if in_part and not isinstance(module, nn.LayerNorm):
            with pytest.raises(ValueError, match=rf"cannot fuse {re.escape(name)} \("):
                fuse(model)
            if kind == "hook":
                hook.remove()
            else:
                del module.forward
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["parametrized", "SyncBatchNorm", "FrozenBatchNorm2d"])
def test_what_is_in_the_weights_is_fused(kind: str) -> None:
    model, x = lively(), images(2, 3, 64, 64)
    expected = model(x)
    if kind == "parametrized":
        nn.utils.parametrizations.weight_norm(model.stages[0].blocks[0].ffn.fc1)
    elif kind == "SyncBatchNorm":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        freeze(model)
    assert torch.allclose(fuse(model)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("products")
def test_weights_that_are_replaced_twice() -> None:
    """Their memory may be the first ones', whose packed form must not be used again."""
    layer, x = FusedLinear(torch.randn(300, 300), torch.zeros(300)), torch.randn(4, 300)
    for _ in range(20):
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), x @ layer.weight.T, rtol=1e-3, atol=1e-3)
        for _ in range(2):
            layer.weight = nn.Parameter(torch.randn(300, 300), requires_grad=False)


def test_a_fused_model_can_be_copied_stored_and_changed() -> None:
    model, x = lively(), images(1, 3, 32, 32)
    fused = fuse(model)
    with torch.inference_mode():
        expected = fused(x)
        assert torch.equal(copy.deepcopy(fused)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(fused))(x), expected)
    with torch.no_grad():
        fused.stages[0].blocks[0].ffn.fc1.weight.mul_(2)
        changed = fused(x)
    other = fuse(model)
    other.stages[0].blocks[0].ffn.fc1.weight.mul_(2)
    with torch.inference_mode():
        assert torch.equal(other(x), changed)
        assert not torch.equal(changed, expected)


def test_gradients_of_the_input_pass_through() -> None:
    model = lively()
    x = images(1, 3, 32, 32).requires_grad_()
    grads = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, fuse(model))]
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-3 * grads[0].abs().max().item())


def test_bfloat16_and_autocast() -> None:
    model, x = lively(), images(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        low = fuse(model).bfloat16()(x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = fuse(model)(x)
    for found in (low, mixed):
        assert found.dtype is torch.bfloat16
        assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_fused_model_exports_with_plain_operators() -> None:
    fused, x = fuse(lively()), images(2, 3, 64, 64)
    program = torch.export.export(fused, (x,), strict=False)
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    with torch.inference_mode():
        assert torch.allclose(program.module()(x), fused(x), rtol=1e-4, atol=1e-4)


def test_operators_of_an_unknown_form_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(dtype: torch.dtype) -> bool:
        raise TypeError("unknown signature")

    monkeypatch.setattr(onednn, "_results_match", raising)
    onednn.available.cache_clear()
    assert not onednn.available(torch.float32)
    onednn.available.cache_clear()


# --- another dtype


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("two linear layers", "focal modulation")])
def test_bfloat16_inside_float32_outside(case: str) -> None:
    model = lively(**CASES[case])
    fused = fuse(model, torch.bfloat16)
    x = images(2, model.stem.conv1.in_channels, 45, 61)
    with torch.inference_mode():
        (expected, maps), (found, found_maps) = (m.forward_intermediates(x) for m in (model, fused))
        logits = fused(x)
        seen = fused.stages[0].blocks[0](torch.zeros(1, 4, 4, model.stem.norm.weight.numel(), dtype=torch.bfloat16))
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = fused.forward_features(x)
    assert logits.dtype == found.dtype == torch.float32
    assert {p.dtype for p in fused.stages[0].norm.parameters()} == {torch.float32}
    assert seen.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in found_maps)
    for a, b in zip([found, *found_maps], [expected, *maps], strict=True):
        relative = (a - b).norm() / b.norm()
        assert 1e-5 < relative < 0.05  # rounded to 8 bits, and not more
    assert torch.equal(under_autocast, found)


def test_a_new_classifier_of_a_model_fused_in_another_dtype() -> None:
    fused: Any = fuse(create(), torch.bfloat16)
    fused.reset_classifier(3)
    assert fused(images(1, 3, 32, 32)).shape == (1, 3)


def test_dtypes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\.int8: expected a floating point type"):
        fuse(lively(), torch.int8)
    with pytest.raises(ValueError, match=r"cannot compute in torch\.bfloat16.*omit dtype"):
        fuse(lively(aggregation="mlp"), torch.bfloat16)


def test_at_dtype_fuses_what_it_can() -> None:
    x = images(1, 3, 32, 32)
    model = lively()
    half = at_dtype(model, torch.bfloat16)
    assert is_fused(half)
    assert isinstance(half, type(model))
    ablation, other = (at_dtype(m, torch.bfloat16) for m in (lively(aggregation="mlp"), timm.create_model("resnet10t")))
    for wrapped in (ablation, other):
        assert isinstance(wrapped, AutocastModel)
        assert not is_fused(wrapped)
        assert wrapped.eval()(x).dtype == torch.float32
        with torch.no_grad():
            assert not torch.equal(wrapped(x), wrapped.model(x))
    maps = at_dtype(timm.create_model("smt_atto", features_only=True), torch.bfloat16).eval()
    assert isinstance(maps, AutocastModel)
    assert is_fused(maps)
    assert [x.dtype for x in maps(x)] == [torch.float32] * 4


def test_bfloat16_is_refused_where_it_would_not_return() -> None:
    model = timm.create_model("smt_atto", conv_heads=1, conv_kernels=(15,))
    fuse(model)
    with pytest.raises(ValueError, match=r"invalid dtype=torch.bfloat16: .* kernels of 15 or more columns"):
        fuse(model, torch.bfloat16)
