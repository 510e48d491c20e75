"""Weight files converted both ways."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import smt_vision
from literal import LiteralSMT
from smt_vision import convert
from smt_vision.convert import convert_file
from smt_vision.model import SMT
from smt_vision.registry import VARIANTS

VARIANT = "smt_atto"
ATTO = VARIANTS[VARIANT]


def official_state(**kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = LiteralSMT(**{**ATTO, **kwargs}).state_dict()
    return {k: v if k.endswith("tracked") else torch.randn_like(v) for k, v in state.items()}


def write(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def read(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def assert_identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("last", [".pth", ".safetensors"])
@pytest.mark.parametrize("middle", [".pth", ".safetensors"])
@pytest.mark.parametrize("first", [".pth", ".safetensors"])
def test_official_to_ours_and_back(first: str, middle: str, last: str, tmp_path: Path) -> None:
    state = official_state()
    source = write({"model": state, "epoch": 3} if first == ".pth" else state, tmp_path / f"release{first}")
    ours, again = tmp_path / f"ours{middle}", tmp_path / f"again{last}"
    report = convert_file(source, ours)
    model = SMT(**ATTO)
    assert report == convert.ConversionReport(
        source=source,
        target=ours,
        direction="official -> ours",
        variant=VARIANT,
        num_classes=1000,
        in_chans=3,
        tensors=len(model.state_dict()),
        parameters=sum(p.numel() for p in model.parameters()),
    )
    translated = read(ours)
    assert translated.keys() == model.state_dict().keys()
    model.load_state_dict(state)
    assert_identical(translated, dict(model.state_dict()))

    back = convert_file(str(ours), str(again))
    assert back.direction == "ours -> official"
    assert back.tensors == len(state)
    assert (back.variant, back.parameters) == (report.variant, report.parameters)
    content = read(again)
    assert_identical(content["model"] if last == ".pth" else content, state)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({source.name, ours.name, again.name})


def test_ours_to_official_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = dict(SMT(**ATTO, num_classes=7, in_chans=1).state_dict())
    report = convert_file(write(state, tmp_path / "a.pth"), tmp_path / "b.pth")
    assert (report.num_classes, report.in_chans) == (7, 1)
    convert_file(tmp_path / "b.pth", tmp_path / "c.pth")
    assert_identical(read(tmp_path / "c.pth"), state)


def test_half_precision_stays_half(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in official_state().items()}
    convert_file(write(state, tmp_path / "a.pth"), tmp_path / "b.safetensors")
    convert_file(tmp_path / "b.safetensors", tmp_path / "c.pth")
    assert_identical(read(tmp_path / "c.pth")["model"], state)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_classes", [0, 21841])
def test_any_head(num_classes: int, tmp_path: Path) -> None:
    state = official_state(num_classes=num_classes)
    report = convert_file(write(state, tmp_path / "a.pth"), tmp_path / "b.pth")
    assert (report.variant, report.num_classes) == (VARIANT, num_classes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_told_from_its_shapes(variant: str) -> None:
    with torch.device("meta"):
        model = SMT(**VARIANTS[variant], num_classes=5, in_chans=4)
    parameters = sum(p.numel() for p in model.parameters())
    assert convert.identify(model.state_dict(), Path("file.pth")) == (variant, 5, 4, parameters)


def test_the_weights_that_ship_are_told_from_their_shapes(tmp_path: Path) -> None:
    file = str(timm.models.get_pretrained_cfg("smt_femto.cifar10").file)
    assert convert_file(file, tmp_path / "release.pth").variant == "smt_femto.cifar10"
    convert_file(tmp_path / "release.pth", tmp_path / "ours.safetensors")
    assert smt_vision.load(tmp_path / "ours.safetensors").spec.model == "smt_femto.cifar10"


def changed(**changes: Any) -> dict[str, Any]:
    state: dict[str, Any] = official_state()
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: changed(block1__0__mlp__fc1__bias=None), r"looks like smt_atto.*ffn\.fc1\.bias"),
        (lambda: changed(block1__0__attn__s__bias=None), r"looks like smt_atto.*attn\.v\.bias"),
        (lambda: changed(norm4__weight=None), r"incomplete: it has no stages\.3\.norm\.weight"),
        (lambda: changed(extra=torch.zeros(1)), r"looks like smt_atto.*extra"),
        (lambda: changed(head__bias=torch.zeros(9)), r"looks like smt_atto.*size mismatch for head\.fc\.bias"),
        (
            lambda: official_state(depths=(1, 1, 1, 1)),
            r"depths \(1, 1, 1, 1\) per stage; the variants are smt_",
        ),
        (lambda: {"conv1.weight": torch.zeros(1)}, r"not the weights of an SMT; expected.*found conv1\.weight"),
        (lambda: {}, r"not the weights of an SMT.*found nothing"),
        (lambda: {"model": {"epoch": 3}}, r"no state dict"),
        (lambda: [torch.zeros(1)], r"state dict"),
        (lambda: OrderedDict(path=Path("x")), r"\.pth"),
    ],
)
def test_what_does_not_fit_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    source = write(content(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"(?s)a\\.pth: .*{message}"):
        convert_file(source, tmp_path / "b.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a weight file", b"\x00" * 64])
def test_a_damaged_file_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    source = tmp_path / f"a{suffix}"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a readable.*download it again"):
        convert_file(source, tmp_path / "b.pth")


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    write(Payload(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="not a readable"):
        convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()


def test_paths_that_cannot_work(tmp_path: Path) -> None:
    source = write(official_state(), tmp_path / "a.pth")
    before = source.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: there is no such file"):
        convert_file(tmp_path / "absent.pth", tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"unknown suffix '\.ckpt'; expected one of \.pth, \.safetensors"):
        convert_file(source, tmp_path / "b.ckpt")
    (tmp_path / "link.pth").symlink_to(source)
    for target in (source, tmp_path / "link.pth"):
        with pytest.raises(ValueError, match="the target is the source; name another file"):
            convert_file(source, target)
    assert source.read_bytes() == before


def test_a_failed_write_leaves_the_old_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(official_state(), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"old")

    def full(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space left"):
        convert_file(source, tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "b.pth"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt", "model_best.pth.tar", "weights"])
def test_any_source_is_converted_and_the_network_around_it_is_left_out(name: str, tmp_path: Path) -> None:
    state = official_state()
    network = {**{f"net.rgb.{k}": v for k, v in state.items()}, "decoder.weight": torch.zeros(1)}
    torch.save({"state_dict": network, "epoch": 3}, tmp_path / name)
    report = convert_file(tmp_path / name, tmp_path / "ours.safetensors")
    assert (report.direction, report.variant) == ("official -> ours", VARIANT)
    convert_file(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    assert_identical(read(tmp_path / "back.pth")["model"], state)  # type: ignore[arg-type]


def test_several_networks_are_refused(tmp_path: Path) -> None:
    state = official_state()
    torch.save({f"{name}.{k}": v for name in ("rgb", "depth") for k, v in state.items()}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"two\.pth: contains several SMTs.*'depth\.', 'rgb\.'"):
        convert_file(tmp_path / "two.pth", tmp_path / "ours.pth")
