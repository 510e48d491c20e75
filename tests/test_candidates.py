"""Models to compare, from model spec strings: that each variant computes the same as the original."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import smt_vision
from smt_vision.benchmark.candidates import candidate_peak_memory, load_candidate
from smt_vision.benchmark.compare import Candidate, Result, combine_pairs, compare
from smt_vision.benchmark.model_spec import parse_spec
from smt_vision.cost import describe
from smt_vision.deploy.exported import ExportedModel


@pytest.mark.parametrize(
    ("spec", "source", "variants"),
    [
        ("smt_tiny", "smt_tiny", ()),
        ("smt_tiny:fused", "smt_tiny", ("fused",)),
        ("smt_femto.cifar10:fused+compiled", "smt_femto.cifar10", ("fused", "compiled")),
        ("hf-hub:someone/model", "hf-hub:someone/model", ()),
        ("runs/a:channels_last", "runs/a", ("channels_last",)),
    ],
)
def test_parse_spec(spec: str, source: str, variants: tuple[str, ...]) -> None:
    assert parse_spec(spec) == (source, variants)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "run:fused"
    path.mkdir()
    assert parse_spec(str(path)) == (str(path), ())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smt_tiny:fusd", "'fusd' in 'smt_tiny:fusd': expected one or more of fused, compiled, channels_last"),
        ("smt_tiny:fusd", "did you mean fused?"),
        ("smt_tiny:fused+fused", "'fused' in 'smt_tiny:fused+fused'"),
    ],
)
def test_invalid_variants(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match="invalid variant") as error:
        parse_spec(spec)
    assert message in str(error.value)


def logits(candidate: Candidate) -> torch.Tensor:
    x = torch.randn(2, *candidate.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return candidate.model(x)


@pytest.mark.parametrize("name", ["smt_atto", "fastvit_t8"])
def test_the_fused_variant_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    fused = load_candidate(f"{name}:fused+channels_last", size=(64, 64))
    assert fused.original is not None
    plain = Candidate(name, fused.original.eval(), fused.input_size, fused.original)
    torch.testing.assert_close(logits(fused), logits(plain), atol=1e-4, rtol=1e-4)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in c.model.modules()) for c in (fused, plain)]
    assert norms[0] < norms[1]
    assert describe(fused.original, fused.input_size).parameters == sum(p.numel() for p in plain.model.parameters())


def test_a_model_that_cannot_be_fused() -> None:
    with pytest.raises(ValueError, match="VisionTransformer"):
        load_candidate("vit_tiny_patch16_224:fused")


def test_the_compiled_variant_is_one_graph_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: calls.append(kwargs) or model)
    candidate = load_candidate("smt_atto:compiled", size=(48, 48))
    assert calls == [{"fullgraph": True, "dynamic": False}]
    assert candidate.input_size == (3, 48, 48)


@pytest.mark.parametrize(
    ("spec", "engine", "precision", "tolerance"),
    [
        ("smt_atto:fused", "onnxruntime", "fp32", 1e-4),
        ("smt_atto:fused", "openvino", "fp32", 1e-4),
        ("smt_atto:fused", "eager", "bf16", 0.05),
        ("resnet10t", "openvino", "bf16", 0.05),
        ("resnet10t", "eager", "bf16", 0.05),
    ],
)
def test_engines_compute_the_same(spec: str, engine: str, precision: str, tolerance: float) -> None:
    pytest.importorskip(engine) if engine != "eager" else None
    torch.manual_seed(0)
    candidate = load_candidate(spec, size=(64, 48), engine=engine, precision=precision)
    assert candidate.input_size == (3, 64, 48)
    assert candidate.original is not None
    x = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        expected = copy.deepcopy(candidate.original).float().eval()(x)
        found = candidate.model(x.to(next(candidate.model.parameters()).dtype)).float()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_pairs_are_combined_by_their_ratios() -> None:
    """The machine was three times as fast in the last pair: that does not make its model faster."""

    def pair(first: float, name: str, other: float) -> list[Result]:
        return [
            Result(
                model, 1, (3, 8, 8), 1, 1.0, speed, speed / first, 1e3 / speed, 2e3 / speed, 0.0, 0.0, 1, speed / 1e3
            )
            for model, speed in (("first", first), (name, other))
        ]

    first, *others = combine_pairs([pair(20, "a", 40), pair(10, "b", 10), pair(30, "c", 15), pair(30, "d", 60)[:1]])
    assert (first.model, first.images_per_s, first.ratio) == ("first", 25, 1)
    assert [(r.model, r.images_per_s, r.ratio) for r in others] == [("a", 50, 2), ("b", 25, 1), ("c", 12.5, 0.5)]
    assert [(r.p50_ms, r.p90_ms) for r in others] == [(20, 40), (40, 80), (80, 160)]
    assert [r.share_of_peak for r in others] == pytest.approx([0.05, 0.025, 0.0125])
    # With the peak of each comparison, the shares are of the largest.
    pairs = [pair(20, "a", 40), pair(10, "b", 10)]
    shares = [r.share_of_peak for r in combine_pairs(pairs, [1000.0, 500.0])]
    alone = [r.share_of_peak for r in combine_pairs(pairs)]
    assert [share / other for share, other in zip(shares[1:], alone[1:], strict=True)] == pytest.approx([1, 0.5])


def test_eight_bits_are_of_openvino() -> None:
    pytest.importorskip("nncf")
    candidate = load_candidate("resnet10t", size=(32, 32), engine="openvino", precision="int8")
    model: Any = candidate.model
    assert logits(candidate).shape == (2, 1000)
    [program] = model.programs.values()
    types = {op.get_type_name(): op for op in program.model.get_ops()}
    assert "FakeQuantize" in types
    with pytest.raises(ValueError, match="precision='int8': engine 'eager' has fp32 and bf16"):
        load_candidate("smt_atto", precision="int8")


def test_feature_maps_of_a_backbone() -> None:
    candidate = load_candidate("swin_tiny_patch4_window7_224:features", size=(64, 96))
    with torch.inference_mode():
        maps = candidate.model(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]
    weights = Path(smt_vision.__file__).parent / "weights" / "smt_femto.cifar10.safetensors"
    with pytest.raises(ValueError, match="feature maps are for model names"):
        load_candidate(f"{weights}:features")


def test_the_size_is_that_of_the_accuracy_or_the_weights() -> None:
    assert load_candidate("edgenext_base").input_size == (3, 256, 256)
    weights = Path(smt_vision.__file__).parent / "weights" / "smt_femto.cifar10.safetensors"
    trained = load_candidate(f"{weights}:fused")
    assert trained.input_size == (3, 32, 32)
    again = load_candidate(str(weights))
    torch.testing.assert_close(logits(trained), logits(again), atol=1e-4, rtol=1e-4)  # trained, not random weights


def test_exported_model() -> None:
    pytest.importorskip("onnxruntime")
    folder = Path(__file__).parent / "golden" / "classify-onnx"
    candidate = load_candidate(str(folder))
    assert isinstance(candidate.model, ExportedModel)
    parameters = candidate.model.manifest.parameters
    assert (candidate.input_size, candidate.original, candidate.parameters) == ((3, 32, 32), None, parameters)
    [result] = compare([candidate], [2], rounds=1, seconds=0, peak=1e9)
    assert (result.parameters, result.gmac, result.share_of_peak) == (parameters, None, None)
    with pytest.raises(ValueError, match=r"exported model.*:fused"):
        load_candidate(f"{folder}:fused")


def test_the_memory_of_a_fused_model_is_without_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    originals: list[Any] = []

    def load(*args: Any, **options: Any) -> Candidate:
        candidate = load_candidate(*args, **options)
        originals.append(weakref.ref(candidate.original))
        return candidate

    def here(prepare: Any, device: str) -> list[int]:
        alive = []
        for call in prepare():
            gc.collect()
            call()
            alive.append(originals[0]() is not None)
        return alive

    monkeypatch.setattr("smt_vision.benchmark.candidates.load_candidate", load)
    monkeypatch.setattr("smt_vision.benchmark.candidates.peak_memory", here)
    assert candidate_peak_memory("smt_atto:fused", [1], size=(32, 32)) == {1: False}


def test_peak_memory_by_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def here(prepare: Any, device: str) -> list[int]:
        calls = []
        for call in prepare():
            call()
            assert not [earlier for earlier in calls if earlier() is not None]  # which would be measured too
            calls.append(weakref.ref(call))
            del call
        return list(range(1, len(calls) + 1))

    monkeypatch.setattr("smt_vision.benchmark.candidates.peak_memory", here)
    peaks = candidate_peak_memory("smt_atto", [4, 2, 4], size=(32, 32), train=True, setup=lambda: done.append("setup"))
    assert peaks == {2: 1, 4: 2}  # the smaller batch first
    assert done == ["setup"]
