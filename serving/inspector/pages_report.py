"""The quality report of a shift or a lot."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from serving.audit import Span, choices
from serving.inspector import charts, words
from serving.inspector.quality import quality
from serving.inspector.site import Person, looking, site_of

router = APIRouter(prefix="/report")
Looking = Annotated[Person, Depends(looking)]


@router.get("")
def report(
    request: Request, person: Looking, since: str = "", until: str = "", lot: str = "", camera: str = ""
) -> Response:
    """The report; without a span, that of today, and of a lot its whole time."""
    site = site_of(request)
    since_ns, until_ns = words.read_time(since), words.read_time(until)
    if since_ns is None and until_ns is None and not lot:
        since_ns = words.midnight_ns()
    wanted = Span(since_ns=since_ns, until_ns=until_ns, lot=lot.strip() or None, camera=camera or None)
    found = quality(site.store, wanted)
    return site.render(
        request,
        "report.html",
        quality=found,
        wanted=wanted,
        pareto=charts.pareto(found.classes.most_common()),
        map=None if found.positions is None else charts.position_map(found.positions),
        cameras=choices(site.store)["camera"],
        made_ns=time.time_ns(),
        made_by=person.name,
    )
