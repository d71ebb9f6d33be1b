"""The figures of a quality report: what was found, where on the part, and how far it can be trusted."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.audit import (
    Answer,
    Opinions,
    PersonVerdict,
    Sampled,
    Search,
    Span,
    Store,
    Tally,
    by_camera,
    by_class,
    opinions,
    sampled,
    search,
)
from vision.calibration.agreement import Agreement, cohens_kappa
from vision.calibration.escapes import Escapes, estimate_escapes
from vision.calibration.intervals import Rate, rate
from vision.types import Verdict

MAP_COLUMNS = 32
# More rejects than these do not change what the map of positions shows, but take time.
_MAPPED = 500
_CLEAR = (PersonVerdict.GOOD, PersonVerdict.DEFECT)


@dataclass(frozen=True, slots=True)
class Pair:
    """How two people agree about the parts that both judged."""

    people: tuple[str, str]
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Positions:
    """Where regions of rejected parts lie. ``share``: float ``[rows, columns]``, of ``parts`` that have one there.

    ``example``: number of the latest of these answers, whose frame is shown below; ``left_out``: rejects that were not
    counted since there are too many.
    """

    share: NDArray[np.float64]
    parts: int
    example: int
    left_out: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """``false_rejects``: of the rejects that a person judged, those that were good. ``overkill``: lowest, likeliest and
    highest share of good parts that were rejected, from it; None before anybody judged. ``escapes`` likewise, None
    before a passed part was checked. ``by_person``: how many parts each person judged.
    """

    cameras: dict[str, Tally]
    total: Tally
    classes: Counter[str]
    false_rejects: Rate
    overkill: tuple[float, float, float] | None
    sampled: Sampled
    escapes: Escapes | None
    model: Agreement
    model_blind: Agreement
    pairs: tuple[Pair, ...]
    by_person: Counter[str]
    positions: Positions | None


def quality(store: Store, wanted: Span) -> Quality:
    """Count everything of a span."""
    cameras = by_camera(store, wanted)
    total = Tally(sum((tally.by_verdict for tally in cameras.values()), Counter()))
    said = list(opinions(store, wanted))
    checks = sampled(store, wanted)
    escapes = None
    if checks.checked:
        escapes = estimate_escapes(checks.checked, checks.found, passed=checks.passed, caught=checks.caught)
    false_rejects = _false_rejects(said)
    return Quality(
        cameras=cameras,
        total=total,
        classes=by_class(store, wanted),
        false_rejects=false_rejects,
        overkill=_overkill(false_rejects, total, escapes),
        sampled=checks,
        escapes=escapes,
        model=_with_model(said, blind=False),
        model_blind=_with_model(said, blind=True),
        pairs=_between_people(said),
        by_person=Counter(one.person for each in said for one in each.people),
        positions=_positions(store, wanted),
    )


def _false_rejects(said: list[Opinions]) -> Rate:
    last = [each.people[-1].verdict for each in said if each.verdict is Verdict.REJECT]
    judged = [verdict for verdict in last if verdict in _CLEAR]
    return rate(sum(verdict is PersonVerdict.GOOD for verdict in judged), len(judged))


def _overkill(false_rejects: Rate, total: Tally, escapes: Escapes | None) -> tuple[float, float, float] | None:
    """Good parts rejected ÷ good parts. Passed parts count as good but for the escapes that are known of."""
    if not false_rejects.of:
        return None
    rejected, passed = total.by_verdict[Verdict.REJECT], total.by_verdict[Verdict.PASS]
    most = (passed, passed) if escapes is None or escapes.count is None else tuple(passed - n for n in escapes.count)
    likeliest = passed if escapes is None else passed * (1 - escapes.share.value)

    def share(of_rejects: float, good_passed: float) -> float:
        good = rejected * of_rejects + good_passed
        return rejected * of_rejects / good if good else 0.0

    return (
        share(false_rejects.low, most[0]),
        share(false_rejects.value, likeliest),
        share(false_rejects.high, most[1]),
    )


def _with_model(said: list[Opinions], *, blind: bool) -> Agreement:
    """Good or defective, as the model and the people say it; a review or an "unsure" is neither."""
    models = {Verdict.PASS: PersonVerdict.GOOD, Verdict.REJECT: PersonVerdict.DEFECT}
    pairs: Counter[tuple[PersonVerdict, PersonVerdict]] = Counter()
    for each in said:
        if each.verdict in models:
            pairs.update(
                (models[each.verdict], one.verdict)
                for one in each.people
                if one.verdict in _CLEAR and (one.blind or not blind)
            )
    return cohens_kappa(pairs)


def _between_people(said: list[Opinions]) -> tuple[Pair, ...]:
    pairs: dict[tuple[str, str], Counter[tuple[PersonVerdict, PersonVerdict]]] = {}
    for each in said:
        clear = sorted((one.person, one.verdict) for one in each.people if one.verdict in _CLEAR)
        for (first, one), (second, other) in itertools.combinations(clear, 2):
            pairs.setdefault((first, second), Counter())[one, other] += 1
    return tuple(Pair(people, cohens_kappa(counts)) for people, counts in sorted(pairs.items()))


def _positions(store: Store, wanted: Span) -> Positions | None:
    query = Search(
        since_ns=wanted.since_ns,
        until_ns=wanted.until_ns,
        camera=wanted.camera,
        lot=wanted.lot,
        verdict=Verdict.REJECT,
    )
    page = search(store, query, limit=_MAPPED)
    answers = [(one.seq, one.record) for one in store.many(row.seq for row in page.answers)]
    placed = [(seq, one) for seq, one in answers if isinstance(one, Answer) and one.regions and one.frame_width]
    if not placed:
        return None
    example, last = placed[-1]
    rows = max(1, round(MAP_COLUMNS * last.frame_height / last.frame_width))
    hits = np.zeros((rows, MAP_COLUMNS))
    for _, answer in placed:
        hits += _cells(answer, rows)
    return Positions(hits / len(placed), len(placed), example, page.next is not None)


def _cells(answer: Answer, rows: int) -> NDArray[np.bool_]:
    """Which cells of the map the regions of one part touch."""
    touched = np.zeros((rows, MAP_COLUMNS), np.bool_)
    across, down = MAP_COLUMNS / answer.frame_width, rows / answer.frame_height
    for region in answer.regions:
        x, y, width, height = region.box
        right = max(int(x * across) + 1, -int(-(x + width) * across // 1))
        bottom = max(int(y * down) + 1, -int(-(y + height) * down // 1))
        touched[int(y * down) : bottom, int(x * across) : right] = True
    return touched
