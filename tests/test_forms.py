"""The fast forms: the same function and gradients as the plain modules, and when they step aside."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_hooks
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from debug_model import DEBUG, create, images
from literal import LiteralSMT
from smt_vision import registry
from smt_vision.forms import FORMS, use_fast_forms
from smt_vision.forms.guard import can_bypass, can_recompute
from smt_vision.kernels import attention, onednn
from smt_vision.kernels.depthwise import depthwise_conv2d, residual_depthwise_conv2d
from smt_vision.kernels.linear import linear, recomputed_linear
from smt_vision.model import SAM, SMT
from smt_vision.model.official import to_official
from smt_vision.model.smt import FFN
from smt_vision.registry import VARIANTS
from tiny_run import environment
from waiting import DEADLINE


def gradients(f: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    out = f(*inputs)
    return [out, *torch.autograd.grad(out, inputs, images(*out.shape, seed=7).to(out.dtype))]


def agree(actual: list[Tensor], expected: list[Tensor], relative: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert (a - e).abs().max() <= relative * e.abs().max()


# --- depthwise convolutions ---


def depthwise(dim: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)


@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 17])
@pytest.mark.parametrize(("H", "W"), [(11, 20), (6, 8), (2, 8), (9, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["conv", "residual"])
def test_depthwise_gradients(kernel: int, H: int, W: int, residual: bool) -> None:
    conv = depthwise(8, kernel).double()
    x = images(2, 8, H, W).double().to(memory_format=torch.channels_last).requires_grad_()

    def ours(*arguments: Tensor) -> Tensor:
        return residual_depthwise_conv2d(*arguments) if residual else depthwise_conv2d(*arguments)

    def plain(x: Tensor, *_: Tensor) -> Tensor:
        return x + conv(x) if residual else conv(x)

    arguments = (x, conv.weight, conv.bias)
    agree(gradients(ours, *arguments), gradients(plain, *arguments), 1e-12)


def test_the_residual_in_the_kernel_in_float32() -> None:
    conv, x = depthwise(8, 3), images(2, 8, 5, 7).requires_grad_()
    arguments = (x, conv.weight, conv.bias)
    agree(gradients(residual_depthwise_conv2d, *arguments), gradients(lambda x, *_: x + conv(x), *arguments), 1e-5)


def test_a_wide_depthwise_convolution_takes_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("smt_vision.kernels.depthwise.weight_gradient", lambda x, g, w: calls.append(1) or w * 0)
    for kernel, expected in ((3, 0), (5, 1)):
        calls.clear()
        conv = depthwise(4, kernel)
        depthwise_conv2d(images(1, 4, 6, 6), conv.weight, conv.bias).sum().backward()
        assert len(calls) == expected


def test_a_wide_depthwise_convolution_under_autocast() -> None:
    conv, x = depthwise(8, 7), images(2, 8, 9, 9).requires_grad_()
    found = []
    for f in (lambda: depthwise_conv2d(x, conv.weight, conv.bias), lambda: conv(x)):
        with torch.autocast("cpu", torch.bfloat16):
            out = f()
        assert out.dtype is torch.bfloat16
        found.append([out.float(), *torch.autograd.grad(out.float().square().sum(), (x, *conv.parameters()))])
    agree(found[0], found[1], 2e-2)


def test_second_derivatives_of_a_wide_depthwise_convolution() -> None:
    conv = depthwise(2, 5).double()
    x = images(1, 2, 6, 6).double().requires_grad_()
    assert torch.autograd.gradgradcheck(depthwise_conv2d, (x, conv.weight, conv.bias))


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
    actual, expected = (
        gradients(lambda *_, f=f: f(x), *inputs) for f in (lambda x: linear(x, layer.weight, layer.bias), layer)
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert torch.allclose(a, e, rtol=0, atol=1e-6 * float(e.detach().norm()) + 1e-6)


def test_linear_takes_the_product_of_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("smt_vision.kernels.linear.product", lambda *a: calls.append(1) or onednn.product(*a))
    layer, x = nn.Linear(4, 6), images(3, 4).requires_grad_()
    linear(x, layer.weight, layer.bias).sum().backward()
    assert len(calls) == 2  # the product, and the gradient of its input
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, layer.weight, layer.bias).dtype is torch.bfloat16
    assert len(calls) == 2


def test_linear_can_be_differentiated_twice() -> None:
    layer = nn.Linear(3, 2).double()
    x = images(4, 3).double().requires_grad_()
    assert torch.autograd.gradgradcheck(linear, (x, layer.weight, layer.bias))


def test_the_gradient_of_a_constant_product_has_a_gradient_in_the_weight() -> None:
    """In float32, where oneDNN's operators could be used; the cotangent itself requires no gradient."""
    layer, x = nn.Linear(4, 6), images(3, 4).requires_grad_()
    found = []
    for function in (linear, F.linear):
        (grad,) = torch.autograd.grad(function(x, layer.weight, layer.bias).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), layer.weight)[0])
    torch.testing.assert_close(*found)


# --- linear layers with recomputed inputs ---


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Conv2d(6, 4, 1)], ids=str)
def test_recomputed_linear(layer: nn.Linear | nn.Conv2d) -> None:
    layer = layer.double()
    a, b = images(2, 3, 5, 6).double().requires_grad_(), images(2, 3, 5, 6, seed=1).double().requires_grad_()

    def cheap(a: Tensor, b: Tensor) -> Tensor:
        return F.gelu(a) * b

    def plain(*_: Tensor) -> Tensor:
        seen = cheap(a, b)
        return layer(seen) if isinstance(layer, nn.Linear) else layer(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    inputs = (a, b, *layer.parameters())
    agree(
        gradients(lambda *_: recomputed_linear(cheap, layer.weight, layer.bias, a, b), *inputs),
        gradients(plain, *inputs),
        1e-12,
    )


def test_recomputed_linear_keeps_only_its_inputs() -> None:
    layer, x = nn.Linear(6, 4), images(50, 6).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        recomputed_linear(F.gelu, layer.weight, layer.bias, x)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), layer.weight.data_ptr()}


def test_recomputed_linear_can_be_differentiated_twice() -> None:
    layer = nn.Linear(3, 2).double()
    a, b = images(4, 3).double().requires_grad_(), images(4, 3, seed=1).double().requires_grad_()

    def f(a: Tensor, b: Tensor) -> Tensor:
        # One input depends on the other.
        return recomputed_linear(lambda a, b: F.gelu(a) * b, layer.weight, layer.bias, a, a * b)

    assert torch.autograd.gradcheck(f, (a, b))
    assert torch.autograd.gradgradcheck(f, (a, b))


# --- the modules ---


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    "module",
    [
        FFN(8, 16), SAM(8), SAM(8, aggregation="none"), SAM(8, aggregation="mlp"), SAM(8, modulation="sum"),
        SAM(8, 2, kernel_sizes=(7, 3)),
    ],
    ids=["FFN", "SAM", "ConcatHeads", "DenseAggregation", "sum", "kernel sizes"],
)  # fmt: skip
def test_a_form_under_autocast_and_with_frozen_statistics(module: nn.Module, frozen: bool, autocast: bool) -> None:
    plain, x = copy.deepcopy(module), images(2, 5, 7, 8).requires_grad_()
    fast = use_fast_forms(copy.deepcopy(plain))
    found = []
    for form in (fast, plain):
        for norm in form.modules():
            if isinstance(norm, nn.BatchNorm2d) and frozen:
                norm.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append(gradients(lambda *_, form=form: form(x).float(), x, *form.parameters()))
    agree_in_norm(found[0], found[1], 2e-2 if autocast else 1e-5)


def agree_in_norm(actual: list[Tensor], expected: list[Tensor], relative: float) -> None:
    largest = max(e.norm() for e in expected[2:])
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert (a - e).norm() <= relative * max(e.norm(), 0.1 * largest)


# --- the whole network ---


def losses(model: nn.Module, x: Tensor, target: Tensor, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(x).float(), target)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "overrides", [{}, dict(aggregation="none"), dict(layer_scale=0.5, mixers=("A", "S", "SA", "S"))]
)
def test_gradients_equal_the_literal_network(overrides: dict[str, Any]) -> None:
    literal = LiteralSMT(
        num_classes=5, embed_dims=(16, 32, 64, 128), depths=(1, 1, 2, 1), attn_heads=(1, 1, 2, 4), **overrides
    ).double()
    ours = use_fast_forms(create(num_classes=5, **overrides)).double()
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


def test_attention_by_products_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (images(2, 3, 20, 8, seed=i).double().requires_grad_() for i in range(3))
    monkeypatch.setattr(attention, "MAX_TOKENS", {torch.float64: 20})
    by_products = gradients(attention.attention, q, k, v)
    agree(by_products, gradients(F.scaled_dot_product_attention, q, k, v), 1e-12)


def test_a_training_step_keeps_no_copy_of_what_is_cheap() -> None:
    """A block's memory by count: a tensor more or less would be seen."""
    sam, x = use_fast_forms(SAM(16)).train(), images(2, 8, 8, 16).requires_grad_()
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
    # x; value and context (2); heads side by side; expanded (2); modulator; and four numbers per channel.
    assert 7 <= maps < 7.1


# --- torch.func and forward mode ---


def test_per_sample_gradients_and_forward_over_reverse() -> None:
    model = use_fast_forms(create(num_classes=3)).double().eval()
    parameters, buffers, x = dict(model.named_parameters()), dict(model.named_buffers()), images(3, 3, 32, 32).double()

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, (parameters, buffers), (x,)).square().sum()

    one_by_one = [torch.autograd.grad(loss(parameters, image[None]), list(parameters.values())) for image in x]
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: on operators without a batching rule, and on deprecated ones
        at_once = torch.func.vmap(torch.func.grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))(parameters, x)
        _, actual = torch.func.jvp(torch.func.grad(lambda x: loss(parameters, x)), (x,), (torch.ones_like(x),))
        _, expected = torch.autograd.functional.hvp(lambda x: loss(parameters, x), x, torch.ones_like(x))
    for of_all, *of_each in zip(at_once.values(), *one_by_one, strict=True):
        assert torch.allclose(of_all, torch.stack(of_each), rtol=1e-9, atol=1e-12)
    assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-12)


# --- the swap ---


@pytest.mark.parametrize("overrides", [{}, dict(aggregation="none", layer_scale=0.1, mixers="SA")], ids=str)
def test_forms_add_no_state(overrides: dict[str, Any]) -> None:
    plain = SMT(**{**VARIANTS["smt_atto"], **overrides})
    fast = use_fast_forms(copy.deepcopy(plain))
    assert type(fast) is SMT
    for (name, a), b in zip(plain.named_modules(), fast.modules(), strict=True):
        assert type(b) is FORMS.get(type(a), type(a)), name
        assert vars(a).keys() == vars(b).keys()
    assert not {type(module) for module in fast.modules()} & FORMS.keys()
    for a, b in zip(plain.state_dict().items(), fast.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])


def test_forms_are_put_in_by_timm_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def forms(model: nn.Module) -> set[type]:
        return {type(module) for module in model.modules()} & {*FORMS.values()}

    monkeypatch.setattr(registry, "KERNELS", "auto")
    assert forms(create()) == {*FORMS.values()}
    assert not forms(SMT(**VARIANTS["smt_atto"]))
    monkeypatch.setattr(registry, "KERNELS", "plain")
    assert not forms(create())


def test_a_subclass_of_a_plain_module_is_left_alone() -> None:
    class Mine(FFN):
        pass

    model = nn.Sequential(Mine(8, 8), FFN(8, 8))
    use_fast_forms(use_fast_forms(model))
    assert [type(module) for module in model] == [Mine, FORMS[FFN]]


# --- the guard ---

GLOBAL_HOOKS: dict[str, Callable[[Callable[..., None]], RemovableHandle]] = {
    "forward pre": module_hooks.register_module_forward_pre_hook,
    "forward": module_hooks.register_module_forward_hook,
    "backward pre": module_hooks.register_module_full_backward_pre_hook,
    "backward": module_hooks.register_module_full_backward_hook,
}


class Adapter(nn.Module):
    """A LoRA-like wrapper in a linear layer's place, with its attributes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) + 1


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d | nn.GELU)
    }


def counted(model: nn.Module) -> tuple[dict[nn.Module, int], Callable[..., None]]:
    calls = dict.fromkeys(leaves(model).values(), 0)

    def count(module: nn.Module, *_: Any) -> None:
        if module in calls:
            calls[module] += 1

    return calls, count


def train(model: nn.Module) -> None:
    # The images need a gradient for backward hooks of the first layer.
    model.train()(images(2, 3, 32, 32).requires_grad_()).square().sum().backward()


@pytest.fixture
def fast() -> Any:
    torch.manual_seed(0)
    return use_fast_forms(create(num_classes=5)).train()


def test_without_a_hook_layers_are_bypassed(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind in (nn.Linear, nn.Conv2d):
        forward = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, f=forward: calls.append(type(self).__name__) or f(self, x))
    train(fast)
    # The convolutions of the stem, downsampling, SAA's expansion and MSA; the classifier.
    assert (calls.count("Conv2d"), calls.count("Linear")) == (2 + 3 + 3 + 2, 1)


@pytest.mark.parametrize("kind", GLOBAL_HOOKS)
def test_global_hooks_see_every_layer(kind: str, fast: Any) -> None:
    calls, count = counted(fast)
    handle = GLOBAL_HOOKS[kind](count)
    try:
        train(fast)
    finally:
        handle.remove()
    assert set(calls.values()) == {1}


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_pre_hook",
        "register_forward_hook",
        "register_full_backward_pre_hook",
        "register_full_backward_hook",
    ],
)
def test_hooks_of_a_layer_are_called(register: str, fast: Any) -> None:
    calls, count = counted(fast)
    for layer in calls:
        getattr(layer, register)(count)
    train(fast)
    assert set(calls.values()) == {1}


def test_a_forward_of_an_instance_is_called(fast: Any) -> None:
    calls, count = counted(fast)
    for layer in calls:
        layer.forward = lambda x, layer=layer: count(layer) or type(layer).forward(layer, x)
    train(fast)
    assert set(calls.values()) == {1}


def test_a_parametrization_is_applied(fast: Any) -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    x = images(2, 4, 4, 64)
    for mixer, name in ((fast.stages[2].blocks[0].mixer, "proj"), (fast.stages[2].blocks[1].mixer, "proj")):
        nn.utils.parametrize.register_parametrization(mixer.get_submodule(name), "weight", Zero())
        assert torch.equal(mixer(x), mixer.proj.bias.expand(2, 4, 4, 64))


def test_an_adapter_is_called(fast: Any) -> None:
    adapters = []
    for block in (fast.stages[0].blocks[0], fast.stages[3].blocks[0]):
        for parent, name in ((block.mixer, "proj"), (block.ffn, "fc1"), (block.ffn, "fc2")):
            adapters.append(Adapter(getattr(parent, name)))
            setattr(parent, name, adapters[-1])
    train(fast)
    assert [adapter.calls for adapter in adapters] == [1] * len(adapters)


@pytest.mark.parametrize(
    "change",
    [
        dict(padding_mode="circular", _reversed_padding_repeated_twice=[1, 1, 1, 1]),
        dict(dilation=(2, 2), padding=(2, 2)),
        dict(padding=(0, 0)),
        dict(stride=(2, 2)),
        dict(approximate="tanh"),
    ],
    ids=str,
)
def test_a_changed_layer_computes_what_it_says(change: dict[str, Any]) -> None:
    layer = nn.GELU() if "approximate" in change else depthwise(4, 3)
    assert can_bypass(images(1, 4, 6, 6), layer)
    vars(layer).update(change)
    assert not can_bypass(images(1, 4, 6, 6), layer)


def test_circular_padding_of_every_convolution(fast: Any) -> None:
    """E.g. for panoramas, whose left and right edges meet."""
    for module in fast.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.padding_mode = "circular"
    x = images(2, 3, 64, 64)
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        expected = twin(x)  # without gradients, the layers are called
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    ordinary = use_fast_forms(create(num_classes=5)).train()
    ordinary.load_state_dict(fast.state_dict())
    assert not torch.allclose(ordinary(x), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_forms(output_stride: int, training: bool) -> None:
    torch.manual_seed(0)
    plain = SMT(**DEBUG, num_classes=5, output_stride=output_stride).double().train(training)
    fast = use_fast_forms(copy.deepcopy(plain))
    x, found = images(2, 3, 64, 96).double(), []
    for model in (fast, plain):
        out = model(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), [*model.parameters()])])
    agree_in_norm(found[0], found[1], 1e-9)


def test_a_tensor_subclass_is_left_to_its_own_operators() -> None:
    class Quantized(Tensor):
        pass

    layer = nn.Linear(2, 2)
    assert not can_bypass(images(1, 2).as_subclass(Quantized), layer)
    layer.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Quantized))
    assert not can_bypass(images(1, 2), layer)


def test_transforms_and_tracers_get_plain_operators() -> None:
    layer, x = nn.Linear(2, 2), images(3, 2)
    answers: list[bool] = []

    def f(x: Tensor) -> Tensor:
        answers.append(can_bypass(x, layer))
        return (x * x).sum()

    f(x)
    assert answers.pop()
    torch.func.grad(f)(x)
    torch.func.vmap(f)(x)
    torch.func.jvp(f, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        f(torch.autograd.forward_ad.make_dual(x, x))
    torch.fx.symbolic_trace(f)
    with FlopCounterMode(display=False):
        f(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        torch.jit.trace(f, x, check_trace=False)
    assert answers == [False] * 7


def test_a_form_with_a_backward_pass_needs_gradients() -> None:
    layer, x = nn.Linear(2, 2), images(1, 2)
    assert can_recompute(x, layer)
    with torch.no_grad():
        assert can_bypass(x, layer)
        assert not can_recompute(x, layer)


@pytest.mark.parametrize("in_compiled_code", [False, True])
def test_compilers_and_exporters(in_compiled_code: bool) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if can_bypass(x, self.layer, in_compiled_code=in_compiled_code) else x - 1

    x = images(3, 2)
    torch.compiler.reset()
    compiled = torch.compile(Asks(), fullgraph=True, backend="eager")(x)
    assert torch.equal(compiled, x + 1 if in_compiled_code else x - 1)
    for strict in (False, True):
        assert torch.equal(torch.export.export(Asks(), (x,), strict=strict).module()(x), x - 1)


# --- FSDP2 ---


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.usefixtures("process_group")
def test_each_form_can_be_sharded() -> None:
    """``fully_shard`` gives a module a class of its own, derived from the form."""
    model = use_fast_forms(create(num_classes=7))
    expected, x = copy.deepcopy(model), images(2, 3, 32, 32)
    mesh = init_device_mesh("cpu", (1,))
    for module in reversed(list(model.modules())):
        if type(module) in FORMS.values():
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(x).square().mean().backward()
    expected(x).square().mean().backward()
    for parameter, reference in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), reference.grad, rtol=1e-4, atol=1e-6)


def test_wide_kernels_in_bfloat16_on_a_cpu() -> None:
    """From which PyTorch's own operator does not return: hence in a process."""
    code = """
import torch, timm, smt_vision
from smt_vision.forms.inference import at_dtype
torch.manual_seed(0)
model = timm.create_model("smt_atto", embed_dims=(8, 16), depths=(1, 1), mixers=("S", "A"), mlp_ratios=2, attn_heads=2,
                          conv_heads=8, stem_stride=1, num_classes=3)
x = torch.randn(2, 3, 40, 40)
outputs, gradients = [], []
for dtype in (torch.float32, torch.bfloat16):
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        y = model.train()(x)
    model.zero_grad()
    y.float().square().sum().backward()
    gradients.append(model.stages[0].blocks[0].mixer.mhmc.convs[7].weight.grad.clone())
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        outputs.append(model.eval()(x).float())
with torch.no_grad():
    outputs.append(at_dtype(model, torch.bfloat16)(x))
for y in outputs[1:]:
    assert (y.float() - outputs[0]).norm() < 0.05 * outputs[0].norm()
assert torch.nn.functional.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.99
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=DEADLINE)
