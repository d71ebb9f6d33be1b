"""Which frames ride in the next batch: nothing but arithmetic."""

from __future__ import annotations

import pytest

from serving.boarding import board
from serving.costs import Curve
from serving.waiting import Camera, Outlook, State, Ticket

SHARED = Curve((0.0, 0.010, 0.012, 0.014, 0.016), 0.0)
NEARLY_LINEAR = Curve((0.0, 0.0100, 0.0190), 0.0)
FAR = 1.0


def outlook(curve: Curve) -> Outlook:
    return Outlook(now=0.0, engine_free=0.0, curve=curve, threads=2)


def ready(*deadlines: float | None) -> list[Ticket]:
    camera = Camera("a", lambda: 0.0)
    return [
        Ticket(camera, None, 0.0, deadline, (deadline or FAR, index), 0, False, None, State.READY)  # type: ignore[arg-type]
        for index, deadline in enumerate(deadlines)
    ]


def test_a_batch_is_cut_for_a_deadline_where_nobody_else_waits() -> None:
    tickets = ready(0.013, FAR, FAR, FAR)
    plan = board(tickets, tickets, outlook(SHARED), 0.0)
    assert plan.batch == tickets[:2]
    assert plan.hopeless == []


def test_a_batch_is_not_cut_where_others_pay_for_it() -> None:
    tickets = ready(0.013, FAR, FAR, FAR, FAR, FAR)
    plan = board(tickets, tickets, outlook(SHARED), 0.0)
    assert plan.batch == tickets[1:5]
    assert plan.hopeless == tickets[:1]


def test_a_batch_is_cut_where_that_costs_next_to_nothing() -> None:
    tickets = ready(0.015, FAR, FAR)
    plan = board(tickets, tickets, outlook(NEARLY_LINEAR), 0.0)
    assert plan.batch == tickets[:1]
    assert plan.hopeless == []


@pytest.mark.parametrize("deadlines", [(0.011,) * 6, (0.013, 0.011, 0.013, 0.011, 0.013, 0.011)])
def test_what_can_be_answered_is_answered_even_if_all_are_tight(deadlines: tuple[float, ...]) -> None:
    tickets = ready(*sorted(deadlines))
    plan = board(tickets, tickets, outlook(SHARED), 0.0)
    assert plan.batch == tickets[:1]


def test_a_deadline_in_a_batch_has_a_margin_where_measurements_scatter() -> None:
    tickets = ready(0.017, FAR, FAR, FAR)
    assert board(tickets, tickets, outlook(SHARED), 0.0).batch == tickets
    scattering = Curve(SHARED.seconds, 0.1)  # a margin of 15 %
    assert len(board(tickets, tickets, outlook(scattering), 0.0).batch) == 3
