"""The architecture: imports point one way, and tasks do not know each other."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smt_vision.tasks import TASKS

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "smt_vision"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top down: a unit (a folder or a file of the package) imports itself and what stands on a lower line.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"embedding"},
    {"study", "analysis"},
    {"benchmark"},
    {"__init__"},
    {"api"},
    {"engine", "inspection"},
    {"recipe_files"},
    {"tasks"},
    {"deploy", "cost", "convert"},
    {"data", "pictures", "registry"},
    {"forms", "baselines"},
    {"model", "kernels"},
    {"checkpoints"},
    {"lora"},
    {"spec", "legacy", "files", "tensor_files", "yaml_files", "pages"},
    {
        "recipe",
        "seeding",
        "modes",
        "hardware",
        "precision",
        "allocator",
        "extras",
        "signals",
        "_interrupt",
        "_registration",
        "_version",
    },
    {"bounds", "text"},
)
LEVEL = {unit: len(LAYERS) - i for i, units in enumerate(LAYERS) for unit in units}


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports, inside functions too."""
    package = ("smt_vision", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            if module in ("smt_vision", "smt_vision.tasks"):  # its names are units, or what its __init__ offers
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def _imported_units(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in _imports(path):
        root, *rest = name.split(".")
        if root == "smt_vision":
            yield line, rest[0] if rest and rest[0] in LEVEL else "__init__"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_down(path: Path) -> None:
    unit = _unit(path)
    assert unit in LEVEL, f"{unit} has no layer: add it to LAYERS and to docs/architecture.md"
    if unit == "__init__":
        return  # the public API, whose lazy imports reach all layers below the command line
    wrong = [
        f"{_name(path)}:{line} imports {other}"
        for line, other in _imported_units(path)
        if other != unit and LEVEL[other] >= LEVEL[unit] and (_name(path), other) != ("cli/__init__.py", "__init__")
    ]
    assert not wrong, f"{unit} may import lower layers only: {'; '.join(wrong)}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=_name)
def test_model_imports_torch_and_timm_only(path: Path) -> None:
    allowed = {"torch", "timm", *sys.stdlib_module_names}
    found = [
        (line, name)
        for line, name in _imports(path)
        if name.split(".")[0] not in allowed and not name.startswith("smt_vision.model")
    ]
    assert not found, f"{_name(path)} imports {', '.join(f'{name} (line {line})' for line, name in found)}"


@pytest.mark.parametrize("folder", TASKS.values())
def test_tasks_do_not_import_each_other(folder: str) -> None:
    # Pretraining trains the networks of classifiers, on their datasets.
    allowed = {folder, "classification"} if folder == "pretraining" else {folder}
    others = tuple(f"smt_vision.tasks.{other}" for other in TASKS.values() if other not in allowed)
    wrong = [
        f"{_name(path)}:{line} imports {name}"
        for path in sorted((PACKAGE / "tasks" / folder).rglob("*.py"))
        for line, name in _imports(path)
        if name.startswith(others)
    ]
    assert not wrong, "; ".join(wrong)


def test_imports_inside_functions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    file = tmp_path / "engine" / "x.py"
    file.parent.mkdir()
    file.write_text(
        "import smt_vision\nfrom .. import cli, recipe\nfrom . import y\n"
        "def late():\n    from ..data.decode import decode\n    from smt_vision.model import SMT\n"
    )
    assert list(_imported_units(file)) == [
        (1, "__init__"), (2, "cli"), (2, "recipe"), (3, "engine"), (5, "data"), (6, "model")
    ]  # fmt: skip
