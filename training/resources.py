"""How much memory a process has needed so far: asked of the system, so that every library's share is in it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_mib() -> float:
    """The most memory this process had resident, in MiB.

    Linux tells it in ``/proc``; ``ru_maxrss``, which is read elsewhere, begins with that of the process it came from.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
