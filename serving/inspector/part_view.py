"""Everything that a page shows of one part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from serving.audit import Answer, Disagreement, PersonVerdict, Review, Search, Stored, reviews_of, search
from serving.audit.maps import ANOMALY
from serving.inspector.pictures import TILE, levels
from serving.inspector.site import Site
from vision.errors import AuditError
from vision.types import Verdict

GOOD = "good"
"""What the good class is called, in training's folders and so in bundles."""
_KEYS = "123456789"
# Among so many passed parts of the same camera, the most similar one is shown beside a doubtful one.
_ALIKE = 12


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that a person can say: a button, and its key."""

    key: str
    verdict: PersonVerdict
    label: str
    words: str
    agrees: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """One review as it is listed. ``stands``: nobody replaced it or took it back."""

    stored: Stored
    review: Review
    stands: bool


@dataclass(frozen=True, slots=True)
class PartView:
    """``hidden``: the model's opinion is not shown yet. ``viewer``: what the picture's script needs, None where there
    is no frame to show, and ``problem`` then says why.
    """

    seq: int
    stored: Stored
    answer: Answer
    hidden: bool
    choices: tuple[Choice, ...]
    said: tuple[Said, ...]
    viewer: dict[str, Any] | None
    problem: str

    @property
    def standing(self) -> Review | None:
        return next((one.review for one in reversed(self.said) if one.stands), None)

    @property
    def top_probability(self) -> float | None:
        return next((one.probability for one in self.answer.classes if one.name == self.answer.predicted), None)


def part_view(site: Site, seq: int, *, hidden: bool = False) -> PartView:
    """Read a part.

    Raises:
        SettingsError: there is no such answer.
    """
    stored = site.store.get(seq)
    answer = site.pictures.answer(seq)
    said = _said(site, seq)
    viewer, problem = None, ""
    try:
        viewer = viewer_values(site, seq, hidden=hidden)
        drawn = next((one.review for one in reversed(said) if one.stands), None)
        viewer["drawn"] = [] if drawn is None else [list(region.points) for region in drawn.regions]
    except AuditError as error:
        problem = str(error)
    return PartView(seq, stored, answer, hidden, choices_of(answer, hidden=hidden), said, viewer, problem)


def viewer_values(site: Site, seq: int, *, hidden: bool = False) -> dict[str, Any]:
    """Addresses and sizes for the picture's script.

    Raises:
        AuditError: the frame is not there.
    """
    answer = site.pictures.answer(seq)
    width, height = answer.frame_width, answer.frame_height
    if not width or not height:  # of frames that were refused nobody knows the size
        height, width = site.pictures.frame(seq).shape[:2]
    if answer.frame is None or not site.store.files.has(answer.frame.sha256):
        raise AuditError("The frame is not in the store any more." if answer.frame else "No frame was kept.")
    values: dict[str, Any] = {
        "seq": seq,
        "width": width,
        "height": height,
        "tile": TILE,
        "levels": levels(width, height),
        "hidden": hidden,
        "heat": None,
        "saliency": {},
        "regions": [],
        "predicted": "",
        "scale": None,
    }
    if hidden:
        return values
    names = [plane.name for plane in answer.planes]
    if answer.maps is not None and site.store.files.has(answer.maps.sha256):
        if ANOMALY in names:
            scale = site.pictures.scale(seq, ANOMALY)
            values["scale"] = [scale.low, scale.high, scale.mark]
            values["heat"] = heat_address(seq, ANOMALY)
        values["saliency"] = {name: heat_address(seq, name) for name in names if name != ANOMALY}
    values["regions"] = [
        {"label": region.label, "score": region.score, "points": list(region.outline), "box": list(region.box)}
        for region in answer.regions
    ]
    values["predicted"] = answer.predicted
    return values


def heat_address(seq: int, plane: str) -> str:
    return f"/pictures/{seq}/heat.png?plane={quote(plane, safe='')}"


def choices_of(answer: Answer, *, hidden: bool = False) -> tuple[Choice, ...]:
    """What can be said about a part. A model that asks for a person, or does not know, cannot be agreed with."""
    good = Choice("g", PersonVerdict.GOOD, "", "Good part")
    defects = [one.name for one in answer.classes if one.name != GOOD] or [answer.predicted or "defect"]
    named = [
        Choice(_KEYS[index] if index < len(_KEYS) else "", PersonVerdict.DEFECT, name, name)
        for index, name in enumerate(name for name in defects if name != GOOD)
    ]
    rest = (*named, Choice("u", PersonVerdict.UNSURE, "", "Unsure"))
    if hidden:
        return (good, *rest)
    if answer.verdict is Verdict.PASS:
        return (Choice("a", PersonVerdict.GOOD, "", "Agree: good part", agrees=True), *rest)
    if answer.verdict is Verdict.REJECT:
        label = answer.predicted if answer.predicted in defects and answer.predicted != GOOD else ""
        agree = Choice("a", PersonVerdict.DEFECT, label, f"Agree: {label or 'defective'}", agrees=True)
        return (agree, good, *rest)
    return (good, *rest)


def alike_good_part(site: Site, seq: int) -> int | None:
    """The good part of the same camera that looks most like this one, among the passed parts just before it."""
    answer = site.pictures.answer(seq)
    wanted = Search(camera=answer.camera, verdict=Verdict.PASS)
    rows = search(site.store, wanted, before=seq, limit=_ALIKE).answers
    rows = rows or search(site.store, wanted, after=seq, limit=_ALIKE).answers
    found = []
    for row in rows:
        is_good = row.review is None or row.review.disagreement is Disagreement.NONE
        if is_good and row.frame and site.store.files.has(row.frame):
            found.append((site.pictures.likeness(seq, row.seq), row.seq))
    return min(found)[1] if found else None


def _said(site: Site, seq: int) -> tuple[Said, ...]:
    found = reviews_of(site.store, seq)
    reviews = [(stored, stored.record) for stored in found if isinstance(stored.record, Review)]
    return tuple(
        Said(stored, review, index == len(reviews) - 1 and review.verdict is not PersonVerdict.WITHDRAWN)
        for index, (stored, review) in enumerate(reviews)
    )
