"""glibc's allocator, configured to keep large allocations instead of requesting zeroed pages from the kernel again."""

import ctypes
import platform

# Names and numbers of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MIB = 1 << 20


def keep_large_allocations() -> bool:
    """Serve every block from the heap, and do not trim it; returns whether glibc took it.

    By default each tensor above 128 KiB or so may be a mapping of its own, whose pages the kernel zeroes at first
    touch: a network on a CPU then spends a good part of its time in page faults. Costs memory that is kept for the
    process's life. Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2047 * MIB), (M_TOP_PAD, 64 * MIB))
    return all(libc.mallopt(name, value) == 1 for name, value in options)
