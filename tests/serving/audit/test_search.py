from __future__ import annotations

from itertools import pairwise

import pytest

from serving.audit import (
    Action,
    Disagreement,
    ModelUsed,
    PersonVerdict,
    Review,
    Search,
    Span,
    Store,
    actions,
    by_camera,
    by_class,
    choices,
    latest_by_camera,
    next_for_review,
    part_history,
    reviewed,
    reviews_of,
    sampled,
    search,
    waiting,
)
from tests.serving.audit.conftest import Clock
from tests.serving.audit.making import add, answer
from vision.types import Verdict

GOOD, DEFECT, UNSURE, WITHDRAWN = (
    PersonVerdict.GOOD,
    PersonVerdict.DEFECT,
    PersonVerdict.UNSURE,
    PersonVerdict.WITHDRAWN,
)


def say(store: Store, seq: int, verdict: PersonVerdict, person: str = "eva", label: str = "") -> int:
    return store.append([Review(answer=seq, person=person, verdict=verdict, label=label)])[0]


def found(store: Store, wanted: Search) -> list[int]:
    return [row.seq for row in search(store, wanted).answers]


@pytest.fixture
def line(store: Store) -> Store:
    """Records 1 to 6 of answers, one a second, and 7 to 9 of reviews."""
    other = ModelUsed("rings", "9", "c" * 64, "n" * 64, "CPUExecutionProvider", "fp32", False, {})
    for one in (
        answer(part="A-1", lot="L1", camera="left"),
        answer(Verdict.REJECT, part="A-2", lot="L1", camera="left", request_id="r2"),
        answer(Verdict.REVIEW, part="A-3", lot="L1", camera="right"),
        answer(Verdict.REJECT, part="B-1", lot="L2", camera="right", predicted="dent", model=other),
        answer(Verdict.NO_VERDICT, error="OVERLOADED", frame=None, lot="L2", camera="right", model=None, predicted=""),
        answer(part="A-1", lot="L2", camera="left", sampled=True, sample_rate=0.5),
    ):
        add(store, one)
    say(store, 2, GOOD)
    say(store, 4, DEFECT, label="crack")
    say(store, 6, DEFECT, person="ulf")
    return store


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Search(), [6, 5, 4, 3, 2, 1]),
        (Search(camera="left"), [6, 2, 1]),
        (Search(lot="L1", verdict=Verdict.REJECT), [2]),
        (Search(part="A-1"), [6, 1]),
        (Search(part_begins="A-"), [6, 3, 2, 1]),
        (Search(part_begins="A-", lot="L1", camera="left"), [2, 1]),
        (Search(predicted="dent"), [4]),
        (Search(model="rings"), [4]),
        (Search(model="parts", model_version="3", verdict=Verdict.PASS), [6, 1]),
        (Search(model="parts", model_version="4"), []),
        (Search(error="OVERLOADED"), [5]),
        (Search(request_id="r2"), [2]),
        (Search(sampled=True), [6]),
        (Search(any_disagreement=True), [6, 4, 2]),
        (Search(disagreement=Disagreement.OVERKILL), [2]),
        (Search(disagreement=Disagreement.ESCAPE, camera="left"), [6]),
        (Search(disagreement=Disagreement.CLASS), [4]),
        (Search(person="ulf"), [6]),
        (Search(person_verdict=DEFECT, person="eva"), [4]),
        (Search(reviewed=True), [6, 4, 2]),
        (Search(reviewed=False, camera="right"), [5, 3]),
    ],
)
def test_search(line: Store, wanted: Search, expected: list[int]) -> None:
    assert found(line, wanted) == expected


def test_search_by_time_takes_the_first_moment_and_not_the_last(line: Store) -> None:
    times = {row.seq: row.time_ns for row in search(line).answers}
    assert found(line, Search(since_ns=times[2], until_ns=times[4])) == [3, 2]
    assert found(line, Search(since_ns=times[6] + 1)) == []
    assert found(line, Search(until_ns=times[1])) == []


def test_answers_of_the_same_moment_are_all_found(store: Store, clock: Clock) -> None:
    add(store, answer())
    add(store, *[answer(camera=camera) for camera in ("z", "m", "a")])
    now = store.get(2).time_ns
    assert found(store, Search(since_ns=now)) == [4, 3, 2]
    assert found(store, Search(until_ns=now)) == [1]


def test_pages_show_every_answer_once_while_new_ones_come_in(store: Store) -> None:
    add(store, *[answer() for _ in range(25)])
    seen: list[int] = []
    before = None
    while True:
        page = search(store, limit=10, before=before)
        seen += [row.seq for row in page.answers]
        add(store, answer())
        if page.next is None:
            break
        before = page.next
    assert seen == list(range(25, 0, -1))


def test_who_follows_sees_what_is_new_in_its_order(line: Store) -> None:
    page = search(line, after=2, limit=2)
    assert [row.seq for row in page.answers] == [3, 4]
    assert [row.seq for row in search(line, after=page.next).answers] == [5, 6]


def test_the_last_review_stands_and_an_undone_one_does_not(line: Store) -> None:
    assert found(line, Search(disagreement=Disagreement.OVERKILL)) == [2]
    say(line, 2, DEFECT, person="ulf", label="crack")
    row = search(line, Search(request_id="r2")).answers[0]
    assert row.review is not None
    assert (row.review.person, row.review.disagreement) == ("ulf", Disagreement.NONE)
    assert found(line, Search(disagreement=Disagreement.OVERKILL)) == []
    assert found(line, Search(person="eva")) == [4]
    say(line, 2, WITHDRAWN, person="ulf")
    assert search(line, Search(request_id="r2")).answers[0].review is None
    assert 2 in found(line, Search(reviewed=False))
    assert [stored.record.verdict for stored in reviews_of(line, 2)] == [GOOD, DEFECT, WITHDRAWN]  # type: ignore[union-attr]


def test_the_history_of_a_part_has_its_answers_and_what_was_said_about_them(line: Store) -> None:
    assert [stored.seq for stored in part_history(line, "A-1")] == [1, 6, 9]
    assert part_history(line, "nobody") == []


def test_latest_by_camera_and_choices(line: Store) -> None:
    assert {camera: row.seq for camera, row in latest_by_camera(line).items()} == {"left": 6, "right": 5}
    assert choices(line) == {
        "camera": ["left", "right"],
        "predicted": ["crack", "dent", "good"],
        "model": ["parts", "rings"],
    }


def test_counts_add_up(line: Store) -> None:
    tallies = by_camera(line)
    assert {camera: tally.total for camera, tally in tallies.items()} == {"left": 3, "right": 3}
    assert tallies["right"].by_verdict == {Verdict.REVIEW: 1, Verdict.REJECT: 1, Verdict.NO_VERDICT: 1}
    assert by_camera(line, Span(lot="L2", camera="left"))["left"].by_verdict == {Verdict.PASS: 1}
    third = line.get(3).time_ns
    assert sum(tally.total for tally in by_camera(line, Span(since_ns=third)).values()) == 4
    assert sum(tally.total for tally in by_camera(line, Span(until_ns=third)).values()) == 2
    assert by_class(line) == {"crack": 1, "dent": 1}
    assert by_class(line, Span(since_ns=third)) == {"dent": 1}


def test_reviews_are_counted_as_they_stand(line: Store) -> None:
    counted = reviewed(line)
    assert counted.pairs == {(Verdict.REJECT, GOOD): 1, (Verdict.REJECT, DEFECT): 1, (Verdict.PASS, DEFECT): 1}
    assert counted.disagreements == {Disagreement.OVERKILL: 1, Disagreement.CLASS: 1, Disagreement.ESCAPE: 1}
    say(line, 2, WITHDRAWN)
    assert reviewed(line, Span(lot="L1")).pairs == {}


def test_the_escape_estimate_counts_drawn_parts_alone(store: Store) -> None:
    add(store, *[answer(sampled=number < 4) for number in range(10)], answer(Verdict.REJECT))
    for seq, verdict in ((1, GOOD), (2, DEFECT), (3, UNSURE), (9, DEFECT), (11, DEFECT)):
        say(store, seq, verdict)
    counts = sampled(store)
    # Part 9 was found defective too, but by somebody who had a reason to look: it says nothing about the others.
    assert (counts.passed, counts.checked, counts.found, counts.caught, counts.unsure) == (10, 2, 1, 1, 1)


def test_the_worklist_has_what_a_person_is_to_see_until_one_spoke(store: Store) -> None:
    add(
        store,
        answer(),
        answer(Verdict.REJECT, camera="left"),
        answer(Verdict.REVIEW),
        answer(sampled=True),
        answer(Verdict.NO_VERDICT),  # a score that is no number
        answer(Verdict.NO_VERDICT, error="OVERLOADED", frame=None),  # nothing to look at
    )
    assert [row.seq for row in next_for_review(store, mix=0.0)] == [2, 3, 5]
    assert {row.seq for row in next_for_review(store, mix=0.5)} == {2, 3, 4, 5}
    assert [row.seq for row in next_for_review(store, camera="left", mix=0.0)] == [2]
    assert (waiting(store).doubtful, waiting(store).sampled) == (3, 1)
    say(store, 2, GOOD)
    say(store, 4, UNSURE)
    assert (waiting(store).doubtful, waiting(store).sampled) == (2, 0)
    say(store, 4, WITHDRAWN)
    assert (waiting(store).doubtful, waiting(store).sampled) == (2, 1)


def test_passed_parts_are_mixed_in_as_often_as_asked(store: Store) -> None:
    add(store, *[answer(Verdict.REJECT) for _ in range(90)], *[answer(sampled=True) for _ in range(40)])
    shown = next_for_review(store, limit=100, mix=0.1)
    places = [place for place, row in enumerate(shown) if row.sampled]
    assert len(places) == 10
    assert len({place % 10 for place in places}) > 3  # not every tenth
    doubtful = [row.seq for row in shown if not row.sampled]
    assert all(one < other for one, other in pairwise(doubtful))
    last = max(doubtful), max(row.seq for row in shown if row.sampled)
    assert {row.seq for row in next_for_review(store, limit=100, after=last)} == set(range(101, 131))


def test_actions(store: Store) -> None:
    store.append([Action(action="login", person="eva"), Action(action="promote", person="eva", subject="parts")])
    store.append([Action(action="login", person="ulf")])
    assert [stored.seq for stored in actions(store, action="login")] == [3, 1]
    assert [stored.seq for stored in actions(store, person="eva", limit=1)] == [2]
    assert [stored.seq for stored in actions(store, before=2)] == [1]
