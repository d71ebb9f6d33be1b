"""Child processes that never outlive their parent, however it ends.

Each child leads a session and process group of its own, so that whatever it starts is stopped with it. Ctrl-C, SIGTERM
and SIGHUP end the groups in an orderly way. If the parent is killed outright, a pipe closes, and a guard process at its
other end kills the groups. (Linux could send a signal on the parent's death, but only to the children themselves and
not to what they started.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from vision.errors import DefectLensError
from vision.guard import Guard

GRACE_S = 10.0
"""How long a group may take to end by itself before it is killed."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.05

Process = subprocess.Popen[bytes]


class Children:
    """A context in which child processes are started; when it is left, none of them is there any more.

    For the main thread only, because signals are handled there.
    """

    def __init__(self) -> None:
        self._running: list[Process] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._shielded = False
        self._pending: int | None = None

    def __enter__(self) -> Children:
        self._guard = Guard()
        self._handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._shielded = True  # an impatient second Ctrl-C must not leave the work half done; the grace period is short
        for process in list(self._running):
            self.stop(process)
        self._guard.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, command: Sequence[str | Path], *, stdout: IO[bytes], stderr: IO[bytes] | None = None) -> Process:
        """Start a command without input. ``stderr`` None means that of this process."""
        with self._shield():
            words = [str(word) for word in command]
            process = self._guard.start(words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
            self._running.append(process)
        return process

    def run(self, command: Sequence[str | Path]) -> str:
        """Run a command to its end and return what it wrote on stdout.

        Raises:
            DefectLensError: it failed; its own messages are on stderr.
        """
        with tempfile.TemporaryFile() as output:
            process = self.start(command, stdout=output)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            code = self.stop(process)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if code != 0:
            raise DefectLensError(
                f"`{' '.join(map(str, command))}` ended with exit code {code}; see its messages above"
            )
        return text

    def stop(self, process: Process) -> int:
        """SIGTERM, then SIGKILL after the grace period, to a child and all of its group; the child's exit code."""
        end = time.monotonic() + GRACE_S
        if not has_ended(process):
            _signal_group(process, signal.SIGTERM)
        while not has_ended(process) and time.monotonic() < end:
            time.sleep(_POLL_S)
        with self._shield():
            # The child is not reaped yet, so that its group's number cannot belong to anybody else.
            _signal_group(process, signal.SIGKILL)
            code = process.wait()
            self._running.remove(process)
            self._guard.remove(process.pid)
        return code

    @contextlib.contextmanager
    def _shield(self) -> Iterator[None]:
        """Hold signals back: between a child's start (or end) and its entry in our books nobody knows of it."""
        outer, self._shielded = self._shielded, True
        try:
            yield
        finally:
            self._shielded = outer
            if self._pending is not None:
                self._on_signal(self._pending, None)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._pending = number
        if self._shielded:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)  # what a shell reports for a process that a signal ended


def has_ended(process: Process) -> bool:
    """Whether a child has ended; unlike ``poll``, this leaves it to be reaped."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_group(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: a group of nothing but an ended child
        os.killpg(process.pid, number)
