"""glibc's allocator, set to keep large allocations instead of requesting zeroed pages from the kernel each time."""

import ctypes
import platform

# Option numbers of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MIB = 1 << 20


def keep_big_blocks() -> bool:
    """Serve every allocation from the heap and never trim it; returns whether glibc accepted the options.

    By default a tensor above 128 KiB or so may get its own memory mapping, whose pages the kernel zeroes at first
    touch: a network on a CPU then spends a good part of its time in page faults. The price is memory that stays with
    the process until it ends. Does nothing with any other C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2047 * MIB), (M_TOP_PAD, 64 * MIB))
    return all(libc.mallopt(name, value) == 1 for name, value in options)
