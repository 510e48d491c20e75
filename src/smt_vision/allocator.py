"""glibc's allocator, configured to keep large allocations instead of requesting zeroed pages from the kernel again."""

import ctypes
import platform

# Parameters of mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MIB = 1 << 20


def keep_large_allocations() -> bool:
    """Serve all allocations from the heap and never trim it; returns whether glibc accepted the settings.

    By default glibc may map each tensor above about 128 KiB separately, and the kernel zeroes its pages on first
    access, so that a network on a CPU spends a good part of its time in page faults. The cost is memory, which is kept
    until the process ends. Has no effect with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2047 * MIB), (M_TOP_PAD, 64 * MIB))
    return all(libc.mallopt(name, value) == 1 for name, value in options)


def release_free_memory() -> bool:
    """Return free memory of the heap to the kernel; returns whether glibc did. No effect with other C libraries."""
    return platform.libc_ver()[0] == "glibc" and ctypes.CDLL(None).malloc_trim(0) == 1
