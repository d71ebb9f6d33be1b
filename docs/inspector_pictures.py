"""Makes docs/inspector-*.png: the main views of the inspector's page, over the drawn plates of its own tests.

    python -m docs.inspector_pictures

The plates, maps and verdicts are computed (`tests/serving/inspector/plates.py`), so that the pictures may be shared;
the page is the product itself, in Debian's chromium.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.audit import Account, PersonVerdict, Review, Role, Store, add_account
from serving.inspector.passwords import hash_password
from tests.serving.inspector import plates
from tests.serving.inspector.conftest import PASSWORD, chromium, running
from vision.types import Verdict

DOCS = Path(__file__).parent
SIZE = {"width": 1280, "height": 720}


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "audit", create=True) as store:
        _fill(store)
        for page in running(store):
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
                for scheme in ("dark", "light"):
                    _show(browser.new_context(viewport=SIZE, color_scheme=scheme).new_page(), page.url, scheme)
                browser.close()


def _fill(store: Store) -> None:
    """Two lots of four cameras; two people have judged the first one."""
    hashed = hash_password(PASSWORD)
    for name, role in (("eva", Role.INSPECTOR), ("ivan", Role.INSPECTOR), ("erik", Role.ENGINEER)):
        add_account(store, Account(name, role, hashed), by="docs")
    seqs = plates.fill(store, 64, cameras=("left", "right", "top", "back"))
    for index, seq in enumerate(seqs[:40]):
        answer = store.answer(seq)
        if answer.verdict is Verdict.PASS and not answer.sampled:
            continue
        is_good = answer.verdict is Verdict.PASS or index % 9 == 4
        said = PersonVerdict.GOOD if is_good else PersonVerdict.DEFECT
        review = Review(answer=seq, person="eva", verdict=said, label="" if is_good else answer.predicted, blind=True)
        store.append([review])
        if index % 3 == 1:
            store.append([replace(review, person="ivan")])


def _show(tab: Any, url: str, scheme: str) -> None:
    tab.goto(url)
    tab.fill("[name=name]", "erik")
    tab.fill("[name=password]", PASSWORD)
    tab.keyboard.press("Enter")
    tab.wait_for_selector("header.top")
    overlay = "() => window.review.seq === Number(document.getElementById('part-data').dataset.seq)"
    tab.wait_for_function(overlay)
    _save(tab, "review", scheme)
    tab.keyboard.press("s")
    tab.wait_for_function("() => other?.isOpen()")
    tab.wait_for_timeout(600)
    _save(tab, "beside", scheme)
    for name in ("wall", "history", "report"):
        tab.goto(f"{url}/{name}")
        tab.wait_for_load_state("load" if name == "wall" else "networkidle")
        if name == "wall":
            # Until the first event there is no camera at all.
            tab.wait_for_function(
                "() => document.querySelector('.camera img')"
                " && [...document.querySelectorAll('.camera img')].every((one) => one.naturalWidth)"
            )
        _save(tab, name, scheme)


def _save(tab: Any, name: str, scheme: str) -> None:
    tab.screenshot(path=DOCS / f"inspector-{name}-{scheme}.png")


if __name__ == "__main__":
    main()
