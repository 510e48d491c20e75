"""Every number of a recipe, a command and a model has a range, which is checked before anything starts."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import timm
import torch

import smt_vision
from smt_vision.bounds import Range, allows, check, describe, has_bound
from smt_vision.cli import COMMANDS, _module, main
from smt_vision.model import SMT
from smt_vision.recipe import Engine, Optim
from smt_vision.tasks import RECIPES, TASKS, read_recipe, read_spec, recipe_class
from tiny_run import TINY, tiny

BASES = {task: next(recipe for recipe in RECIPES.values() if recipe.task == task) for task in TASKS}
GIANT = 10**12


def numbers_without_range(hint: Any) -> list[Any]:
    """The parts of a type that are numbers without a declared range."""
    if hint in (int, float):
        return [hint]
    if hasattr(hint, "__metadata__"):
        base = get_args(hint)[0]
        return [] if base in (int, float) else numbers_without_range(base)
    if get_origin(hint) is Literal:
        return []
    return [part for argument in get_args(hint) for part in numbers_without_range(argument)]


def all_fields() -> Iterator[tuple[str, str, Any]]:
    """Task, dotted name and type of every field of every recipe."""
    for task in TASKS:
        kind = recipe_class(task)
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if name not in {field.name for field in fields(kind)}:
                continue
            if is_dataclass(hint):
                inner = get_type_hints(hint, include_extras=True)
                yield from ((task, f"{name}.{field.name}", inner[field.name]) for field in fields(hint))
            else:
                yield task, name, hint


def with_value(task: str, name: str, value: Any) -> dict[str, Any]:
    """A recipe as plain data, with another value in one field."""
    values = BASES[task].to_dict()
    group, _, field = name.rpartition(".")
    (values[group] if group else values)[field] = value
    return values


ALL = pytest.mark.parametrize(("task", "name", "hint"), [pytest.param(*f, id=f"{f[0]}-{f[1]}") for f in all_fields()])


@ALL
def test_every_number_has_a_range(task: str, name: str, hint: Any) -> None:
    assert not numbers_without_range(hint), f"declare a range: {name}: Annotated[..., Range(...)]"


@ALL
def test_every_field_refuses_what_is_not_of_its_type(task: str, name: str, hint: Any) -> None:
    wrong: list[Any] = [math.nan, math.inf, -math.inf, {1: 2}, [[]], object, b"8"]
    numbers = [part for part in (hint, *get_args(hint)) if int in (part, *get_args(part)) or float in get_args(part)]
    wrong += [True, "8"] if numbers and hint is not bool and str not in get_args(hint) else []
    for value in wrong:
        if name == "model_args" and isinstance(value, dict):
            value = 3
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
            read_recipe(with_value(task, name, value))
        assert "expected" in str(error.value)


def _bounds(hint: Any) -> list[Any]:
    own = [bound for bound in getattr(hint, "__metadata__", ()) if hasattr(bound, "allows")]
    inside = get_args(hint)[:1] if hasattr(hint, "__metadata__") else get_args(hint)
    return own + [bound for argument in inside for bound in _bounds(argument)]


@pytest.mark.parametrize(
    ("task", "name", "hint"),
    [
        pytest.param(task, name, hint, id=f"{task}-{name}")
        for task, name, hint in all_fields()
        if name != "expected" and any(isinstance(bound, Range) for bound in _bounds(hint))
    ],
)
def test_every_number_refuses_a_giant_and_a_negative_one(task: str, name: str, hint: Any) -> None:
    unbounded = {"input.max_unreadable", "engine.log_every", "engine.eval_every", "engine.checkpoint_minutes",
                 "engine.keep_every_hours", "engine.max_grad_norm", "engine.timeout_minutes",
                 "optim.clip_grad", "optim.lr", "optim.min_lr", "optim.warmup_lr"}  # fmt: skip
    for value in (-5, *(() if name in unbounded else (GIANT,))):
        listed = [value, value] if "tuple" in str(hint) else value
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_recipe(with_value(task, name, listed))


REFUSED = [
    ("classify", "batch_size", 0), ("classify", "epochs", 0), ("classify", "epochs", 2.0),
    ("classify", "input.size", 0), ("classify", "input.crop_pct", 0), ("classify", "input.crop_pct", 1e-9),
    ("classify", "engine.eval_every", 0), ("classify", "engine.log_every", 0), ("classify", "engine.accumulate", 0),
    ("segment", "segment.stride", 0), ("segment", "segment.stride", [0, 64]), ("segment", "segment.test_scales", []),
    ("segment", "segment.test_scales", [0]), ("segment", "segment.crop", [64, 0]), ("segment", "segment.crop", [64]),
    ("segment", "segment.scale", [2.0, 0.5]), ("segment", "segment.scale", [0, 2]),
    ("classify", "engine.ema", 2), ("classify", "engine.ema", 1.0), ("classify", "augment.mixup", -1),
    ("classify", "input.workers", -1), ("classify", "engine.devices", 0), ("classify", "engine.devices", -2),
    ("classify", "engine.nodes", 0), ("classify", "engine.loggers", ["tensorbored"]),
    ("classify", "engine.precision", "fp16"), ("classify", "engine.accelerator", "gpux"),
    ("classify", "augment.auto_augment", "randaug"), ("classify", "augment.auto_augment", "rand-x5"),
    ("classify", "augment.auto_augment", "rand-m"), ("classify", "augment.auto_augment", "augmix-n3"),
    ("classify", "augment.auto_augment", ""), ("classify", "augment.auto_augment", "rand-foo"),
    ("classify", "input.interpolation", "cubic"), ("detect", "input.interpolation", "random"),
    ("classify", "augment.scale", [0.9, 0.1]), ("classify", "augment.scale", [0.1, 1.5]),
    ("classify", "augment.ratio", [0, 1]), ("classify", "augment.label_smoothing", 1.0),
    ("classify", "input.channels", 2), ("classify", "input.mean", [0.5]), ("classify", "input.mean", []),
    ("classify", "input.mean", [123.7, 116.3, 103.5]), ("classify", "input.std", [0, 1, 1]),
    ("classify", "input.val_fraction", 0), ("classify", "train_fraction", 0), ("classify", "seed", 2**32),
    ("classify", "optim.name", "adamm"), ("classify", "optim.name", "adahessian"),
    ("classify", "optim.betas", [0.9, 1.0]), ("classify", "optim.layer_decay", 0), ("classify", "optim.clip_grad", 0),
    ("classify", "optim.schedule", "linear"), ("classify", "optim.lr_batch", 0), ("classify", "model", ""),
    ("classify", "expected", {"top1": "high"}),
    ("detect", "detect.train_short_sides", []), ("detect", "detect.anchor_sizes", [0] * 5),
    ("detect", "detect.score_threshold", 1.5), ("detect", "detect.rois", 0), ("detect", "detect.max_detections", 0),
]  # fmt: skip


@pytest.mark.parametrize(("task", "name", "value"), REFUSED)
def test_refused_values(task: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        read_recipe(with_value(task, name, value))
    assert len(str(error.value).splitlines()) == 1


ACCEPTED = [
    ("classify", "input.workers", 0), ("classify", "augment.mixup", 0.0), ("classify", "augment.mixup", 0),
    ("classify", "engine.ema", None), ("classify", "engine.checkpoint_minutes", 0), ("classify", "engine.loggers", []),
    ("classify", "augment.auto_augment", None), ("classify", "augment.auto_augment", "rand-m9-mstd0.5-inc1"),
    ("classify", "augment.auto_augment", "rand-m9-n3-p0.5-mmax15-tweights"), ("classify", "augment.auto_augment", "v0"),
    ("classify", "augment.auto_augment", "augmix-m5-w4-d2-b1"), ("classify", "augment.auto_augment", "3a-mstd1"),
    ("classify", "augment.auto_augment", "original-mstd0.5"), ("classify", "input.interpolation", "random"),
    ("classify", "input.interpolation", "lanczos"), ("classify", "input.crop_pct", 1.15), ("classify", "epochs", 1),
    ("classify", "optim.name", "lion"), ("classify", "optim.name", "lookahead_adamw"), ("classify", "optim.lr", 1),
    ("classify", "optim.clip_grad", None), ("classify", "optim.warmup_epochs", 400), ("classify", "train_fraction", 1),
    ("classify", "optim.warmup_lr", 0.0), ("classify", "engine.devices", -1), ("classify", "engine.devices", 8),
    ("segment", "segment.short_side", 0), ("segment", "segment.aux_weight", 0), ("segment", "segment.dropout", 0),
    ("segment", "segment.test_scales", [1]), ("segment", "segment.scale", [1, 1]), ("detect", "detect.min_box", 0),
    ("detect", "detect.score_threshold", 0), ("detect", "detect.nms_threshold", 1),
]  # fmt: skip


@pytest.mark.parametrize(("task", "name", "value"), ACCEPTED)
def test_values_at_the_edge_are_accepted(task: str, name: str, value: Any) -> None:
    values = with_value(task, name, value)
    assert read_recipe(values).to_dict() == values


def test_auto_augment_is_what_timm_accepts() -> None:
    from timm.data.transforms_factory import transforms_imagenet_train

    for _, name, value in ACCEPTED:
        if name == "augment.auto_augment" and value is not None:
            transforms_imagenet_train(auto_augment=value)


def test_values_that_depend_on_each_other() -> None:
    with pytest.raises(ValueError, match=r"layer_decay=0.5.*no_decay"):
        Optim(layer_decay=0.5, no_decay="norm")
    segment = BASES["segment"].segment  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"segment\.stride=\(341, 341\).*\(256, 256\)"):
        replace(segment, test="slide", crop=(256, 256))
    replace(segment, test="whole", crop=(256, 256))  # windows are not used


def test_python_yaml_and_command_line_have_one_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "invalid batch_size=0: expected an integer of at least 1"
    with pytest.raises(ValueError, match=expected):
        tiny(tmp_path, batch_size=0)
    with pytest.raises(ValueError, match=expected):
        read_recipe(with_value("classify", "batch_size", 0))
    (tmp_path / "my.yaml").write_text("batch_size: 0\n")
    for arguments in (["--batch_size", "0"], ["--config", str(tmp_path / "my.yaml")]):
        assert main(["train", "quickstart", "--run", str(tmp_path / "run"), *arguments]) == 1
        assert capsys.readouterr().err.startswith(f"smt train: error: {expected}")
    assert not (tmp_path / "run").exists()


def test_values_of_a_checkpoint_are_checked() -> None:
    spec = dict(task="classify", model="smt_atto", classes=["a", "b"], input=TINY.to_dict()["input"], head={})
    assert read_spec(spec).input == TINY.input
    for name, value in (("classes", [1, 2]), ("input", None), ("input", {"size": 0}), ("model", 3), ("task", [])):
        with pytest.raises(ValueError, match=name):
            read_spec({**spec, name: value})
    with pytest.raises(ValueError, match="'model'"):
        read_spec({name: value for name, value in spec.items() if name != "model"})


# Commands


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "quickstart", "--max_steps", "-5"],
        ["predict", "MODEL", "IMAGE", "--batch_size", "0"],
        ["predict", "MODEL", "IMAGE", "--top_k", "-1"],
        ["predict", "MODEL", "IMAGE", "--score", "1.5"],
        ["predict", "MODEL", "IMAGE", "--input.size", "0"],
        ["predict", "MODEL", "IMAGE", "--segment.test_scales", "[]"],
        ["eval", "MODEL", "--batch_size", str(GIANT)],
        ["eval", "MODEL", "--workers", "-1"],
        ["eval", "MODEL", "--max_unreadable", "-1"],
        ["eval", "MODEL", "--detect.nms_threshold", "2"],
        ["export", "MODEL", "--format", "onnx", "--segment.crop", "[0, 64]"],
        ["info", "smt_atto", "--size", "0"],
        ["bench", "smt_atto", "--batch_size", "1", "0"],
        ["bench", "smt_atto", "--size", "-1"],
        ["bench", "smt_atto", "--threads", "0"],
        ["bench", "smt_atto", "--rounds", "0"],
        ["bench", "smt_atto", "--seconds", "-1"],
        ["analyze", "MODEL", "IMAGE", "--top_k", "0"],
        ["analyze", "MODEL", "IMAGE", "--query", "0.5", "1.1"],
        ["study", "aggregation", "--jobs", "0"],
        ["study", "aggregation", "--seeds", "0"],
    ],
    ids=" ".join,
)
def test_option_out_of_range(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    option = [word for word in arguments if word.startswith("--")][-1]
    assert error.startswith(f"smt {arguments[0]}: error: invalid {option} ")
    assert "expected" in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "MODEL", "IMAGE", "--score", "nan"],
        ["bench", "smt_atto", "--seconds", "inf"],
        ["train", "quickstart", "--optim.lr", "nan"],
        ["train", "quickstart", "--epochs", "true"],
        ["train", "quickstart", "--epochs", "1.5"],
    ],
    ids=" ".join,
)
def test_option_of_another_type(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert arguments[-2].lstrip("-") in capsys.readouterr().err


def test_milestones_are_those_of_the_schedule_with_steps() -> None:
    with pytest.raises(ValueError, match=r"optim.schedule=step needs optim.milestones"):
        Optim(schedule="step")
    with pytest.raises(ValueError, match=r"optim.milestones=\[1\] has no effect with optim.schedule=cosine"):
        Optim(milestones=(1,))


def test_engine_of_eval_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "MODEL", "--engine.devices", "0"]) == 1
    assert "engine.devices=0" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_numeric_option_has_a_range(command: str) -> None:
    words = ["quickstart"] if command == "train" else []
    for action in _module(command).build_parser(words)._actions:
        assert not numbers_without_range(getattr(action, "_typehint", None) or action.type), action.dest


def test_help_shows_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "quickstart", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Images per batch and process. (required, type: an integer of at least 1 and at most" in text
    assert "Annotated" not in text


# Python functions and the model


def test_python_functions_check_what_commands_check(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_steps=-5"):
        smt_vision.train(TINY, tmp_path / "run", max_steps=-5)
    for function in (smt_vision.train, smt_vision.cross_validate, smt_vision.find_lr):
        with pytest.raises(ValueError, match=r"recipe='finetune': expected a Recipe, e\.g\. .*RECIPES\['finetune'\]"):
            function("finetune", tmp_path / "run")
    for name, value in (("batch_size", 0), ("workers", -1), ("max_unreadable", -1)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            smt_vision.evaluate("smt_atto", tmp_path, **{name: value})
    predictor = smt_vision.load("smt_femto.cifar10")
    with pytest.raises(ValueError, match="batch_size=0"):
        predictor([], batch_size=0)
    from PIL import Image

    with pytest.raises(ValueError, match="top_k=0"):
        predictor([Image.new("RGB", (32, 32))], top_k=0)
    with pytest.raises(ValueError, match=r"input\.size=0"):
        smt_vision.load("smt_femto.cifar10", overrides={"input": {"size": 0}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depths", (1, 1, 1, 1.5)), ("depths", (1, 1, GIANT, 1)), ("embed_dims", (8, 16, 32, GIANT)),
        ("embed_dims", ()), ("embed_dims", "wide"), ("expand_ratio", GIANT), ("expand_ratio", math.nan),
        ("mlp_ratios", math.inf), ("mlp_ratios", 0), ("drop_path_rate", 1.0), ("drop_rate", "0.1"),
        ("layer_scale", math.nan), ("stem_stride", 3), ("stem_kernel", -3), ("output_stride", 12),
        ("conv_heads", True), ("attn_heads", -1), ("conv_kernels", (3, 5, 7, GIANT + 1)), ("num_classes", -1),
        ("in_chans", 0), ("aggregation", ["saa"]), ("modulation", "mean"), ("mixers", 3), ("conv_kernels", 7),
        ("in_chans", (3,)), ("stem_kernel", (3, 3)), ("num_classes", [10]), ("expand_ratio", [2]),
        ("expand_ratio", 1.5), ("layer_scale", False), ("embed_dims", 64),
    ],
)  # fmt: skip
def test_arguments_of_smt(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"invalid {name}="):
        SMT(**{name: value})
    if name != "num_classes":
        with pytest.raises(ValueError, match=f"invalid {name}="):
            timm.create_model("smt_atto", **{name: value})


def test_a_whole_number_is_an_integer() -> None:
    """As JSON and YAML may have it."""
    small: dict[str, Any] = dict(embed_dims=(8, 16), depths=1, mlp_ratios=2, mixers=("S", "A"), attn_heads=2)
    model = SMT(**small, expand_ratio=2.0)  # type: ignore[arg-type]
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


# The declarations themselves


def test_what_a_type_allows() -> None:
    assert allows(float, 1)
    assert not allows(float, True)
    assert not allows(float, 10**400)
    assert not allows(int, 1.0)
    assert allows(tuple[int, ...], [1, 2])
    assert not allows(tuple[int, int], (1,))
    assert allows(int | None, None)
    assert not allows(Literal[1, "a"], True)
    assert has_bound(get_type_hints(Engine, include_extras=True)["ema"])
    assert not has_bound(int | None)


def test_description_and_message() -> None:
    hint = get_type_hints(Engine, include_extras=True)["ema"]
    assert describe(hint) == "a number of at least 0 and below 1, or null"
    with pytest.raises(ValueError, match=r"^invalid name='\\x1b\[31m\\n': expected an integer$"):
        check("name", "\x1b[31m\n", int)
    with pytest.raises(ValueError, match="name") as error:
        check("name", "x" * 10_000, int)
    assert len(str(error.value)) < 200


def test_every_dataclass_of_a_recipe_is_checked_when_it_is_made() -> None:
    for task in TASKS:
        for name, kind in recipe_class(task).groups().items():
            numbers = [f.name for f in fields(kind) if isinstance(f.default, int | float)]
            field = (numbers or [f.name for f in fields(kind)])[0]
            with pytest.raises(ValueError, match=rf"{name}\.{field}=-3"):
                dataclasses.replace(getattr(BASES[task], name), **{field: -3})
