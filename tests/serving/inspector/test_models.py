"""The model room, against a real server with two versions of a model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving import EncodedImage, FrameRequest
from serving.audit import PersonVerdict, Review, Search, Store, actions, search
from serving.recording_options import AuditSettings
from tests.fakes import make_bundle, part
from tests.serving.conftest import Serve, png
from tests.serving.inspector.conftest import PEOPLE, Page, running
from tests.serving.inspector.test_safety import Visitor, sign_in


def visit(page: Page) -> None:
    """Everything that an engineer does in the model room."""
    with sign_in(page.url, "erik") as erik, sign_in(page.url, "eva") as eva:
        text = erik.get("/models").text
        for words in ("on trial", "Promote", "image auroc", "Where the candidate disagrees", "Review threshold"):
            assert words in text, words
        assert "data-dialog" not in eva.get("/models").text
        assert erik.post("/models/fake/promote", data={"reason": "  "}).status_code == 400
        assert serving_version(erik) == "1"
        done = erik.post("/models/fake/promote", data={"reason": "fewer escapes on trial"})
        assert "taken over" in done.text
        assert serving_version(erik) == "2"
        erik.post("/models/fake/rollback", data={"reason": "too many rejects"})
        assert serving_version(erik) == "1"
        assert "fewer escapes on trial" in erik.get("/models").text
        assert erik.post("/models/nothing/promote", data={"reason": "x"}).status_code >= 400


def serving_version(client: Visitor) -> str:
    text = client.get("/models").text
    return text.split('<th scope="row">serves</th><td>')[1].split("<")[0]


@pytest.mark.slow
async def test_versions_are_promoted_and_rolled_back_with_a_reason(
    serve: Serve, bundle: Path, tmp_path: Path, hashed: str
) -> None:
    from serving.audit import Account, add_account

    stricter = make_bundle(tmp_path / "stricter", version="2", image_threshold=0.01)
    settings = AuditSettings(where=str(tmp_path / "audit"))
    async with serve(bundle, admin="127.0.0.1:0", audit=settings) as (server, client):
        admin = server.admin_address

        def shadow() -> None:
            from serving.admin_client import AdminClient

            with AdminClient(admin) as asking:
                asking.shadow(stricter, 1.0)

        await asyncio.to_thread(shadow)
        for index in range(12):
            image = EncodedImage(png(part(64, 96, spot=(255, 140, 150)[index % 3])))
            await client.inspect(FrameRequest(image, part_id=f"p{index}", camera_id="left"))
            await asyncio.sleep(0.05)
        with Store.open(tmp_path / "audit") as store:
            for name, role in PEOPLE.items():
                add_account(store, Account(name, role, hashed), by="tests")
            rows = search(store, Search()).answers
            assert len(rows) == 12
            store.append([Review(answer=rows[0].seq, person="eva", verdict=PersonVerdict.DEFECT)])
            store.append([Review(answer=rows[1].seq, person="eva", verdict=PersonVerdict.GOOD)])
            pages = running(store, server=server.address, admin=admin)
            page = next(pages)
            try:
                await asyncio.to_thread(visit, page)
            finally:
                await asyncio.to_thread(pages.close)
            asked = [
                (one.body["reason"], one.body["details"]["stage"]) for one in actions(store, action="promote-asked")
            ]
            assert asked[-2:] == [("fewer escapes on trial", "done"), ("fewer escapes on trial", "asked")]
            assert ("x", "failed") in asked


def test_without_a_server_the_page_says_what_is_missing(page: Page) -> None:
    with sign_in(page.url, "vera") as client:
        assert "--server ADDR" in client.get("/models").text


def test_a_server_that_is_gone_is_told_and_not_an_error(store: Store) -> None:
    for page in running(store, server="127.0.0.1:9"):
        with sign_in(page.url, "vera") as client:
            reply = client.get("/models")
        assert reply.status_code == 200
        assert "no inspection server" in reply.text
