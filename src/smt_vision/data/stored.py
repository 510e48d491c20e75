"""What Pillow changes in the stored values of an image."""

import re
from typing import Any

from PIL import Image


def stored_scale(image: Image.Image) -> float:
    """The factor by which Pillow multiplies the stored values of an image that is not loaded yet.

    It is not 1 where they have another number of bits than 8, 16 or 32, or another maximum; and less than 1 where
    several channels of 16 bits are reduced to 8.
    """
    tiles = getattr(image, "tile", [])
    if not tiles or image.mode == "1":
        return 1.0
    decoder, _, _, args = tiles[0]
    raw_mode, *more = args if isinstance(args, tuple) else (args,)
    if decoder in ("ppm", "ppm_plain"):
        return (65535 if image.mode == "I" else 255) / more[0]
    if decoder == "jpeg2k":
        bits = _jpeg2000_bits(image)
        return 2.0 ** ((8 if bits <= 8 else 16) - bits)
    if not isinstance(raw_mode, str) or image.mode.startswith("I"):
        return 1.0
    if image.mode == "L":
        return {"L;2": 85.0, "L;4": 17.0}.get(raw_mode[:3], 1.0)
    return 1 / 256 if re.fullmatch("[A-Z]+;16[BLN]", raw_mode) else 1.0


def _jpeg2000_bits(image: Any) -> int:
    """Bits of the first channel of an open JPEG 2000 file."""
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return (data[data.index(b"\xff\x4f\xff\x51") + 42] & 0x7F) + 1  # Ssiz in the marker segment SIZ
