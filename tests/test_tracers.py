"""The registered model and its fused form in tracers, exporters and scripts, with gradients enabled."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import SummaryWriter

from debug_model import create, images
from smt_vision.forms.inference import fuse

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit"),  # TorchScript is deprecated
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export"),
    pytest.mark.filterwarnings("ignore:ONNX Preprocess"),  # BatchNorm's statistics in training
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

# Few blocks, for tracers are slow.
SHORT: dict[str, Any] = dict(
    embed_dims=(8, 16, 16), depths=(1, 1, 2), mlp_ratios=2, mixers=("S", "A", "SA"), attn_heads=2
)


@pytest.fixture(params=["training", "evaluation", "dilated", "fused"])
def build(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """A new model with the same weights at each call."""

    def build() -> Any:
        torch.manual_seed(0)
        model = create(**SHORT, num_classes=3, output_stride=8 if request.param == "dilated" else None)
        if request.param == "fused":
            return fuse(model)
        return model.train(request.param == "training")

    return build


def close(actual: Any, expected: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), expected.detach(), rtol=1e-4, atol=1e-5)


def test_script(build: Callable[[], Any]) -> None:
    stored = io.BytesIO()
    torch.jit.save(torch.jit.script(build()), stored)
    stored.seek(0)
    scripted = torch.jit.load(stored)
    for shape in ((2, 3, 64, 96), (3, 3, 45, 61)):
        close(scripted(images(*shape)).detach(), build()(images(*shape)))


def test_trace(build: Callable[[], Any]) -> None:
    x = images(2, 3, 64, 96)
    traced = torch.jit.trace(build(), x)
    for other in (x, images(3, 3, 80, 64)):
        close(traced(other).detach(), build()(other))


def test_a_trace_can_be_trained() -> None:
    torch.manual_seed(0)
    model, x = create(**SHORT, num_classes=3).train(), images(2, 3, 64, 64)
    torch.jit.trace(model, x)(x).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_tensorboard_graph(build: Callable[[], Any], tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(build(), images(1, 3, 64, 64))
    (file,) = tmp_path.iterdir()
    assert b"aten::_convolution" in file.read_bytes()


def test_legacy_onnx_export(build: Callable[[], Any]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    program = io.BytesIO()
    torch.onnx.export(
        build(),
        (images(1, 3, 64, 96),),
        program,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch", 2: "height", 3: "width"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    session = runtime.InferenceSession(program.getvalue(), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 96), (2, 3, 80, 64)):
        x = images(*shape)
        (found,) = session.run(None, {"x": np.asarray(x)})[:1]
        close(found, build()(x))


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_make_fx_sees_public_operators(mode: str, build: Callable[[], Any]) -> None:
    x = images(2, 3, 64, 64)
    graph = make_fx(build(), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
    names = {str(node.target) for node in graph.graph.nodes}
    assert not [name for name in names if "mkldnn" in name or "smt_vision" in name]
    close(graph(x).detach(), build()(x))


def test_flops_are_counted(build: Callable[[], Any]) -> None:
    x, counts = images(2, 3, 64, 64), []
    for device in ("cpu", "meta"):
        for enabled in (True, False):
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(enabled):
                build().to(device)(x.to(device))
            counts.append(counter.get_total_flops())
    assert counts == [counts[-1]] * 4
    assert counts[0] > 0


def test_a_tensor_subclass_as_input(build: Callable[[], Any]) -> None:
    class Tagged(Tensor):
        pass

    x = images(2, 3, 64, 64)
    found = build()(x.as_subclass(Tagged))
    assert isinstance(found, Tagged)
    close(found.as_subclass(Tensor).detach(), build()(x))


def test_batched_gradients() -> None:
    model, x = create(**SHORT, num_classes=3).eval(), images(1, 3, 32, 32)
    found, expected = (torch.autograd.functional.jacobian(model, x, vectorize=vectorize) for vectorize in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    out = model(x)
    units = torch.eye(3).unsqueeze(1)
    batched = torch.autograd.grad(out, [*model.parameters()], units, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        for b, g in zip(batched, torch.autograd.grad(out[0, i], [*model.parameters()], retain_graph=True), strict=True):
            torch.testing.assert_close(b[i], g, rtol=1e-3, atol=1e-3 * max(g.abs().max().item(), 1e-3))


# --- whole modules ---


def test_a_whole_model_is_stored(build: Callable[[], Any]) -> None:
    stored = io.BytesIO()
    model, x = build(), images(2, 3, 64, 64)
    expected = build()(x)
    model(x)
    torch.save(model, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    close(again(x).detach(), expected)
    close(copy.deepcopy(model)(x).detach(), expected)


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2), (torch.float64, 1e-5)], ids=str
)
def test_other_types(dtype: torch.dtype, rounding: float, build: Callable[[], Any]) -> None:
    x = images(2, 3, 64, 64)
    found = build().to(dtype)(x.to(dtype))
    assert found.dtype is dtype
    expected = build()(x).double()
    assert (found.double() - expected).norm() < rounding * expected.norm()


def test_weights_of_a_quantized_type(build: Callable[[], Any]) -> None:
    """As torchao's weight-only types: a tensor subclass that knows ``linear`` only."""
    model, x = build(), images(2, 3, 64, 64)
    expected = build()(x)
    layers = [m for m in model.modules() if type(m).__name__ in ("Linear", "FusedLinear")]
    for layer in layers:
        layer.weight = nn.Parameter(Doubled(layer.weight.detach()), requires_grad=False)
    assert len(layers) > 5
    close(model(x).detach(), expected)
    with torch.no_grad():
        close(model(x), expected)


class Doubled(Tensor):
    """Twice the values of a tensor, halved again by ``linear``; any other computation with it raises an error."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Doubled":
        tensor = Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        tensor.stored = 2 * values
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            x, weight, *bias = args
            return func(x, weight.stored / 2, *bias, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} of a quantized weight")


def test_weights_that_a_hook_loads(build: Callable[[], Any]) -> None:
    """As accelerate offloads them: each layer's ``forward``, replaced on the instance, loads its weights."""
    model, x = build(), images(2, 3, 64, 64)
    expected = build()(x)
    for module in model.modules():
        if module._parameters:
            offload(module)
    assert all(p.is_meta for p in model.parameters())
    close(model(x).detach(), expected)


def offload(module: nn.Module) -> None:
    forward, stored = module.forward, dict(module._parameters)

    def loading(*args: Any, **kwargs: Any) -> Any:
        module._parameters.update(stored)
        try:
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(away)

    away = {name: None if p is None else nn.Parameter(p.detach().to("meta")) for name, p in stored.items()}
    module._parameters.update(away)
    module.forward = loading
