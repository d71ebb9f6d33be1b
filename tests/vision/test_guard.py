"""That nothing is left of a process that is killed, at whatever instant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PARENT = """
import os, signal, sys, time
from vision.guard import Guard

guard = Guard()
if sys.argv[1] == "before the guard knows":
    guard.add = lambda group: os.kill(os.getpid(), signal.SIGKILL)
child = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
guard.start([sys.executable, "-c", child, sys.argv[2]])
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", ["before the guard knows", "later"])
def test_a_killed_parent_leaves_no_child(tmp_path: Path, killed: str) -> None:
    began = tmp_path / "began"
    command = [sys.executable, "-c", _PARENT, killed, str(began)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as parent:
        # A pipe that the child has inherited ends when the last of them has.
        _, said = parent.communicate(timeout=30)
    assert not said
    assert began.exists() == (killed == "later")
