"""How the process asks the system for memory; to be settled before PyTorch is imported."""

import ctypes
import os
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def return_large_tensors():
    """On Linux, give the memory of large tensors back as soon as they are freed, and take it in large pages.

    glibc would keep freed activations of up to 32 MB, between which the next ones do not fit: on the CPU a tenth of
    the memory of a training step at batch 48. Large pages make up for the time that it takes to ask anew.
    """
    if sys.platform == "linux":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's switch for transparent huge pages
        with suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, 8 * 2**20)
            libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
