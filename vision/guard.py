"""A guard over process groups: none of them outlives this process, however it ends (`docs/decisions/0007`)."""

from __future__ import annotations

import subprocess
import sys

# Reads "+GROUP" and "-GROUP" lines; at the end of its input it kills every group that was not taken back.
_PROGRAM = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Guard:
    """A process that waits at the other end of a pipe, which closes when this process is gone."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)  # noqa: S603

    def add(self, group: int) -> None:
        """Kill this group if it is still there in the end."""
        self._tell(f"+{group}")

    def remove(self, group: int) -> None:
        """It has ended: its number may belong to others from now on."""
        self._tell(f"-{group}")

    def close(self) -> None:
        """Kill the groups that are left, and end."""
        self.process.communicate()

    def _tell(self, line: str) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(f"{line}\n".encode())
