"""Text from files, shown: names of files, folders and classes, and messages that contain them.

Data stay as they are: a name with a line break is the same name in a checkpoint, in JSON and in CSV. Where text is
written for people, one of these functions makes its characters harmless: :func:`printable` for terminals, logs and
pictures, :func:`markdown` and :func:`code` for Markdown, :func:`shell_word` for commands.
"""

import logging
import re
import shlex
import unicodedata

# Control and format characters (escape sequences, line breaks, directions of writing, zero width), lone surrogates,
# line and paragraph separators.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# What Markdown, HTML and GitHub give a meaning to, also by turning addresses into links. An underscore within a word
# has none.
_MEANINGFUL = re.compile(r"[\\`*\[\]|&<>~$@]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=//)", re.IGNORECASE)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already, e.g. a bold cell of a table; a cell of any other type is escaped."""


def printable(text: object, *, multiline: bool = False) -> str:
    r"""Text in one line, with each unprintable character as an escape sequence of Python.

    These are control characters, e.g. ``\n`` and ``\x1b``, characters that change the direction of writing or have no
    width, e.g. ``\u202e``, and bytes of a file name that are not UTF-8, e.g. ``\xff``. A backslash stays as it is, so
    the result is for people to read, not to be converted back.

    Args:
        text: Text, or an object, of which ``str`` is taken.
        multiline: Keep line breaks, and indent the lines after the first: none looks like a line of the program.
    """
    text = str(text)
    if text.isprintable():
        return text
    if multiline:
        return "\n  ".join(map(printable, text.split("\n")))
    return "".join(_escape(char) if unicodedata.category(char) in _UNPRINTABLE else char for char in text)


def _escape(char: str) -> str:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return char.encode("unicode_escape").decode("ascii")
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def markdown(text: object) -> str:
    """Printable text as Markdown that shows exactly this text: no markup, HTML, picture, link or cell of a table."""
    return _MEANINGFUL.sub(_in_markdown, printable(text))


def _in_markdown(match: re.Match[str]) -> str:
    char = match[0]
    return f"\\{char}" if char in "`*_[]|" else _ENTITIES.get(char, f"&#{ord(char)};")


def code(text: object) -> Markdown:
    """Printable text as a code span of Markdown."""
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if len(fence) > 1 or not shown.strip() else ""
    return Markdown(f"{fence}{pad}{shown}{pad}{fence}")


def shell_word(text: object) -> str:
    r"""A word of a command line in one printable line, which means exactly this text to bash and zsh.

    Text with unprintable characters is written with their escape sequences, e.g. ``$'a\x0ab'``.
    """
    word = str(text)
    if printable(word) == word:
        return shlex.quote(word)
    return f"$'{''.join(map(_in_quotes, word))}'"


def _in_quotes(char: str) -> str:
    if unicodedata.category(char) in _UNPRINTABLE:
        return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
    return f"\\{char}" if char in "\\'" else char


def get_logger(name: str) -> logging.Logger:
    """A logger whose messages are printable and of one line; the arguments of a record become part of its message."""
    logger = logging.getLogger(name)
    logger.addFilter(_make_printable)
    return logger


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True
