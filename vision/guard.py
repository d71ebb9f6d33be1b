"""A guard over process groups: none of them outlives this process, however it ends (`docs/decisions/0007`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

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

# Becomes the command at a word from the parent, which gives it once the guard knows of this process. A parent that is
# killed in between gives none: its end of the pipe closes.
_GATE = """
import os, sys
gate = int(sys.argv[1])
allowed = os.read(gate, 1)
os.close(gate)
if allowed:
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Guard:
    """A process that waits at the other end of a pipe, which closes when this process is gone."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)  # noqa: S603

    def start(self, command: Sequence[str], *, pass_fds: Sequence[int] = (), **options: Any) -> subprocess.Popen[Any]:
        """Start a command as the leader of a group, which this guards from before its first step on.

        Args:
            options: of ``subprocess.Popen``.

        Raises:
            FileNotFoundError: there is no such program.
        """
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(f"there is no program {command[0]}")
        gate, word = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", "-c", _GATE, str(gate), *command],
                pass_fds=(*pass_fds, gate),
                start_new_session=True,
                **options,
            )
            self.add(process.pid)
            with contextlib.suppress(BrokenPipeError):  # it has ended already: whoever waits for it will see
                os.write(word, b".")
        finally:
            os.close(gate)
            os.close(word)
        return process

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
