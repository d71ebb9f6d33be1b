"""The process's memory: how it is taken, kept and given back. Of glibc where that is there, else nothing happens."""

from __future__ import annotations

import ctypes
import gc

# From malloc.h.
_M_ARENA_MAX = -8
# By default every thread may get a heap of its own, and a model that comes and goes leaves holes in all of them: 15 MB
# more after 200 take-overs. With two there is nothing to be seen of that, nor of threads that wait for each other.
_ARENAS = 2


def use_few_heaps() -> None:
    """To be called before threads are started."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """What a model that has gone leaves free: the next one rarely fits into its holes, and without this every take-over
    costs some MB for good (docs/experiments.md).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def settle() -> None:
    """What is here now stays, says the one who calls this. Otherwise every full collection of Python's looks at all of
    it, and the event loop stands still for 30 ms.
    """
    gc.collect()
    gc.freeze()
