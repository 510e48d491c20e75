"""Timing, memory and comparison of models: that what is reported is what was run."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debug_model import create, images
from smt_vision.allocator import keep_large_allocations
from smt_vision.benchmark.compare import Candidate, compare
from smt_vision.benchmark.memory import in_fresh_process, peak_memory, saved_activations
from smt_vision.benchmark.published import BASELINES, PUBLISHED
from smt_vision.benchmark.timing import Timing, inference_step, interleave, matmul_peak, training_step

MB = 1 << 20


# --- timing


def test_the_numbers_of_a_timing() -> None:
    timing = Timing(tuple(float(n) for n in range(1, 102)))
    assert (timing.median, timing.percentile(90), timing.percentile(99), timing.iqr) == (51, 91, 100, 50)


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up first; then in each round every call has one untimed call and the timed ones, in another order."""
    clock = 0.0
    made: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            nonlocal clock
            clock += seconds
            made.append(name)

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    reported: list[tuple[int, int]] = []
    calls = {name: call(name, seconds) for name, seconds in (("a", 0.5), ("b", 0.25), ("c", 2.0))}
    timings = interleave(calls, rounds=8, seconds=1.0, on_progress=lambda *n: reported.append(n))

    assert {name: set(timing.seconds) for name, timing in timings.items()} == {"a": {0.5}, "b": {0.25}, "c": {2.0}}
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 16, "b": 32, "c": 8}
    assert made[:6] == ["a", "a", "b", "b", "c", "c"]
    rest, turns = "".join(made[6:]), {"a": "aaa", "b": "bbbbb", "c": "cc"}
    orders = []
    for _ in range(8):
        one, rest = rest[:10], rest[10:]
        orders.append("".join(sorted("abc", key=one.index)))
        assert one == "".join(turns[name] for name in orders[-1])
    assert rest == ""
    assert len(set(orders)) > 2
    assert reported == [(n, 8) for n in range(1, 9)]


@pytest.mark.parametrize(("rounds", "seconds"), [(0, 1.0), (1, -1.0)])
def test_no_rounds(rounds: int, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"(rounds=0|seconds=-1\.0): expected .* of at least \d"):
        interleave({}, rounds=rounds, seconds=seconds)


def test_a_forward_pass_is_one_of_inference() -> None:
    seen: list[Any] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_inference_mode_enabled(), (x @ x).dtype))
            return x

    inference_step(Spy(), torch.ones(2, 2))()
    half = Spy()
    half.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    inference_step(half, torch.ones(2, 2))()
    assert seen == [(False, True, torch.float32), (False, True, torch.bfloat16)]
    with pytest.raises(ValueError, match=r"precision='fp64'.*fp32, bf16"):
        training_step(half, torch.ones(2, 2), "fp64")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_trains(precision: str) -> None:
    torch.manual_seed(0)
    model = create(num_classes=3, drop_path_rate=0.0)
    x = images(4, 3, 32, 32)
    step = training_step(model, x, precision)
    before = model.stem.conv1.weight.detach().clone()
    first = F.cross_entropy(model(x), torch.zeros(4, dtype=torch.long)).item()
    for _ in range(5):
        step()
    assert model.training
    assert not torch.equal(before, model.stem.conv1.weight)
    assert F.cross_entropy(model(x), torch.zeros(4, dtype=torch.long)).item() < first
    assert all(p.grad is None for p in model.parameters())


def test_a_model_for_inference_alone_is_not_trained() -> None:
    with pytest.raises(ValueError, match="SMT has no trainable parameters"):
        training_step(create().requires_grad_(False), images(1, 3, 32, 32))


def test_the_peak_is_that_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def faked(calls: dict[int, Callable[[], Tensor]], **kwargs: Any) -> dict[int, Timing]:
        assert {n: (call().dtype, call().shape) for n, call in calls.items()} == {
            8: (torch.bfloat16, (8, 8)),
            16: (torch.bfloat16, (16, 16)),
        }
        return {8: Timing((4.0, 2.0)), 16: Timing((8.0, 32.0))}

    monkeypatch.setattr("smt_vision.benchmark.timing.interleave", faked)
    assert matmul_peak("bf16", sizes=(8, 16)) == 2 * 16**3 / 8
    monkeypatch.undo()
    assert matmul_peak(sizes=(64,), seconds=0.0) > 1e6


# --- memory


def test_saved_activations_are_counted_once_and_without_parameters() -> None:
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(10, 8)
    # the first layer keeps its input; ReLU's output is kept by itself and by the last layer, and is one storage
    assert saved_activations(net, x) == 4 * (10 * 8 + 10 * 16)
    assert saved_activations(net.requires_grad_(False), x) == 0


def test_checkpoints_save_less() -> None:
    model = create().train()
    x = images(2, 3, 64, 64)
    plain = saved_activations(model, x)
    assert saved_activations(model, torch.cat([x, x])) == pytest.approx(2 * plain, rel=0.02)
    model.set_grad_checkpointing(True)
    kept = saved_activations(model, x)
    blocks = 4 * 2 * (16 * 16 * 16 + 32 * 8 * 8 + 2 * 64 * 4 * 4 + 128 * 2 * 2)  # the input of each
    assert blocks < kept < 0.5 * plain


def fill(*megabytes: int) -> list[Callable[[], Tensor]]:
    """Calls that hold that much for a moment. For another process, hence not inside a test."""
    return [partial(torch.ones, n * MB // 4) for n in megabytes]


def test_peak_memory_is_what_the_calls_hold() -> None:
    small, large = peak_memory(partial(fill, 64, 256))
    if small is None:
        pytest.skip("this kernel does not tell a process's largest resident set")
    assert large is not None
    assert 64 * MB <= small < 96 * MB
    assert 256 * MB <= large < 288 * MB


def build_and_fill() -> Iterator[Callable[[], Tensor]]:
    """A call, and before it something larger for a moment, on a heap that is never trimmed."""
    keep_large_allocations()
    [large] = fill(256)
    large()
    yield from fill(64)


def test_peak_memory_is_without_what_building_the_model_took() -> None:
    [peak] = peak_memory(build_and_fill)
    if peak is None:
        pytest.skip("this kernel does not tell a process's largest resident set")
    assert 64 * MB <= peak < 192 * MB  # the C library may place the two calls beside each other


def die() -> None:
    os._exit(9)


def test_a_process_that_dies() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        in_fresh_process(die)


# --- models side by side


class Sleeper(nn.Module):
    """Takes a given time, whatever the batch; trains a number."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds if x.device.type != "meta" else 0)
        return self.fc(x.mean((2, 3)))


def candidate(name: str, model: nn.Module, side: int = 4) -> Candidate:
    return Candidate(name, model, (3, side, side), model)


def test_compare_reports_what_was_timed() -> None:
    slow = candidate("slow", Sleeper(0.2))
    fast = replace(candidate("fast", Sleeper(0.004)), original=None, parameters=7)
    results = compare([slow, fast], [1, 4], rounds=2, seconds=0.02, peak=1e6)
    assert [(r.model, r.batch_size) for r in results] == [("slow", 1), ("fast", 1), ("slow", 4), ("fast", 4)]
    for r in results:
        assert r.images_per_s == pytest.approx(1e3 * r.batch_size / r.p50_ms)
        assert r.p50_ms <= r.p90_ms <= r.p99_ms
        assert r.input_size == (3, 4, 4)
        assert r.saved_activations is r.peak_memory is None
    for a, b in (results[:2], results[2:]):
        assert a.ratio == 1
        assert b.ratio == pytest.approx(a.p50_ms / b.p50_ms)
        assert b.ratio > 1.2  # 50 on an idle machine
        assert (a.parameters, a.gmac) == (8, 6e-9)
        assert a.share_of_peak == pytest.approx(2 * 6 * a.images_per_s / 1e6)
        assert (b.parameters, b.gmac, b.share_of_peak) == (7, None, None)
        assert a.calls >= 2


def test_compare_training() -> None:
    [result] = compare([candidate("a", Sleeper(0.0))], [4], train=True, rounds=1, seconds=0, peak=1e6)
    assert result.share_of_peak == pytest.approx(3 * 2 * 6 * result.images_per_s / 1e6)
    assert result.saved_activations == 4 * 3  # an image's mean color, which the linear layer keeps
    assert result.calls == 1


def test_compare_refuses() -> None:
    one = candidate("a", nn.Identity())
    with pytest.raises(ValueError, match=r"\['a', 'a'\]"):
        compare([one, one], [1])
    with pytest.raises(ValueError, match=r"batch_sizes=\[4, 0\]"):
        compare([one], [4, 0])


# --- published accuracies


def test_published_accuracies() -> None:
    assert {spec.partition(":")[0] for spec in BASELINES} == PUBLISHED.keys()
    for published in PUBLISHED.values():
        assert 80 < published.top1 < 85
        assert published.size in (224, 256)
        assert "arXiv " in published.source
