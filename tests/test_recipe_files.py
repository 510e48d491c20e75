"""Recipe files of runs: a file that is damaged, half or of another structure is one error, never another recipe."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from smt_vision.cli import main
from smt_vision.recipe import Recipe
from smt_vision.recipe_files import read_recipe_file, read_yaml, write_recipe
from smt_vision.tasks import RECIPES, TASKS
from smt_vision.yaml_files import MAX_BYTES

GOLDEN = Path(__file__).parent / "golden" / "recipe.yaml"
RESULTS = sorted((Path(__file__).parents[1] / "docs" / "results").glob("*/recipe.yaml"))
BASES = {task: next(recipe for recipe in RECIPES.values() if recipe.task == task) for task in TASKS}
ALL = pytest.mark.parametrize("recipe", BASES.values(), ids=BASES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe as a run writes it."""
    write_recipe(BASES["classify"], tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


def refused(path: Path, expected: str | None = None) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        read_recipe_file(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


@ALL
def test_written_file_is_read_again(recipe: Recipe, tmp_path: Path) -> None:
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe_file(tmp_path / "recipe.yaml").to_dict() == recipe.to_dict()
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == recipe.to_dict()


def test_name_that_is_not_ascii(file: Path) -> None:
    recipe = read_recipe_file(file)
    changed = type(recipe).from_dict({**recipe.to_dict(), "about": "Zäune und\nBäume 🌳", "name": "1e-3"})
    write_recipe(changed, file)
    assert read_recipe_file(file) == changed


@ALL
def test_half_file(recipe: Recipe, tmp_path: Path) -> None:
    """Cut anywhere: an error, or, without only the comment at the end, the same recipe."""
    path = tmp_path / "recipe.yaml"
    write_recipe(recipe, path)
    content = path.read_bytes()
    lines = [match.end() for match in re.finditer(rb"\n", content)]
    for size in {*lines[:-2], *random.Random(0).sample(range(lines[-2]), 25), lines[-2] - 1}:
        path.write_bytes(content[:size])
        refused(path)
    path.write_bytes(content[: lines[-2]])
    assert read_recipe_file(path).to_dict() == recipe.to_dict()
    for size in (len(content) - 5, len(content) - 40):  # the checksum is cut
        path.write_bytes(content[:size])
        refused(path, "checksum")


@pytest.mark.parametrize("source", [GOLDEN, *RESULTS], ids=lambda path: path.parent.name)
def test_file_of_an_earlier_version(source: Path, tmp_path: Path) -> None:
    """It has no checksum: read if it is complete, refused if it is half."""
    path = tmp_path / "recipe.yaml"
    shutil.copy(source, path)
    recipe = read_recipe_file(path)
    assert recipe.model == yaml.safe_load(source.read_text())["model"]
    content = source.read_bytes()
    entries = [match.start() + 1 for match in re.finditer(rb"\n\w", content)]  # ends of top-level entries
    inside = [match.start() + 1 for match in re.finditer(rb"\n  \w", content)]
    for size in [*entries, *inside[::5], len(content) - 1]:
        path.write_bytes(content[:size])
        refused(path)


def test_flipped_bit(file: Path) -> None:
    content = file.read_bytes()
    body = content.index(b"# sha256")
    rng = random.Random(1)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(body)] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        refused(file)


def test_edited_file(file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace("log_every: 50", "log_every: 10"))
    refused(file, "checksum.*edited.*delete that line")
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "# sha256" not in line))
    assert read_recipe_file(file).engine.log_every == 10


def test_line_ends_and_byte_order_mark_of_an_editor(file: Path) -> None:
    recipe = read_recipe_file(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_recipe_file(file) == recipe


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
STRUCTURES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "nothing"),
    "null": (b"null\n", "nothing"),
    "list": (b"- a\n- b\n", "contains"),
    "scalar": (b"epochs\n", "contains 'epochs'"),
    "number": (b"3\n", "contains 3"),
    "two documents": (b"a: 1\n---\nb: 2\n", "YAML"),
    "no task": (b"epochs: 3\n", "task"),
    "task is a list": (b"task: [classify]\n", "task"),
    "unknown task": (b"task: sing\n", "'sing'"),
    "fields missing": (b"task: classify\n", "name"),
    "unknown field": (b"task: classify\nspeed: 1\n", "'speed'"),
    "key that is a number": (b"task: classify\n1: 1\n", "1"),
    "key that is a list": (b"? [a]\n: 1\n", "unhashable"),
    "key twice": (b"task: classify\nepochs: 3\nepochs: 4\n", "'epochs' is there twice"),
    "key of a group twice": (b"optim:\n  lr: 1.0\n  lr: 2.0\n", "'lr' is there twice"),
    "aliases that expand": (LAUGHS.encode(), "alias"),
    "alias of itself": (b"a: &a\n  b: *a\n", "alias"),
    "merged mapping": (b"a: &a {lr: 1.0}\nb:\n  <<: *a\n", "alias"),
    "nested lists": (b"a: " + b"[" * 50_000, "levels"),
    "nested mappings": (b"a: " + b"{a: " * 50_000, "levels"),
    "nested by indentation": (b"".join(b" " * i + b"a:\n" for i in range(500)), "levels"),
    "huge": (b"about: " + b"x" * MAX_BYTES, "bytes"),
    "not UTF-8": (b"about: caf\xe9\n", "UTF-8"),
    "UTF-16": ("epochs: 3\n".encode("utf-16"), "UTF-8"),
    "binary": (bytes(range(256)) * 20, "UTF-8"),
    "zeros": (bytes(4096), "YAML"),
    "tab": (b"optim:\n\tlr: 1\n", "line 2"),
    "colon": (b"a: b: c\n", "line 1"),
    "open quote": (b"name: 'abc\nepochs: 3\n", "YAML"),
    "object": (b"a: !!python/object/apply:os.system [ls]\n", "tag"),
    "tag": (b"a: !!binary aGVsbG8=\n", "tag"),
    "unknown tag": (b"a: !thing 3\n", "tag"),
    "impossible date": (b"a: 2026-13-41\n", "line 1"),
    "integer of 5,000 digits": (b"a: " + b"9" * 5000, "digits"),
    "equals sign": (b"a: =\n", "YAML"),
    "directive": (b"%YAML 9.9\n---\na: 1\n", "YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_another_structure(name: str, tmp_path: Path) -> None:
    content, expected = STRUCTURES[name]
    (tmp_path / "recipe.yaml").write_bytes(content)
    refused(tmp_path / "recipe.yaml", expected)


WRONG: dict[str, Callable[[str], str]] = {
    "group is a number": lambda text: re.sub(r"optim:\n(  .*\n)+", "optim: 3\n", text),
    "group is a list": lambda text: re.sub(r"input:\n(  .*\n)+", "input: [1, 2]\n", text),
    "group is null": lambda text: re.sub(r"engine:\n(  .*\n)+", "engine:\n", text),
    "group is missing": lambda text: re.sub(r"engine:\n(  .*\n)+", "", text),
    "field is missing": lambda text: text.replace("  weight_decay: 0.05\n", ""),
    "number is text": lambda text: text.replace("epochs: 300", "epochs: many"),
    "number of YAML 1.2": lambda text: text.replace("min_lr: 1.0e-06", "min_lr: 1e-6"),
    "number is a date": lambda text: text.replace("epochs: 300", "epochs: 2026-01-01"),
    "number is a list": lambda text: text.replace("epochs: 300", "epochs: [300]"),
    "number is not finite": lambda text: text.replace("weight_decay: 0.05", "weight_decay: .nan"),
    "boolean": lambda text: text.replace("epochs: 300", "epochs: yes"),
    "text is a number": lambda text: text.replace("model: smt_tiny", "model: 12"),
    "list is text": lambda text: text.replace("milestones: []", "milestones: none"),
    "list is too long": lambda text: text.replace("  - 0.999\n", "  - 0.999\n  - 0.5\n"),
    "arguments are a list": lambda text: re.sub(r"model_args:\n(  .*\n)+", "model_args: [1]\n", text),
    "out of range": lambda text: text.replace("epochs: 300", "epochs: 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value(name: str, file: Path) -> None:
    text = file.read_text()[: file.read_text().index("# sha256")]
    changed = WRONG[name](text)
    assert changed != text
    file.write_text(changed)
    refused(file, "expected")


# Commands


@pytest.mark.parametrize("name", ["list", "aliases that expand", "nested lists", "not UTF-8", "key twice", "object"])
def test_config_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(STRUCTURES[name][0])
    with pytest.raises(SystemExit) as stopped:
        main(["train", "quickstart", "--config", str(path), "--run", str(tmp_path / "run")])
    assert stopped.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"smt train: error: --config {path}: ")
    assert hint == "see smt train --help"
    assert not (tmp_path / "run").exists()


def test_config_file_may_have_few_fields(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 2\noptim:\n  lr: 0.001\n")
    assert read_yaml(tmp_path / "my.yaml") == {"epochs": 2, "optim": {"lr": 0.001}}


def test_resume_of_a_half_recipe(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(file.read_bytes()[:600])
    for word in (["--resume", str(file.parent)], [f"--resume={file.parent}"]):
        assert main(["train", *word]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"smt train: error: {file}: ")
        assert len(error.splitlines()) == 1
