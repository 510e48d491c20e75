"""Text on the terminal."""

from typing import Any

from rich.console import Console
from rich.text import Text

from ..text import printable


class PlainConsole(Console):
    """A console that prints strings, also those in tables, as they are: rich's markup and names of emoji mean nothing
    in them, and unprintable characters are escaped. Styled text is :class:`rich.text.Text`; see :func:`styled`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich; called for each string that is printed."""
        return super().render_str(printable(text), **options)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Printable text of several parts; of a pair, the second is the style, e.g. ``bold``."""
    return Text.assemble(*(printable(p) if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts))
