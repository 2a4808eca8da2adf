"""How the C library keeps memory between tensors."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells glibc to keep what tensors free instead of giving it back to the kernel, and not to map large blocks one by one.

    On a CPU every large activation is otherwise a fresh mapping whose pages fault in one by one: half the time of a forward pass of
    a small backbone. Has no effect where the C library is another one.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)
