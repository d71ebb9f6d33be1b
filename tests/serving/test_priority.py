from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future

import pytest

from serving.priority import workers


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_workers_and_the_threads_they_start_go_after_the_event_loop() -> None:
    before = nice()
    inherited: Future[int] = Future()
    with workers(1, "test") as pool:
        assert pool.submit(nice).result() == min(19, before + 5)
        pool.submit(lambda: threading.Thread(target=lambda: inherited.set_result(nice())).start()).result()
        assert inherited.result(5) == min(19, before + 5)
    assert nice() == before
