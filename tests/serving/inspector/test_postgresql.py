"""Everything that the page asks and writes, on a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from serving.audit import Account, AuditPlace, PersonVerdict, Store, accounts, add_account, reviews_of
from serving.audit.verify import verify
from tests.serving.audit import postgresql
from tests.serving.inspector import plates
from tests.serving.inspector.conftest import PEOPLE, Page, running
from tests.serving.inspector.test_safety import first_waiting, sign_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pg_page(tmp_path_factory: pytest.TempPathFactory, hashed: str) -> Iterator[Page]:
    if not postgresql.INSTALLED:
        pytest.skip(postgresql.MISSING)
    with postgresql.running() as server:
        url = postgresql.create_database(server, "page")
        place = AuditPlace.of(url, files=tmp_path_factory.mktemp("pg") / "files")
        with Store.open(place, create=True) as store:
            for name, role in PEOPLE.items():
                add_account(store, Account(name, role, hashed), by="tests")
            plates.fill(store)
            yield from running(store)


FILTERS = (
    {},
    {"since": "2020-01-01T00:00", "until": "2100-01-01T00:00"},
    {"part": "P-0"},
    {"lot": "L1"},
    {"camera": "left"},
    {"verdict": "REJECT"},
    {"class": "scratch"},
    {"said": "good"},
    {"disagreement": "any"},
    {"disagreement": "overkill"},
    {"disagreement": "agrees"},
    {"person": "eva"},
    {"model": "plate", "version": "1"},
    {"camera": "left", "verdict": "REJECT", "said": "good", "since": "2020-01-01T00:00"},
)


def test_every_view_and_every_act(pg_page: Page) -> None:
    store = pg_page.store
    with sign_in(pg_page.url, "eva") as eva, sign_in(pg_page.url, "ada") as ada:
        seq = first_waiting(eva)
        assert eva.post(f"/review/{seq}", data={"verdict": "good"}).status_code == 200
        following = first_waiting(eva)
        shapes = json.dumps([{"kind": "brush", "points": [20, 20, 60, 20], "width": 9}])
        said = {"verdict": "defect", "label": "scratch", "shapes": shapes, "note": "räkna \u2028 'x'"}
        assert eva.post(f"/review/{following}", data=said).status_code == 200
        assert eva.post("/review/undo").status_code == 200
        verdicts = [getattr(one.record, "verdict", None) for one in reviews_of(store, following)]
        assert verdicts == [PersonVerdict.DEFECT, PersonVerdict.WITHDRAWN]
        for asked in FILTERS:
            reply = ada.get("/history", params=asked)
            assert reply.status_code == 200, asked
        assert ada.get("/history", params={"said": "good"}).text.count('class="result"') == 1
        assert ada.get("/history/rows", params={"before": seq + 5, "camera": "left"}).status_code == 200
        spans = ({}, {"lot": "L1"}, {"lot": "L1", "camera": "left"}, {"since": "2020-01-01T00:00"}, {"camera": "right"})
        for span in spans:
            assert ada.get("/report", params=span).status_code == 200, span
        views = (f"/part/{seq}", f"/part/{seq}/alike", "/wall", "/models", "/accounts", "/feedback")
        for address in (*views, "/review?camera=left&lot=L1", "/review?blind=true"):
            assert ada.get(address).status_code == 200, address
        with ada.stream("GET", "/wall/events") as events:
            first = json.loads(next(events.iter_lines()).removeprefix("data: "))
        assert sum(one["total"] for one in first["cameras"]) == 24
        assert ada.post("/feedback").headers["content-type"] == "application/zip"
        headers = {"hx-request": "true"}
        new = {"name": "olga", "role": "viewer", "password": "olga's first one"}
        assert "can sign in now" in ada.post("/accounts", data=new, headers=headers).text
        ada.post("/accounts/olga", data={"role": "engineer", "disabled": "true"}, headers=headers)
    assert next(one for one in accounts(store) if one.name == "olga").disabled
    assert verify(store).problems == []


def test_a_shift_in_a_browser(browser: Any, pg_page: Page) -> None:
    from tests.serving.inspector.test_browser import Window

    window = Window(browser, pg_page)
    window.sign_in("ivan")
    first = window.part()
    window.press("u")
    assert window.press("z") == first
    window.go("/history")
    window.tab.locator("[name=person]").fill("ivan")
    window.tab.wait_for_function("() => document.querySelectorAll('.result').length === 0")
    window.tab.locator("[name=person]").fill("")
    window.tab.wait_for_function("() => document.querySelectorAll('.result').length === 24")
    window.go("/report?lot=L1")
    assert window.tab.locator(".report .chart").first.is_visible()
    window.tab.wait_for_load_state("networkidle")
    window.context.close()
    assert window.problems == []
