"""Text and XML annotation files in the encodings in which tools write them."""

import codecs
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

_ENCODING = re.compile(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)["']""")


def read_text(path: Path) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark, as Windows' shell writes it; names are composed Unicode.

    Raises:
        ValueError: It is neither.
    """
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        ElementTree.ParseError, ValueError, LookupError: It is not XML, has a document type, or an unknown encoding.
    """
    parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314  the builder refuses what is dangerous in XML
    root: ElementTree.Element = ElementTree.fromstring(_decode(data), parser)  # noqa: S314
    return root


class _Builder(ElementTree.TreeBuilder):
    """Refuses document types: they can define entities that expand to gigabytes, and no annotation tool writes any."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE; remove it")


def _decode(data: bytes) -> str | bytes:
    """XML as text if it declares its encoding: the parser does not know encodings of several bytes such as GB2312."""
    declared = _ENCODING.match(data)
    if not declared:
        return data
    encoding = declared[1].decode()
    # A declaration that is readable as ASCII is not in UTF-16, whatever it says; .NET writes such files in UTF-8.
    return data.decode("utf-8" if encoding.lower().startswith("utf-16") else encoding)
