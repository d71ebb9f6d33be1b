"""The inspector's page in a browser: time to the first overlay, and the line wall at 20 results a second.

    python -m benchmarks.inspector --parts 120 --seconds 30 --rate 20

A store is filled with drawn plates (`tests/serving/inspector/plates.py`, larger ones with --scale), the page runs in a
process of its own, and a headless Chromium looks at it. Overlay: from a key press until frame and overlay are on the
screen, the verdict having been recorded durably in between. Wall: results that reach the browser, and the shares of a
core that page and browser take. One table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from serving.audit import Account, Role, Store, add_account
from serving.inspector.passwords import hash_password
from tests.serving.inspector import plates
from tests.serving.inspector.conftest import PASSWORD, chromium

_NAME = "eva"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=120)
    parser.add_argument("--scale", type=int, default=1, help="Frames of 400x300 px times this, each way.")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="Results a second on the wall.")
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--look-ms", type=float, default=250.0, help="How long a part is looked at.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "audit", create=True) as store:
        add_account(store, Account(_NAME, Role.INSPECTOR, hash_password(PASSWORD)), by="benchmark")
        _fill(store, options.parts, options.scale)
        page, url = serve_page(Path(folder) / "audit")
        try:
            figures = _look(url, page, store, options)
        finally:
            page.terminate()
            page.wait()
    for name, value in figures.items():
        print(f"{name:<28} {value:.4g}" if isinstance(value, float) else f"{name:<28} {value}")
    print(json.dumps(figures))


def _fill(store: Store, parts: int, scale: int) -> None:
    """Parts with a defect each, so that all of them come to the queue."""
    rng = np.random.default_rng(0)
    shapes = plates.CLASSES[1:]
    for index in range(parts):
        shape = shapes[index % len(shapes)]
        frame = plates.plate(rng, shape)
        judged = plates.judge_plate(frame, shape, request_id=f"b{index}", part=f"B-{index}", camera="left")
        if scale == 1:
            store.append([judged.answer], judged.blobs)
            continue
        from dataclasses import replace

        from serving.audit import Blob

        size = (plates.WIDTH * scale, plates.HEIGHT * scale)
        large = Blob.of(cv2.imencode(".png", cv2.resize(frame, size))[1].tobytes(), "image/png")
        regions = tuple(
            replace(one, outline=tuple(value * scale for value in one.outline)) for one in judged.answer.regions
        )
        answer = replace(judged.answer, frame=large.ref, frame_width=size[0], frame_height=size[1], regions=regions)
        store.append([answer], [large, judged.blobs[1]])


def serve_page(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The page over the store in ``folder``, in a process of its own, and where it is."""
    command = [sys.executable, "-m", "defectlens", "inspector", "--db", str(folder), "--port", "0"]
    page = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in page.stderr or ():
        if "the page is at " in line:
            return page, line.split("the page is at ")[1].strip().rstrip("/")
    raise SystemExit("the page did not start")


def _look(url: str, page: subprocess.Popen[str], store: Store, options: argparse.Namespace) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        tab = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
        tab.goto(url)
        tab.fill("[name=name]", _NAME)
        tab.fill("[name=password]", PASSWORD)
        tab.keyboard.press("Enter")
        figures = {"frame": f"{plates.WIDTH * options.scale}x{plates.HEIGHT * options.scale}"}
        figures |= _overlays(tab, options.parts - 2, options.look_ms)
        figures |= _wall(tab, url, page, store, options)
        browser.close()
    return figures


def _overlays(tab: Any, parts: int, look_ms: float) -> dict[str, Any]:
    shown = "(before) => window.review.seq && window.review.seq !== before && window.review.overlayMs !== null"
    tab.wait_for_function(shown, arg=0)
    times = []
    for _ in range(parts):
        before = tab.evaluate("window.review.seq")
        tab.wait_for_timeout(look_ms)
        tab.keyboard.press("a")
        tab.wait_for_function(shown, arg=before)
        times.append(tab.evaluate("window.review.overlayMs"))
    return {
        "overlays": len(times),
        "overlay_p50_ms": float(np.percentile(times, 50)),
        "overlay_p95_ms": float(np.percentile(times, 95)),
        "overlay_max_ms": float(max(times)),
    }


def _wall(tab: Any, url: str, page: subprocess.Popen[str], store: Store, options: argparse.Namespace) -> dict[str, Any]:
    tab.goto(f"{url}/wall")
    tab.wait_for_function("() => document.getElementById('link').textContent === 'live'")
    tab.wait_for_timeout(1000)
    rng = np.random.default_rng(1)
    frames = [
        plates.judge_plate(plates.plate(rng, shape), shape, request_id="w", camera=f"camera {index}")
        for index, shape in zip(range(options.cameras), plates.CLASSES * options.cameras, strict=False)
    ]
    served, browser = psutil.Process(page.pid), _browser()
    before = (served.cpu_times(), _cpu_s(browser))
    start, sent, last = time.monotonic(), 0, 0
    while (elapsed := time.monotonic() - start) < options.seconds:
        if sent / options.rate > elapsed:
            time.sleep(max(0.0, sent / options.rate - elapsed))
        judged = frames[sent % options.cameras]
        last = store.append([judged.answer], judged.blobs)[0]
        sent += 1
    tab.wait_for_function("(last) => window.wall.head === last", arg=last, timeout=10_000)
    wall_s = time.monotonic() - start
    used = served.cpu_times()
    return {
        "sent": sent,
        "sent_per_s": sent / wall_s,
        "reached_browser": int(tab.evaluate("window.wall.results")),
        "page_cpu_share": (used.user + used.system - before[0].user - before[0].system) / wall_s,
        "browser_cpu_share": (_cpu_s(browser) - before[1]) / wall_s,
    }


def _browser() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if "chrom" in one.name()]


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(one.cpu_times().user + one.cpu_times().system for one in processes if one.is_running())


if __name__ == "__main__":
    main()
