"""Searching what was inspected."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response

from serving.audit import Disagreement, PersonVerdict, Search, choices, search
from serving.inspector import words
from serving.inspector.site import Person, looking, site_of
from vision.errors import SettingsError
from vision.types import Verdict

router = APIRouter(prefix="/history")
Looking = Annotated[Person, Depends(looking)]
_PAGE = 48
_ANY = "any"


@router.get("")
def history(request: Request, _: Looking) -> Response:
    """The form with its first page of answers."""
    return site_of(request).render(request, "history.html", **_found(request))


@router.get("/rows")
def rows(request: Request, _: Looking, before: Annotated[int, Query()] = 0) -> Response:
    """More answers, older than ``before``; without it, the first ones of another search."""
    return site_of(request).render(request, "history_rows.html", **_found(request, before or None))


def read_search(asked: dict[str, str]) -> Search:
    """From the fields of the form.

    Raises:
        SettingsError: a field holds a word that it does not know.
    """
    given = {key: value.strip() for key, value in asked.items() if value.strip()}
    try:
        wanted = Search(
            since_ns=words.read_time(given.get("since", "")),
            until_ns=words.read_time(given.get("until", "")),
            part_begins=given.get("part"),
            lot=given.get("lot"),
            camera=given.get("camera"),
            predicted=given.get("class"),
            verdict=Verdict[given["verdict"]] if "verdict" in given else None,
            model=given.get("model"),
            model_version=given.get("version"),
            person=given.get("person"),
            person_verdict=PersonVerdict(given["said"]) if "said" in given else None,
            any_disagreement=given.get("disagreement") == _ANY,
        )
        kind = given.get("disagreement", _ANY)
        return wanted if kind == _ANY else replace(wanted, disagreement=Disagreement(kind.removeprefix("agrees")))
    except (KeyError, ValueError) as error:
        raise SettingsError(f"the search knows no {error}; clear the form and try again") from error


def _found(request: Request, before: int | None = None) -> dict[str, Any]:
    store = site_of(request).store
    asked = {key: value for key, value in request.query_params.items() if value and key != "before"}
    page = search(store, read_search(asked), limit=_PAGE, before=before)
    following = None if page.next is None else urlencode(asked | {"before": page.next})
    return {"answers": page.answers, "following": following, "asked": asked, "choices": choices(store)}
