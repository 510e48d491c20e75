"""Distillation: the losses, the teacher's images, and that nothing of the teacher is trained or saved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from blank_pictures import without_report
from drawn_sets import scenes_recipe, shapes_recipe
from same_run import assert_same_run
from smt_vision import checkpoints, load
from smt_vision.checkpoints import checksum
from smt_vision.cli.train import build_parser
from smt_vision.engine.loop import train
from smt_vision.recipe import Distill, Recipe
from smt_vision.tasks.classification.config import ClassificationDistill, ClassifyConfig
from smt_vision.tasks.classification.distill import sigmoid_divergence, softmax_divergence
from smt_vision.tasks.classification.task import ClassificationTraining
from smt_vision.tasks.distill import Distillation, attention_transfer, feature_maps, inside_mask
from tiny_run import COLORS, tiny, write_images, write_split

pytestmark = pytest.mark.usefixtures("one_thread")
MIXED = dict(mixup=0.2, cutmix=1.0, mix_prob=1.0)


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("distill") / "data", train=4, val=2)


@pytest.fixture(scope="module")
def teacher(colored: Path) -> Path:
    """A run of the same classes, with another size and another normalization."""
    folder = colored.parent / "teacher"
    input = dict(size=40, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    with without_report():
        train(tiny(colored, input=input, seed=1), folder, display=False, max_steps=6)
    return folder


def taught(data: Path, teacher: str | Path, **fields: Any) -> Recipe:
    """A recipe with a teacher; fields that are not of ``distill`` are of the recipe."""
    own = {name: fields.pop(name) for name in ("alpha", "temperature", "features") if name in fields}
    return tiny(data, distill=ClassificationDistill(teacher=str(teacher), **own), **fields)


# --- losses


def test_soft_targets_are_the_divergence_of_the_scores() -> None:
    logits, teacher = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([[2 * np.log(3.0), 0.0], [1.0, -1.0]])
    # At temperature 2, the teacher's scores of the first image are 3/4 and 1/4, the student's 1/2 and 1/2.
    expected = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)) / 2
    assert float(softmax_divergence(logits, teacher.float(), 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(softmax_divergence(logits, logits, 3.0)) == pytest.approx(0, abs=1e-7)


def test_soft_targets_of_independent_classes() -> None:
    logits, teacher = torch.tensor([[0.0, 5.0]]), torch.tensor([[2 * np.log(3.0), 5.0]]).float()
    expected = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)) / 2  # the second class is the same
    assert float(sigmoid_divergence(logits, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_attention_transfer() -> None:
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)]
    # The sign, the scale and the order of the channels do not matter, and neither do maps that only one network has.
    same = [torch.randn(2, 1, 16, 16), -3 * maps[0], maps[1].flip(1)]
    assert float(attention_transfer(maps, same)) == pytest.approx(0, abs=1e-6)
    left, right = torch.zeros(1, 1, 1, 2), torch.zeros(1, 4, 1, 2)
    left[..., 0], right[..., 1] = 1, 7
    assert float(attention_transfer([left], [right])) == pytest.approx(2)
    wide = right.repeat_interleave(2, 2).repeat_interleave(2, 3)  # resized to the student's size
    assert float(attention_transfer([right], [wide])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "smt_atto"])
def test_feature_maps_are_those_of_timm(name: str) -> None:
    model = timm.create_model(name).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), feature_maps(model) as maps:
        model(image)
    info = model.feature_info
    with torch.no_grad():
        expected = model.forward_intermediates(image, indices=len(info), intermediates_only=True)
    assert all(torch.equal(own, theirs) for own, theirs in zip(maps, expected, strict=True))
    assert [m.shape[1:] for m in maps] == [(i["num_chs"], 64 // i["reduction"], 64 // i["reduction"]) for i in info]
    with torch.no_grad():
        model(image)
    assert len(maps) == len(info)  # nothing is kept after the context


# --- the teacher's images


def test_teacher_sees_the_images_in_its_own_size_and_normalization(colored: Path, teacher: Path) -> None:
    recipe = taught(colored, teacher, input=dict(size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))
    task = ClassificationTraining(recipe)
    assert isinstance(task.distillation, Distillation)
    pixels = torch.rand(2, 3, 32, 32)
    output, logits, losses = task.distillation(lambda: 7, (pixels - 0.5) / 0.2)
    assert (output, losses) == (7, {})
    predictor = load(teacher)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (predictor.input.mean, predictor.input.std))
    resized = F.interpolate((pixels - mean) / std, (40, 40), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(logits, predictor.model(resized), rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad


def test_classes_are_matched_by_name(tmp_path: Path, teacher: Path) -> None:
    """A teacher of more classes, in another order: the loss is that of the student's classes."""
    few = write_images(tmp_path / "few", {name: COLORS[name] for name in ("red", "green")}, [4, 4])
    task = ClassificationTraining(taught(few, teacher))
    assert task.classes == ("green", "red")
    logits, target = torch.randn(2, 2), torch.randn(2, 3)
    expected = softmax_divergence(logits, target[:, [1, 2]], 2.0)  # the teacher's are blue, green and red
    assert torch.equal(task.soft_targets(logits, target), expected)


# --- runs


@pytest.mark.parametrize("fields", [dict(augment=MIXED, engine=dict(ema=0.9)), dict(alpha=0.0, features=3.0)])
def test_resumed_equals_uninterrupted(
    colored: Path, teacher: Path, tmp_path: Path, fields: dict[str, Any], no_report: None
) -> None:
    recipe = taught(colored, teacher, **fields)
    train(recipe, tmp_path / "whole", display=False)
    train(recipe, tmp_path / "halves", display=False, max_steps=2)
    run = train(recipe, tmp_path / "halves", display=False)
    assert run.step == run.total_steps
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_teacher_is_not_trained_and_not_saved(colored: Path, teacher: Path, tmp_path: Path, no_report: None) -> None:
    run = train(taught(colored, teacher, features=1.0), tmp_path / "run", display=False, max_steps=3)
    plain = train(tiny(colored), tmp_path / "plain", display=False, max_steps=3)
    assert run.raw.state_dict().keys() == plain.raw.state_dict().keys()
    assert run.trained_parameters == plain.trained_parameters
    for name in ("best.pt", "last.pt"):
        assert checkpoints.load(tmp_path / "run" / name).weights.keys() == plain.raw.state_dict().keys()
    assert run.task.distillation is not None
    weights = checkpoints.load(teacher).weights
    assert run.task.distillation.identity == checksum(weights)
    assert checksum(run.task.distillation.predictor.model.state_dict()) == checksum(weights)
    assert not torch.equal(run.raw.state_dict()["stem.conv1.weight"], plain.raw.state_dict()["stem.conv1.weight"])


def test_without_weight_on_the_labels_the_student_becomes_the_teacher(
    colored: Path, teacher: Path, tmp_path: Path, no_report: None
) -> None:
    recipe = taught(colored, teacher, alpha=1.0, epochs=8, input=dict(size=40))
    run = train(recipe, tmp_path / "run", display=False)
    student, theirs = load(tmp_path / "run"), load(teacher)
    image = torch.stack([student._prepare(0, path).pixels for path in sorted((colored / "train").rglob("*.png"))])
    task = run.task
    with torch.no_grad():
        _, target, _ = task.distillation(lambda: None, image)  # type: ignore[misc]
        after = float(softmax_divergence(student.model(image), target, 2.0))
        before = float(softmax_divergence(ClassificationTraining(recipe).model.eval()(image), target, 2.0))
    assert theirs.classes == student.classes
    assert after < before / 4


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_backbone_of_a_dense_task_learns_feature_maps(
    task: str, shapes: Path, scenes: Path, teacher: Path, tmp_path: Path, no_report: None
) -> None:
    recipe: Recipe = shapes_recipe(shapes) if task == "detect" else scenes_recipe(scenes)
    losses: list[float] = []
    for weight in (1e-6, 2e-6):
        taught_recipe = replace(recipe, distill=Distill(teacher=str(teacher), features=weight))
        run = train(taught_recipe, tmp_path / f"{weight}", display=False, max_steps=1)
        batch = run.fabric.to_device(next(iter(run.task.train_loader(0, 1).epoch(0))))
        torch.manual_seed(0)
        losses.append(float(run.task.loss(run.model, batch)["features"].detach()))
    assert {"image", "sizes"} <= batch.keys()
    assert 0 < losses[0] < 2e-6
    assert losses[1] == pytest.approx(2 * losses[0], rel=0.05)


@pytest.mark.parametrize("name", ["volo_d1_224", "levit_128s", "twins_svt_small", "test_vit"])
def test_models_without_maps_of_channels_first_are_refused(name: str, colored: Path, teacher: Path) -> None:
    recipe = replace(taught(colored, teacher, features=1.0), model=name, model_args={})
    with pytest.raises(ValueError, match=rf"distill\.features: {name} has no feature maps"):
        ClassificationTraining(recipe)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_models_without_maps_while_they_recompute(name: str, colored: Path, teacher: Path) -> None:
    recipe = replace(taught(colored, teacher, features=1.0), model=name, model_args={})
    ClassificationTraining(recipe)  # type: ignore[arg-type]
    recipe = replace(recipe, engine=replace(recipe.engine, grad_checkpointing=True))
    with pytest.raises(ValueError, match=rf"engine\.grad_checkpointing=true: {name} does not give its feature"):
        ClassificationTraining(recipe)  # type: ignore[arg-type]
    ClassificationTraining(replace(recipe, model="test_convnext"))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_teacher_of_one_image_size_cannot_teach_a_dense_task(
    task: str, colored: Path, shapes: Path, scenes: Path, tmp_path: Path, no_report: None
) -> None:
    swin = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 2}
    first = replace(tiny(colored, epochs=1), model="swin_tiny_patch4_window7_224", model_args=swin)
    train(first, tmp_path / "teacher", display=False)
    recipe: Recipe = shapes_recipe(shapes) if task == "detect" else scenes_recipe(scenes)
    recipe = replace(recipe, distill=Distill(teacher=str(tmp_path / "teacher"), features=1.0))
    with pytest.raises(ValueError, match=rf"distill\.teacher=.* cannot teach {task}: its layers are for images of one"):
        train(recipe, tmp_path / "run", display=False)


def test_another_teacher_is_refused_on_resume_and_a_moved_one_is_not(
    colored: Path, teacher: Path, tmp_path: Path, no_report: None
) -> None:
    train(taught(colored, teacher), tmp_path / "run", display=False, max_steps=1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "best.pt").write_bytes((teacher / "best.pt").read_bytes())
    train(taught(colored, other), tmp_path / "run", display=False, max_steps=2)
    state = dict(checkpoints.load(teacher).state)
    state["model"] = {name: value + 1 if value.is_floating_point() else value for name, value in state["model"].items()}
    checkpoints.save({k: v for k, v in state.items() if k != "format"}, other / "best.pt")
    with pytest.raises(ValueError, match=r"distill\.teacher=.*other weights than the teacher"):
        train(taught(colored, other), tmp_path / "run", display=False)
    with pytest.raises(ValueError, match=r"distill\.teacher is"):
        train(tiny(colored), tmp_path / "run", display=False)


def test_images_of_the_teacher_count_as_trained_on(colored: Path, teacher: Path, caplog: Any, tmp_path: Path) -> None:
    """A teacher that was trained on the validation images gives too high metrics."""
    swapped = tmp_path / "data"
    swapped.mkdir()
    (swapped / "train").symlink_to(colored / "val")
    (swapped / "val").symlink_to(colored / "train")
    train(taught(swapped, teacher), tmp_path / "run", display=False, max_steps=1)
    assert "the teacher, were trained on 12 of the 12 validation images" in caplog.text


# --- what cannot work


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(alpha=0.0), r"distill\.alpha or distill\.features above 0"),
        (dict(features=1.0, engine=dict(compile=True)), r"engine\.compile=false"),
        (dict(input=dict(channels=4, max_value=1.0)), "3 channels, the recipe for 4 channels up to 1"),
    ],
)
def test_impossible_settings(colored: Path, teacher: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationTraining(taught(colored, teacher, **fields))  # type: ignore[arg-type]


def test_teachers_that_cannot_be_used(colored: Path, teacher: Path, segmenter_run: Path, tmp_path: Path) -> None:
    animals = write_images(tmp_path / "animals", {"cat": (0, 0, 0), "dog": (200, 0, 0)}, [4, 4])
    with pytest.raises(ValueError, match=r"2 of its 2 classes are not among the teacher's 3.*--distill\.alpha 0"):
        ClassificationTraining(taught(animals, teacher))  # type: ignore[arg-type]
    ClassificationTraining(taught(animals, teacher, alpha=0.0, features=1.0))  # type: ignore[arg-type]
    numbers = write_images(
        tmp_path / "numbers", {"0": (0, 0, 0), "2": (200, 0, 0)}, [4, 4]
    )  # not the teacher's indices
    with pytest.raises(ValueError, match=r"2 of its 2 classes are not among the teacher's 3.*--distill\.alpha 0"):
        ClassificationTraining(taught(numbers, teacher))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gives no scores of classes.*--distill\.alpha 0"):
        ClassificationTraining(taught(colored, segmenter_run))  # type: ignore[arg-type]
    table = tmp_path / "labels.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted((colored / "train").rglob("*.png"))]
    table.write_text("\n".join(["path,label", f"{rows[0]}|red", *rows[1:]]))
    several = dict(classify=ClassifyConfig(multi_label=True))
    with pytest.raises(ValueError, match=r"classify\.multi_label=false, the recipe true"):
        ClassificationTraining(taught(table, teacher, **several))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"distill\.teacher: 'runs/no' is neither"):
        ClassificationTraining(taught(colored, "runs/no"))  # type: ignore[arg-type]
    vit = dict(model="test_vit", model_args={"img_size": 32})
    with pytest.raises(ValueError, match=r"distill\.features: test_vit has no feature maps"):
        ClassificationTraining(taught(colored, teacher, features=1.0, **vit))  # type: ignore[arg-type]


def test_command_line_takes_the_teacher_as_distill() -> None:
    for words in (["--distill", "runs/large"], ["--distill=runs/large"], ["--distill.teacher", "runs/large"]):
        arguments = ["quickstart", *words, "--distill.alpha", "0.9"]
        args = build_parser(arguments).parse_args(arguments)
        assert (args.distill.teacher, args.distill.alpha) == ("runs/large", 0.9)


def test_padding_is_not_part_of_the_loss_of_feature_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 6, 4, 4, generator=generator)
    inside = inside_mask(torch.zeros(2, 3, 64, 64), torch.tensor([[64, 32], [32, 64]]))
    assert inside.sum(dim=(1, 2, 3)).tolist() == [64 * 32, 32 * 64]
    expected = [
        attention_transfer([ours[:1, :, :, :4]], [theirs[:1, :, :, :2]]),
        attention_transfer([ours[1:, :, :4]], [theirs[1:, :, :2]]),
    ]
    assert float(attention_transfer([ours], [theirs], inside)) == pytest.approx(float(sum(expected)) / 2)


def test_padding_of_the_teacher_is_zero() -> None:
    teacher = object.__new__(Distillation)
    teacher._model, teacher._network = torch.nn.Conv2d(3, 1, 1), lambda image: image
    teacher._scale, teacher._shift = torch.ones(3, 1, 1), torch.full((3, 1, 1), 0.5)
    teacher._size, teacher._dtype = None, None
    image = torch.ones(1, 3, 4, 8)
    seen = teacher._teacher(image, inside_mask(image, torch.tensor([[4, 6]])))
    assert (seen[..., :6] == 1.5).all()
    assert (seen[..., 6:] == 0).all()
