"""The Triton kernels equal the plain modules of ``model/modulation.py`` in float64.

Without a GPU, the tests marked ``on_kernels`` need ``TRITON_INTERPRET=1`` in the environment, which Triton reads when
it is imported; ``make test`` runs them so.
"""

import copy
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from smt_vision.forms import use_fast_forms
from smt_vision.forms.inference import fuse
from smt_vision.kernels import availability, mhmc, saa
from smt_vision.model import MHMC, SAA, SAM, SMT
from smt_vision.model.modulation import paper_kernel_sizes

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
on_kernels = pytest.mark.skipif(
    not CUDA and not availability.INTERPRETED, reason="no GPU, and TRITON_INTERPRET is not 1"
)
needs_triton = pytest.mark.skipif(not availability.HAS_TRITON, reason="Triton is not installed")
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}  # of a tensor's norm


@pytest.fixture(autouse=True)
def _float32_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, with which PyTorch computes convolutions on a GPU by default, to three digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of ``dtype``, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape))).to(DEVICE, dtype)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def off(found: Tensor | None, expected: Tensor | None) -> float:
    """Distance over the norm of what was expected."""
    assert found is not None
    assert expected is not None
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def mhmc_of(module: MHMC, s: Tensor) -> Tensor:
    assert mhmc.is_supported(s, module.kernel_sizes)
    biases = [conv.bias for conv in module.convs]
    return mhmc.convolve(s, [conv.weight for conv in module.convs], biases)


# --- MHMC ---


@on_kernels
@pytest.mark.parametrize(
    ("heads", "shape", "dtype"),
    [
        (4, (2, 5, 7, 12), torch.float32),  # odd sizes, smaller than the largest kernel; three groups
        (2, (1, 6, 3, 16), torch.bfloat16),
        (1, (2, 5, 9, 72), torch.float16),  # several programs along the positions and along the groups
    ],
)
def test_mhmc(
    heads: int, shape: tuple[int, int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smt_vision.kernels import triton_mhmc

    monkeypatch.setattr(triton_mhmc, "CHUNKS", 2)  # several steps in a program, at these sizes
    B, H, W, C = shape
    module = MHMC(C, heads).to(DEVICE)
    exact = copy.deepcopy(module).double()
    whole = leaf(randn(B, H, W, 2 * C, dtype=dtype))  # value and context: the context is a strided view
    whole_exact = leaf(whole.double())

    out = mhmc_of(module, whole.chunk(2, dim=-1)[1])
    expected = exact(whole_exact.chunk(2, dim=-1)[1])
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert off(out, expected) < ROUNDING[dtype]

    grad = randn(*out.shape, dtype=dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert off(whole.grad, whole_exact.grad) < ROUNDING[dtype]
    for (name, found), wanted in zip(module.named_parameters(), exact.parameters(), strict=True):
        assert off(found.grad, wanted.grad) < 5e-6, name  # summed in float32 from the same numbers


# --- SAA ---


def norm_act_of(module: SAA, x: Tensor) -> Tensor:
    assert saa.is_supported(x, module.expand, module.norm)
    return saa.expand_norm_gelu(x, module.expand, module.norm)


def plain_norm_act(module: SAA, x: Tensor) -> Tensor:
    return module.act(module.norm(module.expand(x.flatten(-2).permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


def saa_pair(heads: int, groups: int, ratio: int, momentum: float | None = 0.1) -> tuple[SAA, SAA]:
    """A module with parameters and statistics of no special value, and the same in float64."""
    torch.manual_seed(0)
    module = SAA(groups * heads, heads, ratio)
    module.norm.momentum = momentum
    with torch.no_grad():
        for t, low, high in (
            (module.expand.bias, -3.0, 3.0),
            (module.norm.weight, 0.5, 2.0),
            (module.norm.bias, -1.0, 1.0),
            (module.norm.running_mean, -1.0, 1.0),
            (module.norm.running_var, 0.5, 2.0),
        ):
            assert t is not None
            t.uniform_(low, high)
    module = module.to(DEVICE)
    return module, copy.deepcopy(module).double()


SAA_CASES = [
    (4, 3, 2, (2, 3, 5), torch.float32),
    (2, 4, 3, (1, 9, 4), torch.bfloat16),  # 6 outputs a group: no power of two
    (1, 40, 4, (2, 5, 7), torch.float16),  # several programs along the positions and along the groups
]


@on_kernels
@pytest.mark.parametrize("programs", [1, 1024])
@pytest.mark.parametrize(("heads", "groups", "ratio", "grid", "dtype"), SAA_CASES)
def test_saa_in_training(
    heads: int,
    groups: int,
    ratio: int,
    grid: tuple[int, int, int],
    dtype: torch.dtype,
    programs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from smt_vision.kernels import triton_saa

    monkeypatch.setattr(triton_saa, "PROGRAMS", programs)  # one that walks all positions, or one for each few
    module, exact = saa_pair(heads, groups, ratio)
    x = leaf(randn(*grid, groups, heads, dtype=dtype))
    x_exact = leaf(x.double())

    out, expected = norm_act_of(module, x), plain_norm_act(exact, x_exact)
    assert out.dtype == dtype
    assert off(out, expected) < ROUNDING[dtype]
    grad = randn(*out.shape, dtype=dtype)
    names = ("expand.weight", "norm.weight", "norm.bias", "expand.bias")
    found = torch.autograd.grad(out, [x, *map(module.get_parameter, names)], grad)
    wanted = torch.autograd.grad(expected, [x_exact, *map(exact.get_parameter, names)], grad.double())
    assert off(found[0], wanted[0]) < ROUNDING[dtype]
    assert found[0].transpose(-1, -2).is_contiguous()  # head after head: MHMC's backward pass takes it without a copy
    for name, f, w in zip(names[:3], found[1:4], wanted[1:4], strict=True):
        assert off(f, w) < 2e-6, name
    assert not found[4].any()  # the batch's mean takes the bias out again


@on_kernels
@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
def test_running_statistics(momentum: float | None) -> None:
    module, exact = saa_pair(2, 4, 2, momentum)
    for seed in range(3):
        x = randn(2, 3 + seed, 5, 4, 2)
        with torch.no_grad():
            norm_act_of(module, x)
            plain_norm_act(exact, x.double())
    assert off(module.norm.running_mean, exact.norm.running_mean) < 1e-6
    assert off(module.norm.running_var, exact.norm.running_var) < 1e-6
    assert torch.equal(module.norm.num_batches_tracked, exact.norm.num_batches_tracked)


@on_kernels
def test_running_statistics_that_are_not_tracked_stay() -> None:
    module, exact = saa_pair(2, 4, 2)
    before = {key: value.clone() for key, value in module.norm.state_dict().items()}
    module.norm.track_running_stats = exact.norm.track_running_stats = False
    x = randn(2, 3, 5, 4, 2)
    with torch.no_grad():
        assert off(norm_act_of(module, x), plain_norm_act(exact, x.double())) < 2e-6
    for statistics in (module.norm.state_dict(), exact.norm.state_dict()):
        assert all(torch.equal(value.to(before[key]), before[key]) for key, value in statistics.items())


@on_kernels
def test_without_running_statistics_the_batch_s_are_used() -> None:
    module, exact = saa_pair(2, 4, 2)
    for m in (module, exact):
        norm = nn.BatchNorm2d(m.norm.num_features, track_running_stats=False)
        m.norm = norm.to(m.expand.weight)
    x = randn(2, 3, 5, 4, 2)
    with torch.no_grad():
        assert off(norm_act_of(module, x), plain_norm_act(exact, x.double())) < 2e-6


@on_kernels
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """The mean of squares would: at a mean of 1000 deviations, float32 leaves it one digit of the variance."""
    from smt_vision.kernels import triton_saa

    x, weight = 1000 + randn(4, 5, 6, 3, 1), torch.ones(3, 1, device=DEVICE)
    mean, var = triton_saa.statistics(x, weight)
    flat = x.double().flatten(0, 2).squeeze(-1)
    assert off(mean, flat.mean(0)) < 3e-7  # float32 rounds at 1.2e-7
    assert off(var, flat.var(0, unbiased=False)) < 1e-4


@on_kernels
@pytest.mark.parametrize(("heads", "groups", "ratio", "grid", "dtype"), SAA_CASES)
def test_saa_in_evaluation(heads: int, groups: int, ratio: int, grid: tuple[int, int, int], dtype: torch.dtype) -> None:
    module, exact = (m.eval() for m in saa_pair(heads, groups, ratio))
    before = copy.deepcopy(module.norm.state_dict())
    x = randn(*grid, groups, heads, dtype=dtype)
    with torch.no_grad():
        out = norm_act_of(module, x)
        assert out.dtype == dtype
        assert off(out, plain_norm_act(exact, x.double())) < ROUNDING[dtype]
    assert all(torch.equal(value, before[key]) for key, value in module.norm.state_dict().items())


# --- the operators, as PyTorch sees them ---


def both(module: MHMC, aggregation: SAA, s: Tensor) -> Tensor:
    return norm_act_of(aggregation, mhmc_of(module, s))


@on_kernels
def test_autocast_casts_as_for_a_convolution() -> None:
    module, aggregation = MHMC(4, 1).to(DEVICE), saa_pair(1, 4, 2)[0]
    s = leaf(randn(1, 3, 4, 4))
    with torch.autocast(DEVICE, torch.bfloat16):
        out = both(module, aggregation, s)
        assert out.dtype == norm_act_of(aggregation, randn(1, 3, 4, 4, 1)).dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert s.grad is not None
    assert s.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


@on_kernels
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_without_a_break_for_any_batch() -> None:
    module, aggregation = MHMC(8, 2).to(DEVICE), saa_pair(2, 4, 2)[0]
    again, aggregation_again = copy.deepcopy((module, aggregation))
    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        s, s_again = (leaf(randn(batch, 4, 3, 8)) for _ in range(2))
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            out = compiled(module, aggregation, s)
        expected = both(again, aggregation_again, s_again)
        assert torch.equal(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        assert off(s.grad, s_again.grad) < 1e-6
    assert torch.equal(aggregation.norm.running_var, aggregation_again.norm.running_var)


@on_kernels
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_operators_keep_pytorch_s_rules() -> None:
    s, x = leaf(randn(1, 3, 4, 4)), leaf(randn(1, 3, 2, 4, 1))
    torch.library.opcheck(mhmc._mhmc, (s, leaf(randn(9, 4)), leaf(randn(1, 4))))
    per_output = [leaf(randn(8)) for _ in range(3)]
    torch.library.opcheck(saa._norm_gelu, (x, leaf(randn(8, 1)), *per_output, 1e-5))
    torch.library.opcheck(saa.grouped_gelu, (x.detach(), randn(8, 1), randn(8)))


# --- the modules that use them ---


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operators that forms call."""
    names: list[str] = []
    for module, name in ((mhmc, "convolve"), (saa, "expand_norm_gelu")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, name=name: names.append(name) or f(*a))
    return names


def sam() -> tuple[SAM, Tensor]:
    torch.manual_seed(0)
    return SAM(8, num_heads=2).to(DEVICE), randn(2, 3, 4, 8)


@on_kernels
@pytest.mark.parametrize("training", [True, False])
def test_forms_use_the_kernels(training: bool, launches: list[str]) -> None:
    plain, x = sam()
    fast = use_fast_forms(copy.deepcopy(plain)).train(training)
    x, x_plain = leaf(x), leaf(x)
    with torch.set_grad_enabled(training):
        out, expected = fast(x), plain.train(training)(x_plain)
    assert launches == ["convolve", "expand_norm_gelu"]
    assert off(out, expected) < 1e-5
    if training:
        out.square().sum().backward()
        expected.square().sum().backward()
        assert off(x.grad, x_plain.grad) < 1e-4
        for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
            if not re.fullmatch(r"mhmc.*bias|saa\.expand\.bias", name):  # the batch's mean takes these out again
                assert off(a.grad, b.grad) < 1e-4, name


@on_kernels
def test_the_gradients_can_be_differentiated(launches: list[str]) -> None:
    plain, x = sam()
    fast = use_fast_forms(copy.deepcopy(plain)).train()
    plain.train()
    found = []
    for module in (fast, plain):
        leaves = [leaf(x), *module.parameters()]
        (grad,) = torch.autograd.grad(module(leaves[0]).square().sum(), leaves[0], create_graph=True)
        found.append([grad, *torch.autograd.grad(grad.square().sum(), leaves, allow_unused=True)])
    assert launches == ["convolve", "expand_norm_gelu"]
    for (name, _), a, b in zip([("first", 0), ("x", 0), *plain.named_parameters()], *found, strict=True):
        if not re.fullmatch(r"mhmc.*bias|saa\.expand\.bias|.*proj\.bias", name):  # zero, or of the batch's mean
            assert off(a, b) < 1e-3, name


@on_kernels
@pytest.mark.parametrize(("modulation", "dtype"), [("product", torch.float32), ("sum", torch.bfloat16)])
def test_a_fused_model_uses_the_kernels(
    modulation: str, dtype: torch.dtype, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    product = saa.grouped_gelu
    monkeypatch.setattr(saa, "grouped_gelu", lambda *args: launches.append("grouped_gelu") or product(*args))
    torch.manual_seed(0)
    model = SMT(
        embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), attn_heads=(1, 1, 1, 1), mixers=("S", "S", "A", "A"),
        conv_heads=2, modulation=modulation, num_classes=3,
    ).eval()  # fmt: skip
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    images = randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.to(DEVICE)(images)
        fused = fuse(use_fast_forms(copy.deepcopy(model)), dtype)
        assert off(fused(images), expected) < (1e-5 if dtype == torch.float32 else 0.05)
    assert launches == ["convolve", "grouped_gelu"] * 2
    launches.clear()
    image = leaf(images)
    fuse(use_fast_forms(model))(image).sum().backward()  # gradients of the input need PyTorch's operators for SAA
    assert launches == ["convolve"] * 2
    assert image.grad is not None


@on_kernels
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_a_fused_model_steps_aside(launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For TorchScript, FX, and hooks and replaced ``forward``s of the layer that the kernel replaces."""
    product = saa.grouped_gelu
    monkeypatch.setattr(saa, "grouped_gelu", lambda *args: launches.append("grouped_gelu") or product(*args))
    model = (
        SMT(embed_dims=(8,), depths=(1,), attn_heads=1, mlp_ratios=2, mixers="S", conv_heads=2, num_classes=3)
        .to(DEVICE)
        .eval()
    )
    fused, x = fuse(use_fast_forms(model)), randn(1, 3, 32, 32)
    mixer = fused.stages[0].blocks[0].mixer
    with torch.no_grad():
        expected = fused(x)
        assert launches == ["convolve", "grouped_gelu"]
        launches.clear()
        with mixer.expand.register_forward_hook(lambda *_: launches.append("hook")):
            assert off(fused(x), expected) < 1e-5
        assert launches == ["convolve", "hook"]
        assert off(torch.jit.script(fused)(x), expected) < 1e-5
    traced = torch.fx.symbolic_trace(fused)  # with gradients enabled
    assert off(traced(x), expected) < 1e-5


@on_kernels
def test_forms_step_aside(launches: list[str]) -> None:
    plain, x = sam()
    fast = use_fast_forms(plain)
    for layer in (fast.mhmc.convs[1], fast.saa.norm):
        handle = layer.register_forward_hook(lambda *_: launches.append("hook"))
        fast(x)
        handle.remove()
    assert launches == ["hook", "expand_norm_gelu", "convolve", "hook"]
    launches.clear()
    torch.func.grad(lambda x: fast.eval()(x).sum())(x)
    assert launches == []


@on_kernels
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_forms_use_the_kernels_in_compiled_code_but_not_in_an_exported_program() -> None:
    plain, x = sam()
    fast = use_fast_forms(plain).eval().requires_grad_(False)
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    assert off(torch.compile(fast, fullgraph=True, backend=backend)(x), fast(x)) < 1e-6
    assert sum("smt_vision" in target for target in targets) == 2
    program = torch.export.export(fast, (x,))
    assert not any("smt_vision" in str(node.target) for node in program.graph.nodes)
    assert off(program.module()(x), fast(x)) < 1e-5


# --- compilation ---


class Compiled:
    """Stands for a kernel; a launch compiles it for an NVIDIA GPU and runs nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, num_warps: int, enable_fp_fusion: bool, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget

        values = [*args, *constants.values()]
        fixed = {(i,): v for i, v in enumerate(values) if v is None or self.kernel.params[i].is_constexpr}
        types = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
        kinds = [types[v.dtype] if isinstance(v, Tensor) else "i32" for v in values]
        signature = {n: "constexpr" if (i,) in fixed else kinds[i] for i, n in enumerate(self.kernel.arg_names)}
        assert list(constants) == self.kernel.arg_names[len(args) :]
        source = triton.compiler.ASTSource(self.kernel, signature, fixed)
        options = dict(num_warps=num_warps, enable_fp_fusion=enable_fp_fusion)
        assert triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["cubin"]


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(CUDA or availability.INTERPRETED, reason="they are compiled for real, or not at all")
def test_they_compile_for_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes some Python that the compiler does not."""
    from smt_vision.kernels import triton_mhmc, triton_saa

    monkeypatch.setattr(availability, "INTERPRETED", True)
    monkeypatch.setattr(availability, "triton_runs_on", lambda device: True)
    kernels = [(triton_mhmc, "_convolve"), (triton_mhmc, "_weight_gradient")]
    kernels += [(triton_saa, name) for name in ("_apply", "_statistics", "_gradient_sums", "_gradients")]
    for module, name in kernels:
        monkeypatch.setattr(module, name, Compiled(getattr(module, name)))
    convolution, aggregation = MHMC(64, 4), SAA(64, 4)
    s = leaf(randn(1, 6, 6, 64, dtype=torch.bfloat16))
    both(convolution, aggregation, s).sum().backward()


# --- when they run ---


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels may run on any device, as far as the choice is concerned."""
    monkeypatch.setattr(availability, "HAS_TRITON", True)
    monkeypatch.setattr(availability, "INTERPRETED", True)
    monkeypatch.setattr(availability, "triton_runs_on", lambda device: True)


def takes_saa(x: Tensor, change: Callable[[SAA], Any] = lambda module: None) -> bool:
    module = SAA(8, 2, 2)
    change(module)
    return saa.is_supported(x, module.expand, module.norm)


@pytest.mark.usefixtures("anywhere")
def test_what_the_kernels_take() -> None:
    s, x = torch.zeros(2, 3, 3, 8), torch.zeros(2, 3, 3, 4, 2)
    assert mhmc.is_supported(s, paper_kernel_sizes(4))
    assert takes_saa(x)
    assert not mhmc.is_supported(s, (3, 5, 7, 7))
    assert not mhmc.is_supported(s, (9,))
    assert not mhmc.is_supported(s.double(), paper_kernel_sizes(4))
    assert not mhmc.is_supported(torch.zeros(2, 3, 3, 9), paper_kernel_sizes(3))
    assert not mhmc.is_supported(s[:0], paper_kernel_sizes(4))
    assert not takes_saa(x.double())
    assert not takes_saa(x[:1, :1, :1])  # one value a channel: the plain form says what is wrong
    assert not takes_saa(x, lambda m: setattr(m, "norm", nn.SyncBatchNorm(16)))
    assert not takes_saa(x, lambda m: setattr(m, "norm", nn.BatchNorm2d(16, affine=False)))
    assert not takes_saa(x, SAA.eval)  # evaluation with a gradient
    with torch.no_grad():
        assert takes_saa(x, SAA.eval)
    with FakeTensorMode():  # shapes without memory
        assert mhmc.is_supported(torch.empty(1_000, 56, 56, 64), paper_kernel_sizes(4))
        assert not mhmc.is_supported(torch.empty(20_000, 56, 56, 64), paper_kernel_sizes(4))  # offsets beyond 32 bits
        assert not takes_saa(torch.empty(50_000, 56, 56, 4, 2))
    assert not mhmc.is_supported(s.to("meta"), paper_kernel_sizes(4))


@needs_triton
@pytest.mark.skipif(CUDA or availability.INTERPRETED, reason="Triton runs here")
def test_where_triton_cannot_run_the_plain_form_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU in a container without a C compiler; Triton really fails on this CPU."""
    monkeypatch.setattr(availability, "INTERPRETED", True)
    try:
        for _ in range(2):
            assert not mhmc.is_supported(torch.zeros(2, 3, 3, 8), paper_kernel_sizes(4))
    finally:
        availability.triton_runs_on.cache_clear()
    assert [record.getMessage()[:36] for record in caplog.records] == ["Triton kernels cannot run on cpu (Ru"]


@on_kernels
def test_triton_runs_here() -> None:
    assert availability.triton_runs_on(torch.device("cuda" if CUDA else "cpu"))


def test_on_a_cpu_the_plain_form_runs() -> None:
    if availability.INTERPRETED:
        pytest.skip("the interpreter is on")
    assert not mhmc.is_supported(torch.zeros(2, 3, 3, 8), paper_kernel_sizes(4))
    assert not takes_saa(torch.zeros(2, 3, 3, 4, 2))


# --- the benchmark ---

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_the_benchmark_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "there is no CUDA device here; --smoke runs the code on a CPU\n"


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    results = json.loads(out.read_text())
    assert results["failed"] == []
    assert results["graphs"] == {"inference": 1, "training": 1}
    assert [row["mode"] for row in results["models"]] == ["inference"] * 9 + ["training"] * 7
    assert all(row["images_per_s"] > 0 for row in results["models"])
    assert all(row["median_ms"] >= 0 for row in results["profile"])
    assert len(results["profile"]) == 15
