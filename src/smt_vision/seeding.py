"""One hash from which every seed of a run is derived."""

import hashlib


def stable_hash(*parts: int | str) -> int:
    """A 64-bit hash of integers and strings, the same in every process, Python version and operating system.

    Python's own ``hash`` promises none of this.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
