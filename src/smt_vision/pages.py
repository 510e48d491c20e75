"""Pages of results: tables of Markdown, and self-contained HTML made of Markdown."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import markdown as python_markdown
from markdown.extensions.tables import TableExtension
from PIL import Image

from .text import Markdown, markdown, printable

STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;color:#1d2430;background:#fff;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;display:block;overflow-x:auto;margin:1rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid #e3e6ea;text-align:left}
th[align=right],td[align=right]{text-align:right;font-variant-numeric:tabular-nums}
th{border-bottom:2px solid #8a8f98}
h2{margin-top:2.5rem;border-bottom:1px solid #e3e6ea}
code,pre{font:13px ui-monospace,monospace;background:#f4f5f7;border-radius:4px;padding:.1rem .3rem}
pre{padding:.8rem;overflow-x:auto}
img{max-width:100%;height:auto}
"""
# Nothing is loaded and nothing is executed: a page has its pictures and its style in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PICTURE_SIZE = (1600, 3200)  # pixels; larger pictures are reduced
PICTURE_BYTES = 300_000  # larger pictures are written as JPEG
# The only tags of pictures: "<" in any text is an entity.
_PICTURE = re.compile(r'(<img alt="[^"]*" src=")([^"]+)"')


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> list[str]:
    """The lines of a Markdown table; columns that contain numbers are right-aligned, floats have two decimals, and text
    is escaped unless it is :class:`~smt_vision.text.Markdown`."""
    right = [any(not isinstance(cell, str) for cell in column) for column in zip(*rows, strict=True)]
    rules = ["---:" if r else "---" for r in right] or ["---"] * len(header)
    return [_row(header), f"|{'|'.join(rules)}|", *map(_row, rows)]


def _row(cells: Sequence[str | int | float]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: str | int | float) -> str:
    if isinstance(value, Markdown):
        return value.replace("|", "\\|")
    return f"{value:.2f}" if isinstance(value, float) else markdown(value)


def html_page(title: str, text: str, folder: Path) -> str:
    """A self-contained HTML page: the pictures are part of it, and its policy lets a browser load nothing else.

    Args:
        title: Title of the page, of any characters.
        text: Markdown in which names are escaped (see :mod:`smt_vision.text`). Large pictures are reduced.
        folder: The folder that the paths of the pictures are relative to.
    """
    tables = TableExtension(use_align_attribute=True)
    body = python_markdown.markdown(text, extensions=[tables, "fenced_code"])
    body = _PICTURE.sub(lambda match: f'{match[1]}{_picture_data(folder / match[2])}"', body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(printable(title))}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _picture_data(path: Path) -> str:
    """A picture as a ``data:`` URL."""
    content, kind = path.read_bytes(), path.suffix.lstrip(".")
    if kind == "svg":
        kind = "svg+xml"
    else:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            if image.width > PICTURE_SIZE[0] or image.height > PICTURE_SIZE[1] or len(content) > PICTURE_BYTES:
                small, buffer, kind = image.convert("RGB"), io.BytesIO(), "jpeg"
                small.thumbnail(PICTURE_SIZE)
                small.save(buffer, "JPEG", quality=85)
                content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
