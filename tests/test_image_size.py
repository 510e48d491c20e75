"""timm models whose layers depend on the image size, at other sizes: Swin, ViT and the like."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

import smt_vision
from command import answer, refusal, run
from drawn_sets import shapes_recipe, write_shapes
from smt_vision import checkpoints
from smt_vision.engine.loop import train
from smt_vision.spec import ModelSpec
from smt_vision.tasks import RECIPES
from smt_vision.tasks.build import build_backbone, create_model
from smt_vision.tasks.classification.task import ClassificationTraining
from smt_vision.tasks.image_size import arguments_for_any_size, arguments_for_size
from tiny_run import tiny

VIT, DEIT, SWIN = "test_vit", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
SMALL_SWIN = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}


@pytest.mark.parametrize(
    ("name", "given", "size", "expected"),
    [
        (VIT, {}, 96, {"img_size": 96}),
        (VIT, {"depth": 2}, (96, 64), {"img_size": (96, 64), "depth": 2}),
        (VIT, {}, 160, {}),  # the size of its weights
        (VIT, {"img_size": 32}, 96, {"img_size": 32}),
        (SWIN, SMALL_SWIN, 96, {"img_size": 96, **SMALL_SWIN}),
        ("deit_tiny_distilled_patch16_224", {}, 96, {"img_size": 96}),  # its class passes the argument on
        ("resnet18", {}, 96, {}),
        ("smt_atto", {}, 96, {}),
        ("no_such_model", {"depth": 2}, 96, {"depth": 2}),
        (VIT, {"depht": 2}, 96, {"depht": 2}),  # refused when the model is built
    ],
)
def test_arguments_for_size(name: str, given: dict[str, Any], size: Any, expected: dict[str, Any]) -> None:
    assert arguments_for_size(name, given, size) == expected


def test_arguments_for_any_size() -> None:
    assert arguments_for_any_size("resnet18", {}) == arguments_for_any_size("smt_atto", {}) == {}
    assert arguments_for_any_size(VIT, {})["dynamic_img_size"] is True
    assert arguments_for_any_size(SWIN, {"strict_img_size": True})["strict_img_size"] is True


def test_no_random_numbers_are_used() -> None:
    state = torch.get_rng_state()
    arguments_for_size(VIT, {}, 96)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [(224, 224), (256, 320), (288, 160)])
def test_swin_as_a_backbone_equals_one_built_for_the_size(size: tuple[int, int]) -> None:
    spec = ModelSpec("detect", SWIN, ("a",), RECIPES["bccd_retinanet"].input, SMALL_SWIN, None)
    backbone = build_backbone(spec, pretrained=False, checkpoint=None).eval()
    strict = timm.create_model(SWIN, features_only=True, img_size=size, always_partition=True, **SMALL_SWIN).eval()
    strict.load_state_dict(backbone.network.state_dict(), strict=False)  # its masks are buffers
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image), strict(image), strict=True):
            torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_report")
def test_a_detector_of_swin_is_trained_evaluated_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shapes(tmp_path / "shapes")
    recipe = replace(shapes_recipe(tmp_path / "shapes"), model=SWIN, model_args=SMALL_SWIN, epochs=1)
    trained = train(recipe, tmp_path / "run")
    metrics = answer(capsys, "eval", tmp_path / "run", "--workers", "0")
    assert metrics["count"] == trained.metrics["count"] == 4
    assert metrics["mask_ap"] == pytest.approx(trained.metrics["mask_ap"], abs=0.01)
    image = next((tmp_path / "shapes").rglob("*.png"))
    assert run("predict", tmp_path / "run", image, "--out", tmp_path / "out") == 0


@pytest.mark.usefixtures("no_report")
def test_a_classifier_is_built_for_the_size_of_its_images(
    tmp_path: Path, colored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(colored)
    arguments = {"depth": 1, "embed_dim": 24, "num_heads": 1}
    recipe = replace(recipe, model=DEIT, model_args=arguments, input=replace(recipe.input, size=80), epochs=1)
    train(recipe, tmp_path / "run")
    model = smt_vision.load(tmp_path / "run")
    assert model.spec.model_args == {"img_size": 80, **arguments}
    assert answer(capsys, "eval", tmp_path / "run", "--workers", "0")["count"] == 12
    image = next((colored / "val").rglob("*.png"))
    error = refusal(capsys, 1, "predict", tmp_path / "run", image, "--input.size", "96")
    assert "input.size=96" in error
    assert "80" in error


@pytest.mark.parametrize("name", ["maxvit_rmlp_pico_rw_256", "efficientformer_l1", "hiera_tiny_224"])
def test_a_backbone_for_one_size_is_refused(name: str) -> None:
    spec = ModelSpec("detect", name, ("a",), RECIPES["bccd_retinanet"].input, {}, None)
    with pytest.raises(ValueError, match=rf"model '{name}' cannot be used as a backbone: "):
        build_backbone(spec, pretrained=False, checkpoint=None)


@pytest.mark.usefixtures("no_report")
def test_a_checkpoint_starts_a_run_at_another_size(tmp_path: Path, colored: Path) -> None:
    recipe = tiny(colored, epochs=1)
    deit = replace(recipe, model=DEIT, model_args={"depth": 1, "embed_dim": 24, "num_heads": 1})
    train(deit, tmp_path / "deit", display=False, max_steps=6)
    larger = replace(deit, checkpoint=str(tmp_path / "deit"), input=replace(deit.input, size=64))
    model = ClassificationTraining(larger).model
    weights = smt_vision.load(tmp_path / "deit").model.state_dict()
    assert weights["pos_embed"].shape[1] == 1 + 4
    expected = resample_abs_pos_embed(weights["pos_embed"], (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(model.state_dict()["pos_embed"], expected)
    for key in set(weights) - {"pos_embed"}:
        assert torch.equal(model.state_dict()[key], weights[key])

    swin = replace(recipe, model=SWIN, model_args=SMALL_SWIN, input=replace(recipe.input, size=64))
    train(swin, tmp_path / "swin", display=False, max_steps=6)
    spec = ModelSpec("detect", SWIN, ("a",), RECIPES["bccd_retinanet"].input, SMALL_SWIN, None)
    backbone = build_backbone(spec, pretrained=False, checkpoint=checkpoints.load(tmp_path / "swin"))
    weights, found = smt_vision.load(tmp_path / "swin").model.state_dict(), backbone.network.state_dict()
    for key in found:
        classifier = key.replace("layers_", "layers.")
        if weights[classifier].shape == found[key].shape and not key.endswith("_index"):
            assert torch.equal(weights[classifier], found[key])
    assert any(weights[key.replace("layers_", "layers.")].shape != found[key].shape for key in found)


def test_weights_that_timm_cannot_resample_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("levit_128s").state_dict()
    download = partial(timm.create_model, pretrained_cfg_overlay={"state_dict": state})
    monkeypatch.setattr(timm, "create_model", download)
    with pytest.raises(ValueError, match=r"'levit_128s'.*another size.*96 pixels: set input\.size to theirs"):
        create_model("levit_128s", pretrained=True, img_size=96)


def test_commands_build_a_named_model_for_the_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smt_vision.benchmark.timing.matmul_peak", lambda *args: 1e9)
    assert answer(capsys, "info", VIT, "--size", "96", "64")["input_size"] == [3, 96, 64]
    assert answer(capsys, "info", "levit_128s", "--size", "96")["input_size"] == [3, 96, 96]
    quick = ("--rounds", "1", "--seconds", "0", "--memory", "false", "--batch_size", "1")
    assert run("bench", VIT, f"{SWIN}:features", "--size", "96", *quick) == 0
    error = refusal(capsys, 1, "info", "efficientformer_l1", "--size", "256")
    assert "input_size=(3, 256, 256) for EfficientFormer" in error
    assert "efficientformer_l1 fails for a batch of 1 x 3 x 256 x 256" in refusal(
        capsys, 1, "bench", "efficientformer_l1", "--size", "256", *quick
    )
