"""The recipes that ship: their values are the paper's, they build, and they train."""

import json
import math
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from smt_vision.cli import main
from smt_vision.engine.log import read_log
from smt_vision.engine.loop import train
from smt_vision.engine.optim import learning_rate
from smt_vision.legacy import upgrade
from smt_vision.recipe import OWN_DATA, Augment, Engine, Input, Optim, Recipe
from smt_vision.tasks import RECIPES, TASKS, get_task, read_recipe, recipe_class
from tiny_run import MODEL_ARGS, tiny

LARGE = ("imagenet22k_large", "imagenet1k_large_ft224", "imagenet1k_large_ft384")
SCRATCH = ("tiny", "small", "base", "large")
DETECTION = {
    "detect", "instance", "coco_dino_small",
    "coco_mask_rcnn_1x_small", "coco_mask_rcnn_1x_base", "coco_mask_rcnn_3x_small", "coco_mask_rcnn_3x_base",
    "coco_cascade_3x_small", "coco_retinanet_3x_small", "nuclei_mask_rcnn", "bccd_retinanet",
}  # fmt: skip
SEGMENTATION = {"segment", "ade20k_upernet_160k_small", "ade20k_upernet_160k_base", "salient_upernet", "camvid_upernet"}
CLASSIFICATION = {name: recipe for name, recipe in RECIPES.items() if recipe.task == "classify"}
ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def test_names() -> None:
    assert list(RECIPES) == [recipe.name for recipe in RECIPES.values()]
    assert {f"imagenet1k_{v}" for v in SCRATCH} <= RECIPES.keys()
    assert {*LARGE, "finetune", "cifar10", "quickstart"} <= CLASSIFICATION.keys()
    assert {name for name, recipe in RECIPES.items() if recipe.task == "detect"} == DETECTION
    assert {name for name, recipe in RECIPES.items() if recipe.task == "segment"} == SEGMENTATION


@ALL
def test_descriptions_and_sources(recipe: Recipe) -> None:
    for text in (recipe.about, recipe.hardware, recipe.citation):
        assert len(text) > 3
        assert "\n" not in text
    detect = {f"{kind}_{number}" for kind in ("box", "mask") for number in ("ap", "ap50")}
    known = {"classify": {"top1", "top5"}, "detect": detect, "segment": {"miou", "pixel_accuracy"}, "pretrain": {"knn"}}
    assert set(recipe.expected) <= known[recipe.task]
    assert not recipe.expected or recipe.expected_source


@ALL
def test_plain_data_round_trip(recipe: Recipe) -> None:
    plain = recipe.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert read_recipe(plain) == replace(recipe, model_args=plain["model_args"])


@pytest.mark.parametrize("task", TASKS)
def test_every_field_is_documented(task: str) -> None:
    groups = recipe_class(task).groups()
    for kind in (Recipe, Input, Augment, Optim, Engine, *groups.values()):
        documented = re.findall(r"^        (\w+): ", kind.__doc__ or "", flags=re.MULTILINE)
        assert sorted(documented) == sorted(f.name for f in fields(kind)), kind
    own = {f.name for f in fields(recipe_class(task))} - {f.name for f in fields(Recipe)}
    assert own <= set(re.findall(r"^        (\w+): ", recipe_class(task).__doc__ or "", flags=re.MULTILINE))


# The fields of a group that not all tasks have.
CLASSIFICATION_OWN = {
    "input": {"size", "crop_pct", "crop_mode", "val_fraction", "allow_damaged", "max_value"},
    "augment": {
        "crop", "scale", "ratio", "pad", "color_jitter", "auto_augment", "random_erasing", "erasing_mode", "mixup",
        "cutmix", "mix_prob", "switch_prob", "label_smoothing",
    },
}  # fmt: skip
DETECTION_OWN = {
    "input": {"val_fraction", "max_value", "clip_boxes"},
    "augment": {"color_jitter", "scale_jitter", "iou_crop", "mosaic", "close_mosaic", "copy_paste"},
}
PRETRAINING_OWN = {"input": CLASSIFICATION_OWN["input"], "augment": {"scale", "color_jitter", "grayscale", "blur"}}
GROUPS = {
    "classify": CLASSIFICATION_OWN, "detect": DETECTION_OWN, "segment": {"input": {"max_value", "val_fraction"}},
    "pretrain": PRETRAINING_OWN,
}  # fmt: skip


@ALL
def test_to_dict_has_only_the_fields_of_its_task(recipe: Recipe) -> None:
    plain = recipe.to_dict()
    own = {
        recipe.task,
        *{"classify": ("loss", "labels"), "detect": ("loss",), "segment": ("loss",), "pretrain": ("labels",)}[
            recipe.task
        ],
    }
    assert plain.keys() == {"task"} | {f.name for f in fields(Recipe)} | own
    assert set(recipe.groups()) == {"lora", "distill", "input", "augment", "sampling", "optim", "engine"} | own
    assert recipe.head_group == recipe.task
    for group, shared in (("input", Input), ("augment", Augment)):
        more = plain[group].keys() - {f.name for f in fields(shared)}
        assert more == GROUPS.get(recipe.task, {}).get(group, set())


def earlier_form(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it was written when recipes had the fields of all tasks."""
    plain = recipe.to_dict()
    every = {task: recipe_class(task).groups() for task in TASKS}
    for group in ("input", "augment"):
        plain[group] = {**json.loads(json.dumps(asdict(every["classify"][group]()))), **plain[group]}
    del plain["input"]["allow_damaged"], plain["input"]["max_value"]  # newer than that form
    plain["input"]["max_broken"] = plain["input"].pop("max_unreadable")
    for head in ("detect", "segment"):
        plain.setdefault(head, json.loads(json.dumps(asdict(every[head][head]()))))
    return plain


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.task != "pretrain"])
def test_earlier_form_is_read(name: str) -> None:
    recipe = RECIPES[name]
    assert read_recipe(earlier_form(recipe)).to_dict() == recipe.to_dict()


def test_golden_recipe_is_read() -> None:
    values = yaml.safe_load((Path(__file__).parent / "golden" / "recipe.yaml").read_text())
    assert {"detect", "segment"} <= values.keys()
    recipe = read_recipe(values)
    small = dict(embed_dims=[8, 8, 16, 16], attn_heads=[1, 1, 2, 2], mlp_ratios=[2, 2, 2, 2], conv_heads=2)
    assert recipe == tiny(
        Path("images"), epochs=4, model_args={"depths": [1, 1, 2, 1], "stem_stride": 2, **small},
        engine=dict(ema=0.9),
    )  # fmt: skip
    assert read_recipe(recipe.to_dict()) == recipe


@pytest.mark.parametrize(("earlier", "name"), [(True, "saa"), (False, "none")])
def test_aggregation_that_was_true_or_false_is_read(earlier: bool, name: str) -> None:
    recipe = replace(RECIPES["quickstart"], model_args=dict(aggregation=earlier, stem_stride=2))
    expected = dict(aggregation=name, stem_stride=2)
    assert read_recipe(recipe.to_dict()).model_args == expected
    spec = dict(task="classify", model="smt_atto", model_args=recipe.model_args)
    checkpoint = upgrade({"spec": spec, "recipe": recipe.to_dict(), "model": {}})
    assert checkpoint["spec"]["model_args"] == checkpoint["recipe"]["model_args"] == expected


@pytest.mark.parametrize("group", [None, "input", "optim"])
def test_unknown_field_is_refused(group: str | None) -> None:
    values = RECIPES["quickstart"].to_dict()
    (values if group is None else values[group])["speed"] = 1
    with pytest.raises(ValueError, match="'speed'"):
        read_recipe(values)


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'track'.*classify, detect, segment"):
        read_recipe({"task": "track"})


@pytest.mark.parametrize("name", ["bccd", "nuclei", "camvid", "cifar10"])
def test_recipes_of_published_results_still_load(name: str) -> None:
    """They were written when a recipe had the fields of all tasks."""
    file = Path(__file__).parents[1] / "docs" / "results" / name / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    recipe = read_recipe(values)
    assert (recipe.task, recipe.model, recipe.epochs) == (values["task"], values["model"], values["epochs"])
    assert recipe.input.max_unreadable == values["input"]["max_broken"]
    assert recipe.optim.lr == values["optim"]["lr"]
    if recipe.head_group in values:
        head = getattr(recipe, recipe.head_group)
        assert head.head == values[recipe.head_group]["head"]


@ALL
def test_builds_at_full_size(recipe: Recipe) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(recipe.model, in_chans=recipe.input.channels, **recipe.model_args)
    if stated := re.search(r"\(([\d.]+) M parameters\)", recipe.about):
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert millions == pytest.approx(float(stated[1]), abs=0.06)
    if recipe.pretrained:
        assert model.pretrained_cfg["url"] or model.pretrained_cfg["file"]


@pytest.mark.parametrize("recipe", CLASSIFICATION.values(), ids=CLASSIFICATION)
def test_trains_one_step_and_evaluates(recipe: Recipe, colored: Path, tmp_path: Path, no_report: None) -> None:
    small = replace(
        recipe,
        data=str(colored),
        model_args={**recipe.model_args, **MODEL_ARGS},
        pretrained=False,
        epochs=1,
        batch_size=24 // recipe.engine.accumulate,  # one step per epoch
        input=replace(recipe.input, size=32, workers=0),
        engine=replace(recipe.engine, accelerator="cpu", devices=1, log_every=1),
    )
    run = train(small, tmp_path / "run", display=False)
    assert run.step == run.total_steps == 1
    assert run.metrics["count"] == 12
    assert len(run.metrics["per_class"]) == 3
    assert (run.ema is not None) == (recipe.engine.ema is not None)
    line = next(line for line in read_log(tmp_path / "run") if line["kind"] == "train")
    assert math.isfinite(line["loss"])
    assert math.isfinite(line["grad_norm"])
    assert (tmp_path / "run" / "best.pt").is_file()


# --- the paper's values, from the reference file


@pytest.fixture(scope="module")
def paper(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "reference" / "paper.json").read_text())


@pytest.mark.parametrize("name", [*(f"imagenet1k_{v}" for v in SCRATCH), *LARGE])
def test_common_values_are_the_papers(paper: dict[str, Any], name: str) -> None:
    recipe, common = RECIPES[name], paper["recipes"]["common"]
    assert recipe.optim.name == common["optimizer"].lower()
    assert list(recipe.optim.betas) == common["betas"]
    assert (recipe.optim.eps, recipe.optim.weight_decay) == (common["eps"], common["weight_decay"])
    assert recipe.optim.clip_grad == common["clip_grad_norm"]
    assert f"linear warm-up {recipe.optim.warmup_epochs:g} epochs" in common["schedule"]
    assert f"total batch / {recipe.optim.lr_batch}" in common["lr_rule"]
    assert recipe.optim.layer_decay is None
    augment = asdict(recipe.augment)
    names = ("label_smoothing", "mixup", "cutmix", "mix_prob", "switch_prob", "auto_augment", "color_jitter",
             "random_erasing", "erasing_mode")  # fmt: skip
    assert {k: augment[k] for k in names} == {k: common[k] for k in names}
    assert (recipe.augment.crop, recipe.augment.hflip) == ("rrc", 0.5)
    assert recipe.input.interpolation == common["interpolation"]
    assert recipe.engine.precision.endswith(common["precision"])


def _learning_rates(recipe: Recipe) -> dict[str, Any]:
    return dict(epochs=recipe.epochs, lr=recipe.optim.lr, warmup_lr=recipe.optim.warmup_lr, min_lr=recipe.optim.min_lr)


def _batch(recipe: Recipe) -> str:
    accumulated = f" x {recipe.engine.accumulate} accumulated" if recipe.engine.accumulate > 1 else ""
    return f"8 x {recipe.batch_size}{accumulated}"


@pytest.mark.parametrize("variant", SCRATCH)
def test_scratch_is_the_papers(paper: dict[str, Any], variant: str) -> None:
    recipe, given = RECIPES[f"imagenet1k_{variant}"], paper["recipes"]["imagenet1k_scratch"]
    assert _learning_rates(recipe) == {k: given[k] for k in _learning_rates(recipe)}
    assert _batch(recipe) == given["batch"]
    assert recipe.model == f"smt_{variant}"
    assert recipe.model_args == {"drop_path_rate": given["drop_path"][variant]}
    assert not recipe.pretrained
    assert (recipe.input.size, recipe.input.crop_mode) == (224, "center")
    assert recipe.input.crop_pct == pytest.approx(224 / 256)


@pytest.mark.parametrize(
    ("name", "key", "pretrained"),
    [
        ("imagenet22k_large", "imagenet22k_pretrain", False),
        ("imagenet1k_large_ft224", "finetune_224", True),
        ("imagenet1k_large_ft384", "finetune_384", True),
    ],
)
def test_large_is_the_papers(paper: dict[str, Any], name: str, key: str, pretrained: bool) -> None:
    recipe, given = RECIPES[name], paper["recipes"][key]
    assert _learning_rates(recipe) == {k: given[k] for k in _learning_rates(recipe)}
    assert recipe.model_args == {"drop_path_rate": given["drop_path"]}
    assert recipe.pretrained == pretrained
    assert recipe.model == given["model"] + (".in22k" if pretrained else "")
    assert recipe.input.size == given.get("size", 224)
    if "batch" in given:
        assert _batch(recipe) == given["batch"]
    if "eval" in given:
        assert given["eval"] == "resize to 384x384, no crop"
        assert (recipe.input.crop_mode, recipe.input.crop_pct) == ("squash", 1.0)


def test_expected_results_are_the_papers(paper: dict[str, Any]) -> None:
    published = {(row["model"], row["pretrain"], row["size"]): row for row in paper["imagenet"]}
    found = 0
    for recipe in CLASSIFICATION.values():
        row = published.get((recipe.model.partition(".")[0], "22K" if recipe.pretrained else "1K", recipe.input.size))
        if recipe.name.startswith("imagenet1k") and row:
            assert recipe.expected == {"top1": row["top1"], "top5": row["top5"]}, recipe.name
            found += 1
    assert found == len(published) == 5


# --- the paper's values for detection and segmentation


@pytest.mark.parametrize("name", sorted(n for n in DETECTION if n.startswith("coco") and "dino" not in n))
def test_detection_is_the_papers(paper: dict[str, Any], name: str) -> None:
    recipe, given = RECIPES[name], paper["recipes"]["detection"]
    schedule, variant = given["3x" if "3x" in name else "1x"], name.rpartition("_")[2]
    assert recipe.model == f"smt_{variant}"
    assert recipe.model_args == {"drop_path_rate": given["drop_path"][variant]}
    assert recipe.pretrained
    assert (recipe.epochs, list(recipe.optim.milestones)) == (schedule["epochs"], schedule["steps"])
    assert (recipe.optim.schedule, recipe.optim.name) == ("step", given["optimizer"].lower())
    assert recipe.optim.weight_decay == given["weight_decay"]
    # The configurations of the others decay all parameters.
    assert recipe.optim.no_decay == (given["no_decay"].removesuffix(" layers") if "mask_rcnn" in name else "none")
    assert given["lr_note"].startswith("Mask R-CNN; 1e-4 for the other detectors")
    assert recipe.optim.lr == (given["lr"] if "mask_rcnn" in name else 1e-4)
    assert (_batch(recipe), recipe.optim.lr_batch) == (given["batch"], 16)
    assert f"{recipe.detect.fpn_channels} channels" in given["fpn"]
    assert recipe.detect.long_side == paper["recipes"]["detection"]["3x"]["long_side"] == 1333
    if "3x" in name:
        assert recipe.detect.crop_branch
        assert recipe.detect.train_short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
        assert "480..800 step 32" in schedule["augment"]
    else:
        assert not recipe.detect.crop_branch
        assert recipe.detect.train_short_sides == (800,)
        assert "short 800" in schedule["resize"]


@pytest.mark.parametrize("variant", ["small", "base"])
def test_ade20k_is_the_papers(paper: dict[str, Any], variant: str) -> None:
    recipe, given = RECIPES[f"ade20k_upernet_160k_{variant}"], paper["recipes"]["segmentation"]
    assert recipe.model == f"smt_{variant}"
    assert recipe.model_args == {"drop_path_rate": given["drop_path"][variant]}
    assert recipe.pretrained
    optim, segment = recipe.optim, recipe.segment
    assert (optim.name, optim.lr, optim.weight_decay) == ("adamw", given["lr"], given["weight_decay"])
    assert (optim.schedule, optim.min_lr, optim.no_decay) == ("poly", 0.0, "none")
    assert (_batch(recipe), optim.lr_batch) == (given["batch"], 16)
    assert segment.crop == (given["crop"], given["crop"])
    head = f"UPerNet, {segment.channels} channels, pool scales 1 2 3 6, dropout {segment.dropout}; auxiliary FCN on "
    assert given["head"] == f"{head}stage 3, {segment.aux_channels} channels, 1 conv, weight {segment.aux_weight}"
    assert segment.zero_is_ignored

    # An epoch has 1,263 steps of 16 images, of 20,210.
    steps = 20_210 // 16
    assert given["iterations"] <= recipe.epochs * steps < given["iterations"] + steps

    def rate(step: int) -> float:
        return learning_rate(step, optim, recipe.epochs * steps, steps, 16)

    assert rate(1500) == max(map(rate, range(0, recipe.epochs * steps, 100))) == given["lr"]
    assert rate(0) == pytest.approx(given["lr"] * 1e-6)
    assert rate(recipe.epochs * steps) == 0.0


def test_detection_warms_up_for_500_steps() -> None:
    recipe, steps = RECIPES["coco_mask_rcnn_1x_base"], 118_287 // 16  # images without objects are used
    rates = [learning_rate(step, recipe.optim, 12 * steps, steps, 16) for step in (0, 250, 499, 500, 501)]
    assert rates == pytest.approx([2e-7, 1.001e-4, 1.996e-4, 2e-4, 2e-4], rel=1e-3)


def test_expected_results_of_dense_tasks_are_the_papers(paper: dict[str, Any]) -> None:
    heads = {"mask_rcnn": "Mask R-CNN", "cascade_mask_rcnn": "Cascade Mask R-CNN", "retinanet": "RetinaNet"}
    heads |= {"dino": "DINO 4-scale", "fcos": "FCOS"}
    coco = {(row["backbone"], row["method"], row["schedule"]): row for row in paper["coco"]}
    found = 0
    for name in DETECTION:
        recipe = RECIPES[name]
        schedule = "3x" if "3x" in name else "1x" if "dino" not in name else None
        if row := coco.get((recipe.model, heads[recipe.detect.head], schedule)):
            assert recipe.expected == {k: row[k] for k in ("box_ap", "mask_ap") if k in row}, name
            found += 1
    assert found == 5
    for row in paper["ade20k"]:
        recipe = RECIPES[f"ade20k_upernet_160k_{row['backbone'].removeprefix('smt_')}"]
        assert recipe.expected == {"miou": row["miou_ss"]}
        assert str(row["miou_ms"]) in recipe.expected_source


# --- recipes for one's own images

OWN = sorted(name for name, recipe in RECIPES.items() if recipe.data == OWN_DATA)


@pytest.mark.parametrize("name", OWN)
def test_own_images_must_be_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before weights are downloaded."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"'{name}' has no data of its own.*--data MY_FOLDER"):
        get_task(RECIPES[name].task).training(RECIPES[name])


def test_each_task_has_a_recipe_for_own_images_from_pretrained_weights() -> None:
    assert {"finetune", "detect", "instance", "segment"} <= set(OWN)
    assert all(RECIPES[name].pretrained for name in OWN if name != "pretrain")
    assert RECIPES["instance"].detect.has_masks
    assert not RECIPES["detect"].detect.has_masks


# --- a printed recipe, read again


@pytest.mark.parametrize("name", RECIPES)
def test_printed_recipe_trains_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == RECIPES[name].to_dict()
    (tmp_path / "mine.yaml").write_text(text)

    class Intercepted(RuntimeError):
        pass

    given: list[Recipe] = []

    def remember(recipe: Recipe, *args: Any, **kwargs: Any) -> None:
        given.append(recipe)
        raise Intercepted("read")

    monkeypatch.setattr("smt_vision.engine.loop.train", remember)
    assert main(["train", name, "--config", str(tmp_path / "mine.yaml"), "--run", str(tmp_path / "run")]) == 1
    assert main(["train", name, "--run", str(tmp_path / "run")]) == 1
    assert [recipe.to_dict() for recipe in given] == [RECIPES[name].to_dict()] * 2
