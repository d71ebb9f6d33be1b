"""The review queue, and the page of one part: both show the same picture and take the same verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from serving.audit import (
    Blob,
    PersonVerdict,
    Review,
    Role,
    choices,
    last_standing_review,
    reviews_of,
    waiting,
)
from serving.inspector.drawing import drawn, read_shapes
from serving.inspector.part_view import alike_good_part, part_view, viewer_values
from serving.inspector.site import Acting, Person, Site, looking, site_of
from vision.errors import AuditError, SettingsError

router = APIRouter()
Looking = Annotated[Person, Depends(looking)]
Inspecting = Annotated[Person, Depends(Acting(Role.INSPECTOR))]
_LONGEST_NOTE = 2000


@dataclass(frozen=True, slots=True)
class Queue:
    """Which parts somebody works through. ``blind``: the model's opinion is shown after the person's."""

    camera: str = ""
    lot: str = ""
    blind: bool = False

    @property
    def query(self) -> str:
        return urlencode({key: value for key, value in asdict(self).items() if value})


def _queue(
    camera: Annotated[str, Query()] = "",
    lot: Annotated[str, Query()] = "",
    blind: Annotated[bool, Query()] = False,
) -> Queue:
    return Queue(camera, lot, blind)


Working = Annotated[Queue, Depends(_queue)]


@router.get("/")
def start(person: Looking) -> Response:
    """Where each role works."""
    return RedirectResponse("/review" if person.may("inspector") else "/wall", 303)


@router.get("/review")
def review(request: Request, person: Looking, queue: Working) -> Response:
    """The whole page, with the next part."""
    values = _next(site_of(request), person, queue)
    cameras = choices(site_of(request).store)["camera"]
    return site_of(request).render(request, "review.html", cameras=cameras, **values)


@router.get("/review/next")
def next_part(request: Request, person: Looking, queue: Working, skip: int = 0) -> Response:
    """The next part alone; ``skip``: the one that is left open."""
    site_of(request).plans.skip(person.name, skip)
    return site_of(request).render(request, "panel.html", **_next(site_of(request), person, queue))


@router.get("/part/{seq}")
def part(request: Request, person: Looking, seq: int) -> Response:
    """One part, with everything that was said about it."""
    values = _values(site_of(request), person, seq, Queue(), single=True)
    return site_of(request).render(request, "review.html", cameras=[], **values)


@router.get("/part/{seq}/alike")
def alike(request: Request, _: Looking, seq: int) -> Response:
    """The picture of a good part that looks like this one."""
    site = site_of(request)
    found = alike_good_part(site, seq)
    if found is None:
        raise AuditError("No passed part of this camera with a kept frame.")
    return JSONResponse(viewer_values(site, found, hidden=True) | {"part": site.pictures.answer(found).part})


@router.post("/review/undo")
def undo(request: Request, person: Inspecting, queue: Working) -> Response:
    """Take back what this person said last, by a further record; the part comes back."""
    site = site_of(request)
    last = last_standing_review(site.store, person.name)
    if last is None:
        raise SettingsError("There is nothing of yours to take back.")
    before = next((one for one in reversed(reviews_of(site.store, last.answer)) if one.seq < last.seq), None)
    earlier = None if before is None else before.record
    if isinstance(earlier, Review) and earlier.person == person.name and earlier.verdict is not PersonVerdict.WITHDRAWN:
        again = replace(earlier, note=f"again, by undo: {earlier.note}".rstrip(": "))
    else:
        again = Review(answer=last.answer, person=person.name, verdict=PersonVerdict.WITHDRAWN, note="undo")
    site.store.append([again])
    site.plans.take(last.answer, person.name)
    return site.render(request, "panel.html", **_values(site, person, last.answer, queue))


@router.post("/review/{seq}")
def say(
    request: Request,
    person: Inspecting,
    queue: Working,
    seq: int,
    verdict: Annotated[PersonVerdict, Form()],
    label: Annotated[str, Form()] = "",
    note: Annotated[str, Form()] = "",
    shapes: Annotated[str, Form()] = "",
    seconds: Annotated[float | None, Form()] = None,
    single: Annotated[bool, Form()] = False,
) -> Response:
    """Record what a person says; the next part follows, or the same one where there is something to reveal."""
    site = site_of(request)
    if verdict is PersonVerdict.WITHDRAWN:
        raise SettingsError("Use undo to take something back.")
    if len(note) > _LONGEST_NOTE:
        raise SettingsError(f"A note has at most {_LONGEST_NOTE} characters; this one has {len(note)}.")
    blind = queue.blind and not site.revealed.has(person.name, seq)
    regions, mask = _drawn(site, seq, shapes, label) if verdict is PersonVerdict.DEFECT else ((), None)
    said = Review(
        answer=seq,
        person=person.name,
        verdict=verdict,
        label=label.strip() if verdict is PersonVerdict.DEFECT else "",
        note=note.strip(),
        regions=regions,
        mask=None if mask is None else mask.ref,
        blind=blind,
        seconds=None if seconds is None or not 0 <= seconds < 86400 else round(seconds, 1),
    )
    site.store.append([said], [] if mask is None else [mask])
    if single or blind:
        values = _values(site, person, seq, queue, single=single, revealing=blind)
    else:
        values = _next(site, person, queue)
    return site.render(request, "panel.html", **values)


def _drawn(site: Site, seq: int, text: str, label: str) -> tuple[Any, Blob | None]:
    shapes = read_shapes(text)
    if not shapes:
        return (), None
    size = viewer_values(site, seq)
    return drawn(shapes, size["width"], size["height"], label.strip())


def _next(site: Site, person: Person, queue: Queue) -> dict[str, Any]:
    """The next part that lies before nobody else, and those after it, so that their pictures can be fetched early."""
    upcoming = site.plans.upcoming(site.store, person.name, (queue.camera, queue.lot), claims=person.may("inspector"))
    if not upcoming:
        known = {"single": False, "following": [], "revealing": False}
        return {"part": None, "queue": queue, "waiting": _waiting(site, queue)} | known
    return _values(site, person, upcoming[0], queue, following=upcoming[1:])


def _waiting(site: Site, queue: Queue) -> Any:
    return waiting(site.store, camera=queue.camera or None, lot=queue.lot or None)


def _values(
    site: Site,
    person: Person,
    seq: int,
    queue: Queue,
    *,
    single: bool = False,
    revealing: bool = False,
    following: Sequence[int] = (),
) -> dict[str, Any]:
    hidden = queue.blind and not single and not site.revealed.has(person.name, seq) and not revealing
    if not hidden:
        site.revealed.add(person.name, seq)
    return {
        "part": part_view(site, seq, hidden=hidden),
        "queue": queue,
        "waiting": _waiting(site, queue),
        "single": single,
        "revealing": revealing,
        "following": [one for seq in following if (one := _ahead(site, seq, hidden=queue.blind)) is not None],
    }


def _ahead(site: Site, seq: int, *, hidden: bool) -> dict[str, Any] | None:
    try:
        return viewer_values(site, seq, hidden=hidden)
    except AuditError:
        return None
