"""No child outlives its parent. The parent here is a small program around the very class that the demo uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training.processes import Children, has_ended
from vision.errors import DefectLensError

ROOT = Path(__file__).parents[2]

# A child with a child of its own; both say that they are there. ``{ignore}``: whether they ignore polite requests.
FAMILY = """
import os, signal, sys, time
if {ignore}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pid = os.fork()
open(f"{folder}/{{os.getpid()}}", "w").close()
time.sleep(120)
"""
PARENT = """
import sys
import training.processes as processes
processes.GRACE_S = 0.5
with processes.Children() as children:
    if {background}:
        children.start([sys.executable, "-c", {family!r}], stdout=sys.stdout.buffer)
    children.run([sys.executable, "-c", {family!r}])
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def members(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


@pytest.fixture
def parent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A parent with a child in the background and one it waits for, each with a child of its own."""
    ignore = getattr(request, "param", False)
    family = FAMILY.format(folder=tmp_path, ignore=ignore)
    code = PARENT.format(family=family, background=True)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    try:
        wait_for(lambda: len(members(tmp_path)) == 4)
        yield process, tmp_path
    finally:
        process.kill()
        process.wait()
        for pid in members(tmp_path):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.parametrize("parent", [False, True], indirect=True, ids=["polite", "stubborn"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_is_left(parent: tuple[subprocess.Popen[bytes], Path], number: signal.Signals) -> None:
    process, folder = parent
    os.kill(process.pid, number)
    code = process.wait(timeout=20)
    assert (
        code
        == {
            signal.SIGINT: -signal.SIGINT,
            signal.SIGTERM: 128 + signal.SIGTERM,
            signal.SIGHUP: 128 + signal.SIGHUP,
            signal.SIGKILL: -signal.SIGKILL,
        }[number]
    )
    wait_for(lambda: not any(map(is_alive, members(folder))))


def test_ctrl_c_at_a_terminal(parent: tuple[subprocess.Popen[bytes], Path]) -> None:
    """The whole foreground group gets it, twice where the person is impatient."""
    process, folder = parent
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.1)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=20)
    wait_for(lambda: not any(map(is_alive, members(folder))))


def test_the_guard_ends_with_its_parent(tmp_path: Path) -> None:
    with Children() as children:
        guard = children._guard.process
        assert guard.poll() is None
    assert guard.returncode == 0


def test_output_and_failure() -> None:
    with Children() as children:
        assert children.run([sys.executable, "-c", "print('figures')"]) == "figures\n"
        with pytest.raises(DefectLensError, match="ended with exit code 3"):
            children.run([sys.executable, "-c", "raise SystemExit(3)"])
        with pytest.raises(FileNotFoundError):
            children.run(["/no/such/program"])


def test_what_a_finished_child_started_is_ended(tmp_path: Path) -> None:
    leave = f"import os, time\nif not os.fork():\n    open('{tmp_path}/' + str(os.getpid()), 'w')\n    time.sleep(60)\n"
    wait = f"import os, time\nwhile not os.listdir('{tmp_path}'):\n    time.sleep(0.01)\nos._exit(0)"
    with Children() as children:
        children.run([sys.executable, "-W", "ignore", "-c", leave + wait])
        wait_for(lambda: not any(map(is_alive, members(tmp_path))))


def test_a_stopped_child_reports_its_own_exit_code(tmp_path: Path) -> None:
    code = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""
    with Children() as children, (tmp_path / "log").open("wb") as log:
        process = children.start([sys.executable, "-c", code], stdout=log)
        wait_for((tmp_path / "ready").exists)
        assert not has_ended(process)
        assert children.stop(process) == 7


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Children():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
