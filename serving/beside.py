"""The inspector's page beside the server: a process of its own, started again when it falls over.

The server only holds the page's listening socket and reads what the page says; nothing that becomes of the page reaches
an inspection. Whatever ends the server ends the page too (``vision.guard``).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from serving.logs import Event
from vision.errors import SettingsError
from vision.guard import Guard

_log = logging.getLogger(__name__)
# Decoding frames for people must not take a core from inspection: the page gets what is left.
_NICE = 10
_GRACE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# Of a page that came up and worked: its next fall is a new one.
_STEADY_S = 60.0


@dataclass(frozen=True, slots=True)
class PageOptions:
    """Where ``serve --inspector`` puts the page. Whatever else it knows comes from ``DEFECTLENS_INSPECTOR_*``."""

    host: str = "127.0.0.1"
    port: int = 8080


class PageBeside:
    """The page's process, from ``start`` to ``stop``.

    Raises:
        SettingsError: what the page needs is not installed, or the port is taken.
    """

    def __init__(self, options: PageOptions) -> None:
        from serving.inspector.needs import need_packages

        need_packages()
        self._host = options.host
        self._listening = listen(options.host, options.port, option="--inspector-port")
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        port: int = self._listening.getsockname()[1]
        return port

    def start(self, audit: str, files: Path | None, server: str, admin: str | None) -> None:
        """Start it over the server's own store; returns at once."""
        known = {"DB": audit, "SERVER": server, "ADMIN": admin or "", "HOST": self._host, "PORT": str(self.port)}
        if files is not None:
            known["AUDIT_FILES"] = str(files)
        # Not on the command line: the address of a database may hold its password, which everybody could read there.
        environment = {f"DEFECTLENS_INSPECTOR_{name}": value for name, value in known.items()}
        self._thread = threading.Thread(target=self._keep_up, args=(environment,), name="page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; a page that does not go is killed."""
        with self._lock:
            self._stopping.set()
            process = self._process
            if process is not None:
                process.send_signal(signal.SIGTERM)
        if process is not None:
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread is not None:
            self._thread.join()
        self._listening.close()

    def _keep_up(self, environment: dict[str, str]) -> None:
        guard, pause_s = Guard(), _FIRST_PAUSE_S
        try:
            while not self._stopping.is_set():
                ran_s, code = self._run(environment, guard)
                if self._stopping.is_set():
                    return
                pause_s = _FIRST_PAUSE_S if ran_s > _STEADY_S else pause_s
                _log.error(Event("inspector_ended", exit_code=code, again_in_s=pause_s))
                self._stopping.wait(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
        finally:
            guard.close()

    def _run(self, environment: dict[str, str], guard: Guard) -> tuple[float, int]:
        """Once, to its end: how long it ran, and its exit code."""

        began, number = time.monotonic(), self._listening.fileno()
        with self._lock:
            if self._stopping.is_set():
                return 0.0, 0
            # In a session of its own: Ctrl-C is the server's, which ends the page when it is done.
            process = self._process = guard.start(
                [sys.executable, "-m", "defectlens", "inspector", "--listen-on", str(number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=os.environ | environment,
                pass_fds=(number,),
            )
        os.setpriority(os.PRIO_PROCESS, process.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + _NICE))
        _log.info(Event("inspector", pid=process.pid, port=self.port))
        for line in process.stderr or ():
            _log.info(Event("inspector_says", message=line.rstrip()))
        code = process.wait()
        guard.remove(process.pid)
        return time.monotonic() - began, code


def listen(host: str, port: int, *, option: str = "--port") -> socket.socket:
    """A socket for the page; port 0 takes a free one.

    Raises:
        SettingsError: somebody else is there, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}; choose another {option}") from error
    return listening
