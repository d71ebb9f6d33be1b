from __future__ import annotations

from random import Random

import pytest

from serving.costs import CostModel, Curve, Duration, Overrun


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_outlier_is_not_seen_and_a_lasting_change_is() -> None:
    duration = Duration(Clock())
    for _ in range(5):
        duration.observe(0.010)
    for outlier in (5.0, 0.0):
        duration.observe(outlier)
        assert duration.value == pytest.approx(0.010)
        duration.observe(0.010)
        duration.observe(0.010)
    for _ in range(30):
        duration.observe(0.020)
    assert duration.value == pytest.approx(0.020, rel=0.05)


def test_what_is_not_measured_again_falls_back_to_the_lowest() -> None:
    clock = Clock()
    duration = Duration(clock)
    for seconds in [0.010] * 3 + [0.1] * 30:
        duration.observe(seconds)
    slow = duration.value
    assert slow > 0.09
    clock.now += 1.0
    assert duration.value == pytest.approx(0.010 + (slow - 0.010) / 2)
    clock.now += 20.0
    assert duration.value == pytest.approx(0.010, rel=0.01)


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    clock = Clock()
    duration = Duration(clock)
    for seconds in (0.010, 0.010, 0.050, 0.050):
        duration.observe(seconds)
    before = duration.value
    clock.now -= 3600.0
    assert duration.value == pytest.approx(before)
    duration.observe(-3600.0)
    assert duration.value >= 0.010


def test_nothing_known_costs_nothing_and_takes_whole_batches() -> None:
    curve = CostModel(8, Clock()).curve()
    assert curve.seconds == (0.0,) * 9
    assert curve.choose(5) == 5


def test_the_buckets_are_powers_of_two_and_the_largest() -> None:
    assert CostModel(1, Clock()).buckets == [1]
    assert CostModel(8, Clock()).buckets == [1, 2, 4, 8]
    assert CostModel(12, Clock()).buckets == [1, 2, 4, 8, 12]


def test_sizes_that_were_not_measured_lie_between_those_that_were() -> None:
    costs = CostModel(10, Clock())
    costs.observe(2, 0.020)
    costs.observe(4, 0.030)
    costs.observe(8, 0.100)
    seconds = costs.curve().seconds
    assert seconds[1:] == pytest.approx((0.020, 0.020, 0.025, 0.030, 0.0475, 0.065, 0.0825, 0.100, 0.1125, 0.125))


@pytest.mark.parametrize(
    ("seconds", "best"),
    [((1.0, 1.1, 1.2, 1.3), 4), ((1.0, 2.0, 3.0, 4.0), 1), ((1.0, 1.2, 1.8, 2.4), 2), ((1.0, 2.0, 3.0, 3.95), 1)],
)
def test_of_sizes_that_cost_the_same_a_frame_the_smallest_is_chosen(seconds: tuple[float, ...], best: int) -> None:
    assert Curve((0.0, *seconds), 0.0).best == best


def test_a_line_is_worked_off_in_the_best_batches() -> None:
    curve = Curve((0.0, 1.0, 1.2, 1.8, 2.4), 0.0)
    assert curve.clear(0) == 0.0
    assert curve.clear(5) == pytest.approx(1.2 + 1.2 + 1.0)


def test_broken_promises_make_the_next_ones_longer_until_few_are_broken() -> None:
    random, overrun = Random(5), Overrun()  # noqa: S311
    lost = 0
    for index in range(20_000):
        promised_s = 0.05
        budget_s = promised_s * (1.0 + overrun.value)  # let in as late as can be
        late = promised_s * random.uniform(0.8, 1.5) > budget_s
        overrun.observe(promised_s, budget_s, lost=late)
        lost += late and index >= 2_000
    assert lost / 18_000 == pytest.approx(0.002, abs=0.001)
    assert 0.3 < overrun.value < 0.6


def test_frames_with_plenty_of_time_say_nothing_about_promises() -> None:
    overrun = Overrun()
    overrun.observe(0.01, 0.02, lost=True)
    learned = overrun.value
    for _ in range(1_000):
        overrun.observe(0.01, 10.0, lost=False)
    assert overrun.value == learned > 0.0


def test_what_a_batch_costs_beside_its_frames_counts_where_an_inference_costs_next_to_nothing() -> None:
    assert Curve((0.0, 0.0001, 0.0002, 0.0003, 0.0004), 0.0).best == 4
    assert Curve((0.0, 0.010, 0.020, 0.030, 0.040), 0.0).best == 1


def test_a_frame_with_the_machine_to_itself_is_not_measured_by_a_busy_one() -> None:
    clock = Clock()
    costs = CostModel(4, clock)
    costs.observe_at_rest(0.010)
    for size in costs.buckets:
        costs.observe(size, 0.020 * size)
    assert costs.curve().alone == pytest.approx(0.010)
    assert costs.curve().seconds[1] == pytest.approx(0.020)
    assert costs.curve().within(0.05).alone == pytest.approx(0.010)


def test_what_is_measured_later_counts_for_a_frame_alone_too() -> None:
    costs = CostModel(4, Clock())
    costs.observe_at_rest(0.010)
    for _ in range(40):
        costs.observe(1, 0.030)
    assert costs.curve().alone == pytest.approx(0.030, rel=0.05)


def test_promises_after_a_rehearsal_begin_with_a_margin_that_is_given_up_as_they_are_kept() -> None:
    overrun = Overrun()
    overrun.rehearsed()
    first = overrun.value
    assert first > 0.2
    for _ in range(5_000):
        overrun.observe(0.05, 0.05 * (1.0 + overrun.value), lost=False)
    assert overrun.value < first / 2
