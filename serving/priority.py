"""Threads that compute step back behind the one that answers."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

# On Linux 5 steps make a thread's share of a contested core a third of the others': enough for the event loop to get it
# as soon as it wants it, which is for a fraction of a ms at a time.
_STEPS = 5


def workers(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool for work that takes all cores it can get.

    Where its threads and the event loop want the same core, the loop goes first: a frame that is refused has to know at
    once, above all when there is too much to do. Threads that its own threads start, such as an engine's, inherit that.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_step_back)


def _step_back() -> None:
    if not hasattr(os, "setpriority"):  # not on Windows
        return
    own = threading.get_native_id()  # Linux takes threads here; elsewhere this names no process, and nothing happens
    try:
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _STEPS)
    except OSError:
        return
