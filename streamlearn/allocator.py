"""Gives memory back that the C library's allocator keeps after use. Linux with glibc; elsewhere it does nothing.

A batch of frames, an evaluation, an era that is swapped in are large and short-lived. glibc raises the size from
which it asks the kernel for each block to 32 MiB as such blocks are freed, puts the rest into heaps, one for every
few threads, and returns only the upper end of a heap. Measured in docs/log.md.
"""

from __future__ import annotations

import ctypes
import platform

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE_BYTES = 1 << 20


def tune() -> None:
    """Blocks of 1 MiB and more live and die alone, and threads share two heaps. Call it once, at start."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_ARENA_MAX, 2)


def trim() -> None:
    """Return every page that holds nothing; some milliseconds."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
