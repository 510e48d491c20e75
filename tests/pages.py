"""The pages of the documentation, their code blocks, and the files that a reader of them has."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
LIBRARIES = REPO / "docs" / "guides" / "libraries.md"  # its blocks need other libraries: see test_libraries.py
PAGES = [*map(REPO.joinpath, ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted((REPO / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, the line it begins on, and why it is not run, if so."""

    language: str
    code: str
    line: int
    reason: str | None


def page_name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def page_blocks(page: Path) -> list[Block]:
    """The Python and bash blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["code"], text.count("\n", 0, m.start("code")) + 1, m["reason"])
        for m in BLOCK.finditer(text)
        if m["language"] in ("python", "bash")
    ]


def write_photos(folder: Path) -> None:
    """Write ``MY_IMAGES`` and ``MY_TEST_IMAGES`` (three class folders), ``PHOTOS`` and ``PHOTO.jpg``.

    One of four test images of a class looks like another class.
    """
    pixels = np.random.default_rng(0)

    def photo(path: Path, colour: tuple[int, int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = pixels.integers(-40, 40, (40, 48, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)

    colours = {"daisy": (230, 230, 210), "rose": (190, 30, 60), "tulip": (230, 170, 40)}
    for flower, colour in colours.items():
        for i in range(10):
            photo(folder / "MY_IMAGES" / flower / f"{i}.jpg", colour)
        photo(folder / "PHOTOS" / f"{flower}.jpg", colour)
    photo(folder / "PHOTO.jpg", colours["rose"])
    for flower, other in zip(colours, ("rose", "tulip", "daisy"), strict=True):
        for i in range(4):
            photo(folder / "MY_TEST_IMAGES" / flower / f"{i}.jpg", colours[flower if i else other])
