"""What training does otherwise, to be faster and to keep less: the same function, the same gradients."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from debug_model import create, images
from literal import LiteralSMT
from smt_vision.kernels import onednn
from smt_vision.kernels.depthwise import DepthwiseConv2d
from smt_vision.kernels.lean import can_be_lean, linear, linear_of
from smt_vision.model import attention
from smt_vision.model.smt import FFN
from smt_vision.model.modulation import SAM
from smt_vision.model.official import to_official


def gradients(f: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    out = f(*inputs)
    return [out, *torch.autograd.grad(out, inputs, images(*out.shape, seed=7).to(out.dtype))]


def agree(actual: list[Tensor], expected: list[Tensor], relative: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert (a - e).abs().max() <= relative * e.abs().max()


# --- wide depthwise convolutions ---


@pytest.mark.parametrize("kernel", [5, 7, 9, 17])
@pytest.mark.parametrize(("H", "W"), [(11, 20), (6, 8), (2, 8), (9, 2), (1, 1)], ids=str)
def test_wide_depthwise_gradients(kernel: int, H: int, W: int) -> None:
    conv = DepthwiseConv2d(8, kernel).double()
    x = images(2, 8, H, W).double().to(memory_format=torch.channels_last).requires_grad_()

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=kernel // 2, groups=8)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv(x)

    arguments = (x, conv.weight, conv.bias)
    agree(gradients(ours, *arguments), gradients(plain, *arguments), 1e-12)


def test_a_wide_depthwise_convolution_takes_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("smt_vision.kernels.depthwise.weight_gradient", lambda x, g, w: calls.append(1) or w * 0)
    for kernel, expected in ((3, 0), (5, 1)):
        calls.clear()
        DepthwiseConv2d(4, kernel)(images(1, 4, 6, 6)).sum().backward()
        assert len(calls) == expected


def test_a_wide_depthwise_convolution_under_autocast() -> None:
    conv, x = DepthwiseConv2d(8, 7), images(2, 8, 9, 9).requires_grad_()
    reference = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    reference.load_state_dict(conv.state_dict())
    found = []
    for module in (conv, reference):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        assert out.dtype is torch.bfloat16
        found.append([out.float(), *torch.autograd.grad(out.float().square().sum(), (x, *module.parameters()))])
    agree(found[0], found[1], 2e-2)


def test_second_derivatives_of_a_wide_depthwise_convolution() -> None:
    conv = DepthwiseConv2d(2, 5).double()
    x = images(1, 2, 6, 6).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, weight, bias: conv(x), (x, conv.weight, conv.bias))


# --- linear layers, by oneDNN's products where it has them ---


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 24), (7, 24), (24,), (0, 24), (2, 48, 48, 24)], ids=str)
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias)
    if bias:
        layer.bias = nn.Parameter(torch.randn(80)[::2])  # one that does not lie in a row
    x = images(*shape[:-1], 2 * shape[-1])[..., shape[-1] :].requires_grad_()  # a part of a wider tensor
    inputs = (x, *layer.parameters())
    actual, expected = (gradients(lambda *_, f=f: f(x), *inputs) for f in (lambda x: linear(layer, x), layer))
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert torch.allclose(a, e, rtol=0, atol=1e-6 * float(e.detach().norm()) + 1e-6)


def test_linear_takes_the_product_of_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("smt_vision.kernels.lean.product", lambda *a: calls.append(1) or onednn.product(*a))
    layer, x = nn.Linear(4, 6), images(3, 4).requires_grad_()
    linear(layer, x).sum().backward()
    assert len(calls) == 2  # the product, and the gradient of its input
    with torch.no_grad():
        linear(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(layer, x).dtype is torch.bfloat16
    assert len(calls) == 2


def test_linear_can_be_differentiated_twice() -> None:
    layer = nn.Linear(3, 2).double()
    x = images(4, 3).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, *_: linear(layer, x), (x, layer.weight, layer.bias))


# --- linear layers that remember less ---


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Conv2d(6, 4, 1)], ids=str)
def test_linear_of_a_cheap_function(layer: nn.Linear | nn.Conv2d) -> None:
    layer = layer.double()
    a, b = images(2, 3, 5, 6).double().requires_grad_(), images(2, 3, 5, 6, seed=1).double().requires_grad_()

    def cheap(a: Tensor, b: Tensor) -> Tensor:
        return F.gelu(a) * b

    def plain(*_: Tensor) -> Tensor:
        seen = cheap(a, b)
        return layer(seen) if isinstance(layer, nn.Linear) else layer(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    inputs = (a, b, *layer.parameters())
    agree(gradients(lambda *_: linear_of(cheap, layer, a, b), *inputs), gradients(plain, *inputs), 1e-12)


def test_linear_of_keeps_its_inputs_alone() -> None:
    layer, x = nn.Linear(6, 4), images(50, 6).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear_of(F.gelu, layer, x)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), layer.weight.data_ptr()}


def test_linear_of_can_be_differentiated_twice() -> None:
    layer = nn.Linear(3, 2).double()
    a, b = images(4, 3).double().requires_grad_(), images(4, 3, seed=1).double().requires_grad_()

    def f(a: Tensor, b: Tensor) -> Tensor:
        return linear_of(lambda a, b: F.gelu(a) * b, layer, a, a * b)  # one input depends on the other

    assert torch.autograd.gradcheck(f, (a, b))
    assert torch.autograd.gradgradcheck(f, (a, b))


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_the_sum_inside_a_feed_forward_network(autocast: bool) -> None:
    ffn, x = FFN(8, 16), images(2, 5, 7, 8).requires_grad_()

    def literal(x: Tensor) -> Tensor:
        x = ffn.fc1(x)
        return ffn.fc2(F.gelu(x + ffn.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))

    inputs = (x, *ffn.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual, expected = (gradients(lambda *_, f=f: f(x).float(), *inputs) for f in (ffn, literal))
    agree(actual, expected, 2e-2 if autocast else 1e-5)


def test_what_stands_in_a_layers_place_is_called() -> None:
    class Adapter(nn.Linear):
        pass

    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert can_be_lean(nn.Linear(2, 2))
    assert not can_be_lean(Adapter(2, 2))
    assert not can_be_lean(hooked)
    assert not can_be_lean(parametrized)
    with torch.no_grad():
        assert not can_be_lean(nn.Linear(2, 2))


# --- the whole network ---


def losses(model: nn.Module, x: Tensor, target: Tensor, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(x).float(), target)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "overrides", [{}, dict(aggregation=False), dict(layer_scale=0.5, mixers=("A", "S", "SA", "S"))]
)
def test_gradients_equal_the_literal_forms(overrides: dict[str, Any]) -> None:
    literal = LiteralSMT(
        num_classes=5, embed_dims=(16, 32, 64, 128), depths=(1, 1, 2, 1), attn_heads=(1, 1, 2, 4), **overrides
    ).double()
    ours = create(num_classes=5, **overrides).double()
    ours.load_state_dict(literal.state_dict())
    x, target = images(3, 3, 45, 64).double(), torch.tensor([0, 1, 2])
    loss, grads = losses(ours.train(), x, target, autocast=False)
    expected_loss, expected = losses(literal.train(), x, target, autocast=False)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    named = to_official({**ours.state_dict(), **grads})  # the release's keys: merged layers are taken apart
    for name, grad in expected.items():
        assert (named[name] - grad).abs().max() <= 1e-9 * grad.abs().max().clamp(min=1e-5), name
    for name, value in literal.state_dict().items():
        if "running" in name:  # the statistics have seen the batch once
            assert torch.allclose(to_official(ours.state_dict())[name], value, rtol=1e-12, atol=1e-12), name


def test_an_adapter_in_a_network_is_called() -> None:
    model = create(num_classes=5).train()
    seen = []
    model.stages[0].blocks[0].ffn.fc2.register_forward_hook(lambda *_: seen.append("fc2"))
    model.stages[0].blocks[0].mixer.proj.register_forward_hook(lambda *_: seen.append("proj"))
    model.stages[0].blocks[0].mixer.saa.reduce.register_forward_hook(lambda *_: seen.append("reduce"))
    model(images(2, 3, 32, 32)).sum().backward()
    assert seen == ["reduce", "proj", "fc2"]


def test_attention_by_products_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (images(2, 3, 20, 8, seed=i).double().requires_grad_() for i in range(3))
    monkeypatch.setattr(attention, "PRODUCTS_UP_TO", {torch.float64: 20})
    by_products = gradients(lambda q, k, v: attention.attention(q, k, v, training=True), q, k, v)
    agree(by_products, gradients(F.scaled_dot_product_attention, q, k, v), 1e-12)


def test_a_training_step_keeps_no_copy_of_what_is_cheap() -> None:
    """A block's memory by count: a tensor more or less would be seen."""
    sam, x = SAM(16).train(), images(2, 8, 8, 16).requires_grad_()
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in sam.parameters()}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = sam(x)
    maps = sum(kept.values()) / (x.numel() * 4)
    assert out.shape == x.shape
    # x; value and context (2); heads side by side; expanded (2); modulator; and four numbers a channel.
    assert 7 <= maps < 7.1


# --- torch.func and forward mode, which get plain operators ---


def test_per_sample_gradients_and_forward_over_reverse() -> None:
    model = create(num_classes=3).double().eval()
    parameters, buffers, x = dict(model.named_parameters()), dict(model.named_buffers()), images(3, 3, 32, 32).double()

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, (parameters, buffers), (x,)).square().sum()

    one_by_one = [torch.autograd.grad(loss(parameters, image[None]), list(parameters.values())) for image in x]
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: what it has no batching rule for, and what it calls itself
        at_once = torch.func.vmap(torch.func.grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))(parameters, x)
        _, actual = torch.func.jvp(torch.func.grad(lambda x: loss(parameters, x)), (x,), (torch.ones_like(x),))
        _, expected = torch.autograd.functional.hvp(lambda x: loss(parameters, x), x, torch.ones_like(x))
    for of_all, *of_each in zip(at_once.values(), *one_by_one, strict=True):
        assert torch.allclose(of_all, torch.stack(of_each), rtol=1e-9, atol=1e-12)
    assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-12)
