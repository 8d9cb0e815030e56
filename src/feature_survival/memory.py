"""How the process holds the host's memory."""

from __future__ import annotations

import ctypes


def keep_memory() -> None:
    """Have the C library keep up to 2 GB of freed memory for the next tensors, where it is glibc.

    By itself it returns every large tensor to the system and fetches, page by page, the next: a third of the CPU time
    of stages whose tensors are tens of megabytes. Numbers do not depend on it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
