"""How long each view of the inspector's page takes over a store with the history of a factory.

    python -m benchmarks.inspector_history --store DIR --records 1000000 --rounds 20

A new store is filled (ten minutes, 5 GB a million) so that its last two days end now; one that is there is used as it
is. Some drawn plates with real frames come last. The page runs in a process of its own and is asked over HTTP, as a
browser asks. One table of milliseconds, then one JSON line. Target: each view within 300 ms.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.audit_history import TARGET_MS, Clock, fill
from benchmarks.inspector import serve_page
from serving.audit import Account, Role, Store, account, add_account, change_account, search
from serving.inspector.passwords import hash_password
from tests.serving.inspector import plates
from tests.serving.inspector.conftest import PASSWORD

_NAME = "bench"
_A_SECOND = 12  # answers, as Clock has them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not options.store.exists():
        began_ns = int((time.time() - 2 * options.records / _A_SECOND - 900) * 1e9)
        with Store.open(options.store, create=True, clock_ns=Clock(began_ns)) as store:
            fill(store, options.records)
            store.tune()
    with Store.open(options.store, create=True) as store:
        if account(store, _NAME) is None:
            add_account(store, Account(_NAME, Role.ADMIN, hash_password(PASSWORD)), by="benchmark")
            plates.fill(store, 48)
        else:
            change_account(store, _NAME, by="benchmark", password=hash_password(PASSWORD))
        newest = search(store, limit=1).answers[0]
        middle = search(store, limit=1, before=newest.seq // 2).answers[0]
        views = _views(newest.seq, middle.lot, middle.part)
    page, url = serve_page(options.store)
    try:
        rows = {name: _time(url, address, options.rounds) for name, address in views.items()}
    finally:
        page.terminate()
        page.wait()
    print(f"{'view':<34} {'first':>8} {'p50':>8} {'p95':>8}")
    for name, (first, p50, p95) in rows.items():
        print(f"{name:<34} {first:8.1f} {p50:8.1f} {p95:8.1f}{'' if p95 <= TARGET_MS else '  over the target'}")
    figures = {name: {"first_ms": one[0], "p50_ms": one[1], "p95_ms": one[2]} for name, one in rows.items()}
    print(json.dumps({"records": newest.seq, "views": figures}))


def _views(newest: int, lot: str, part: str) -> dict[str, str]:
    history = {
        "newest": "",
        "page 2000": f"before={newest - 100_000}",
        "a lot": f"lot={lot}",
        "part begins": f"part={part[:7]}",
        "rejects of a camera": "camera=line1-right&verdict=REJECT",
        "class of a camera": "camera=line1-right&class=uneven",
        "overkill": "disagreement=overkill",
        "overkill of a camera": "disagreement=overkill&camera=line1-right",
        "escapes": "disagreement=escape",
        "any disagreement": "disagreement=any",
        "agreed": "disagreement=agrees",
        "good by eva": "person=eva&said=good",
        "old version": "model=magnetic&version=1",
        "nothing": "part=nobody&camera=line1-right",
    }
    views = {f"history: {name}": f"/history?{query}" for name, query in history.items()}
    return views | {
        "review queue": "/review",
        "review queue of a camera": "/review?camera=line1-right",
        "part": f"/part/{newest}",
        "part, its good neighbour": f"/part/{newest}/alike",
        "wall": "/wall",
        "wall: first event": "/wall/events",
        "report of today": "/report",
        "report of a lot": f"/report?lot={lot}",
        "feedback": "/feedback",
        "models": "/models",
        "accounts": "/accounts",
    }


def _time(url: str, address: str, rounds: int) -> tuple[float, float, float]:
    """The first answer, the median and the 95th percentile in ms."""
    times = []
    with httpx.Client(base_url=url, headers={"accept": "text/html"}, timeout=60) as client:
        _sign_in(client)
        for _ in range(rounds):
            start = time.perf_counter()
            with client.stream("GET", address) as reply:
                reply.raise_for_status()
                _read(reply, address)
            times.append(1000 * (time.perf_counter() - start))
    return times[0], float(np.percentile(times, 50)), float(np.percentile(times, 95))


def _read(reply: Any, address: str) -> None:
    if address.endswith("/events"):
        next(reply.iter_lines())
    else:
        reply.read()


def _sign_in(client: httpx.Client) -> None:
    form = re.search(r'name="form" value="([^"]+)"', client.get("/sign-in").text)
    if form is None:
        raise SystemExit("the page shows no form to sign in")
    client.post("/sign-in", data={"name": _NAME, "password": PASSWORD, "form": form[1]})


if __name__ == "__main__":
    main()
