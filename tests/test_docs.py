"""The documentation runs: README.md and docs/, block by block, as a reader would.

The guide to other libraries has its own file, test_libraries.py.

The blocks of a page run in order in one folder. Python blocks share a namespace; bash blocks have ``smt`` on the PATH.
``<!-- not run: REASON -->`` just before a block keeps it from running; its ``smt`` commands must still parse.

In the folder lies what a page takes for granted: ``MY_IMAGES`` (three class folders), ``PHOTO.jpg``, ``PHOTOS``, small
sets instead of ``bccd``, ``nuclei`` and ``camvid``, and
``smt_tiny.pth``, a file of the release's form with random weights, which also stands in for the download of it.
"""

import importlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from drawn_sets import write_scenes, write_shapes
from pages import LIBRARIES, PAGES, REPO, page_blocks, page_name, write_photos
from smt_server import server
from smt_vision.cli import COMMANDS
from smt_vision.cost import describe
from smt_vision.registry import VARIANTS
from waiting import DEADLINE

GUIDES = (
    "analysis", "backbone", "benchmark", "detection", "evaluation", "export", "finetune", "labels", "libraries",
    "moving", "segmentation", "study", "training", "weights",
)  # fmt: skip


def _commands(code: str) -> Iterator[list[str]]:
    """The words after ``smt`` (or ``-m smt_vision``, ``-m -- smt_vision``) of each command in a bash block."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for i, word in enumerate(words):
            if (word == "smt" and i == 0) or (word == "smt_vision" and words[i - 1] in ("-m", "--")):
                rest = words[i + 1 :]
                ends = [k for k, w in enumerate(rest) if w in ("|", "&&", "&", ";") or w.startswith(">")]
                yield rest[: ends[0] if ends else None]


def _parse(words: list[str]) -> None:
    command, *rest = words
    assert command in COMMANDS, f"smt {command}: no such command"
    importlib.import_module(f"smt_vision.cli.{command}").build_parser(rest).parse_args(rest)


# --- what a reader has ---


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the PATH, with ``smt`` in it."""
    folder = tmp_path_factory.mktemp("bin")
    with server(folder / "smt", "smt", {**os.environ, **_threads()}):
        yield folder


def _threads() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def desk(tmp_path: Path, release_file: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a page's blocks run in, made the current one."""
    write_photos(tmp_path)
    for name in ("bccd", "nuclei"):
        write_shapes(tmp_path / name)
    write_scenes(tmp_path / "camvid")
    (tmp_path / "smt_tiny.pth").symlink_to(release_file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("TORCH_HOME", str(release_file.parents[2]))
    monkeypatch.setenv("SMT_CACHE_DIR", str(tmp_path / "cache"))
    for name, value in _threads().items():
        monkeypatch.setenv(name, value)
    return tmp_path


# --- the blocks ---


@pytest.mark.parametrize("page", [page for page in PAGES if page != LIBRARIES], ids=page_name)
def test_page_runs(page: Path, desk: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in page_blocks(page):
        where = f"{page_name(page)}:{block.line}"
        if block.reason:
            for words in _commands(block.code) if block.language == "bash" else ():
                _parse(words)
        elif block.language == "python":
            # Empty lines in front give a traceback the page's own line numbers.
            exec(compile("\n" * (block.line - 1) + block.code, where, "exec"), namespace)
        else:
            done = subprocess.run(
                ["bash", "-eu", "-c", block.code], capture_output=True, text=True, timeout=DEADLINE, cwd=desk
            )
            assert done.returncode == 0, f"{where} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            print(done.stdout)  # shown where a later block fails


def test_enough_of_it_runs() -> None:
    running = {page_name(page): sum(block.reason is None for block in page_blocks(page)) for page in PAGES}
    assert set(running) >= {"README.md", "docs/architecture.md", *(f"docs/guides/{guide}.md" for guide in GUIDES)}
    assert min(running["README.md"], *(running[f"docs/guides/{guide}.md"] for guide in GUIDES)) >= 4
    assert sum(running.values()) >= 36


def test_commands_are_one_a_line() -> None:
    """No line begins with an argument, as it would in commands filled like a paragraph."""
    lines = [
        f"{page_name(page)}:{block.line}: {line}"
        for page in PAGES
        for block in page_blocks(page)
        for line in block.code.splitlines()
        if block.language == "bash" and re.match(r"[A-Z_]{2,} ", line)
    ]
    assert not lines


def test_every_fence_is_a_block() -> None:
    for page in PAGES:
        opened = re.findall(r"^\s*```(?:python|bash)\b.*$", page.read_text(encoding="utf-8"), re.M)
        assert len(opened) == len(page_blocks(page)), f"{page_name(page)}: a block that the tests do not see"


# --- the rest of the page ---


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    dead = [link for link in local if not (page.parent / link).exists()]
    assert not dead, f"{page_name(page)} links to {', '.join(dead)}"
    assert not [link for link in local if link.startswith("/")]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(), re.M))
    assert {"demo", "test", "lint", "types", "clean", "help"} <= targets
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(encoding="utf-8"), re.M))
        assert named <= targets, f"{page_name(page)} names targets that the Makefile has not: {named - targets}"


def test_the_table_of_variants_is_what_smt_info_counts() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(smt_\w+)` \| ([^|]+ \| [^|]+) \|", text, re.M))
    assert list(rows) == list(VARIANTS)
    for name, numbers in rows.items():
        with torch.device("meta"):
            info = describe(timm.create_model(name))
        assert numbers.strip() == f"{info.parameters / 1e6:.2f} | {info.gmac:.2f}", name
