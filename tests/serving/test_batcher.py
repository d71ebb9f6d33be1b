"""The scheduler on a virtual machine: the same on every run, without a sleep."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from serving.waiting import Ride, Ticket
from tests.serving.virtual import UNLUCKY, Rig, linear, outcomes, shared, simulate, values
from vision.errors import DeadlineError, OverloadedError


def until_four(size: int) -> float:
    """Beyond 4 frames a batch is as dear a frame as 4 are."""
    return 0.010 + 0.010 * size if size <= 4 else 0.0125 * size


def test_frames_ride_together_and_get_their_own_rows() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        return await outcomes([rig.send(value) for value in range(6)])

    results, rig = simulate(story, shared, prepare_s=0.001, threads=8)
    assert values(results) == list(range(6))
    assert rig.batches == [[0, 1, 2, 3], [4, 5]]
    assert [ride.batch_size for ride in results if isinstance(ride, Ride)] == [4, 4, 4, 4, 2, 2]


def test_one_frame_that_breaks_the_batch_fails_alone() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        return await outcomes([rig.send(value) for value in (1, UNLUCKY, 3)])

    results, _ = simulate(story, shared, prepare_s=0.001, threads=4)
    assert isinstance(results[1], ValueError)
    assert values(results) == [1.0, 3.0]


def test_a_frame_that_cannot_be_prepared_fails_alone() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        def broken() -> None:
            raise ValueError("no image")

        bad = rig.batcher.admit(broken, camera="a")  # type: ignore[arg-type]
        return await outcomes([rig.answer(0, bad), rig.send(1)])

    results, rig = simulate(story, shared)
    assert isinstance(results[0], ValueError)
    assert rig.batches == [[1]]


@pytest.mark.parametrize(("cost", "largest"), [(shared, 8), (until_four, 4), (linear, 1)])
def test_a_batch_is_no_larger_than_it_pays(cost: object, largest: int) -> None:
    async def story(rig: Rig) -> None:
        await outcomes([rig.send(value) for value in range(100, 132)])

    _, rig = simulate(story, cost, max_batch=8, threads=32)  # type: ignore[arg-type]
    assert max(map(len, rig.batches)) == largest
    assert sum(map(len, rig.batches)) == 32


def test_a_lone_frame_does_not_wait() -> None:
    async def story(rig: Rig) -> Ride:
        return await rig.send(1)

    ride, _ = simulate(story, shared, max_wait_s=5.0)
    assert ride.queue_ms == pytest.approx(0.0, abs=0.01)


async def _two_with_one_behind(rig: Rig) -> list[Ride | BaseException]:
    """The second frame is prepared 4 ms after the first."""
    first = rig.send(1)
    await asyncio.sleep(0.004)
    return await outcomes([first, rig.send(2)])


def test_a_frame_waits_for_one_that_is_on_its_way_if_that_saves_more() -> None:
    _, rig = simulate(_two_with_one_behind, shared, prepare_s=0.006, max_wait_s=0.005)
    assert rig.batches == [[1, 2]]


@pytest.mark.parametrize(("cost", "max_wait_s"), [(shared, 0.001), (linear, 0.005)])
def test_a_frame_waits_no_longer_than_allowed_or_worth_it(cost: object, max_wait_s: float) -> None:
    _, rig = simulate(_two_with_one_behind, cost, prepare_s=0.006, max_wait_s=max_wait_s)  # type: ignore[arg-type]
    assert rig.batches == [[1], [2]]


@pytest.mark.parametrize(("within", "answered_s"), [(None, 0.024), (0.0245, 0.0225)])
def test_a_wait_ends_when_it_costs_more_than_it_saves_or_a_deadline(within: float | None, answered_s: float) -> None:
    async def story(rig: Rig) -> float:
        start = rig.clock()
        first = rig.send(1, within=within)
        await asyncio.sleep(0.004)
        rig.prepare_s = 0.030  # 2 + 30 ms after the first is ready; an inference of both would save 8 ms
        await outcomes([first, rig.send(2)])
        return rig.finished[1] - start

    took_s, rig = simulate(story, shared, prepare_s=0.006, max_wait_s=1.0)
    assert took_s == pytest.approx(answered_s, abs=0.0011)  # a timer is at least 0.5 ms
    assert rig.batches == [[1], [2]]


def test_the_earliest_deadline_goes_first_and_distant_ones_are_like_none() -> None:
    async def story(rig: Rig) -> None:
        tasks = [rig.send(0)]
        await asyncio.sleep(0.001)
        tasks += [rig.send(1, within=0.3), rig.send(2, "b"), rig.send(3, within=0.05), rig.send(4, within=0.2)]
        tasks += [rig.send(5, "c", within=30.0), rig.send(6, "d", within=1.2)]
        await outcomes(tasks)

    _, rig = simulate(story, linear, max_batch=1)
    assert rig.batches == [[0], [3], [4], [1], [2], [5], [6]]


def test_preparation_goes_by_urgency_too() -> None:
    async def story(rig: Rig) -> None:
        tasks = [rig.send(value, within=5.0) for value in range(6)]
        await asyncio.sleep(0.001)
        await outcomes([*tasks, rig.send(9, within=1.0)])

    _, rig = simulate(story, linear, prepare_s=0.01, threads=1)
    assert rig.prepared.index(9) <= 2  # behind the one in the thread and the one handed over with it


@pytest.mark.parametrize("within", [None, 30.0])
def test_frames_that_are_in_no_hurry_do_not_starve(within: float | None) -> None:
    async def story(rig: Rig) -> float:
        start = rig.clock()
        tasks = [rig.send(2, "hasty", within=0.04) for _ in range(2)]
        await asyncio.sleep(0.001)
        patient = rig.send(1, "patient", within)
        for _ in range(300):  # frames with deadlines as fast as the engine can take them
            tasks.append(rig.send(2, "hasty", within=0.04))
            await asyncio.sleep(0.01)
            if patient.done():
                break
        await outcomes(tasks)
        return rig.finished[1] - start

    waited_s, _ = simulate(story, linear, max_batch=1)
    assert 0.5 < waited_s < 1.1


def test_a_flood_without_deadlines_takes_turns_with_the_others() -> None:
    async def story(rig: Rig) -> None:
        flood = [rig.send(value, "flood") for value in range(30)]
        await asyncio.sleep(0.002)
        await outcomes([*flood, rig.send(100, "calm"), rig.send(101, "calm")])

    _, rig = simulate(story, linear, max_batch=1, threads=40)
    order = [batch[0] for batch in rig.batches]
    assert order.index(100) <= 2
    assert order.index(101) <= 4


def test_a_flood_with_deadlines_pushes_nobody_out() -> None:
    async def story(rig: Rig) -> dict[str, Counter[str]]:
        came: dict[str, Counter[str]] = {"flood": Counter(), "calm": Counter()}

        async def one(value: int, camera: str) -> None:
            try:
                await rig.send(value, camera, within=0.05)
                came[camera]["answered"] += 1
            except (DeadlineError, OverloadedError) as error:
                came[camera][type(error).__name__] += 1

        async def camera(name: str, every_s: float, count: int) -> None:
            tasks = []
            for value in range(count):
                tasks.append(asyncio.create_task(one(100 + value % 100, name)))
                await asyncio.sleep(every_s)
            await asyncio.gather(*tasks)

        await asyncio.gather(camera("flood", 0.001, 5000), camera("calm", 0.0501, 100))
        return came

    came, _ = simulate(story, linear, max_batch=1)
    assert came["calm"]["answered"] >= 99
    assert came["flood"]["answered"] >= 350  # what is left is not wasted
    assert sum(came["flood"].values()) == 5000


def test_when_the_server_is_full_the_camera_with_most_frames_gives_way() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        flood = [rig.send(value, "flood") for value in range(10)]
        await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError, match="10 frames are in work"):
            rig.send(10, "flood")
        calm = [rig.send(value, "calm") for value in (20, 21, 22)]
        with pytest.raises(OverloadedError):  # they have a fair part by now
            rig.send(23, "calm")
        return await outcomes([*flood, *calm])

    results, rig = simulate(story, linear, max_batch=1, max_queue=10)
    gave_way = [index for index, result in enumerate(results) if isinstance(result, OverloadedError)]
    assert gave_way == [7, 8, 9]  # the newest of the flood
    assert "camera 'flood'" in str(results[9])
    assert len(rig.batches) == 10


def test_frames_of_streams_wait_for_a_place_and_give_way_to_nobody() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        tasks = [rig.send(value, "stream", may_wait=True) for value in range(9)]
        await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError):
            rig.send(20, "other")
        return await outcomes(tasks)

    results, _ = simulate(story, linear, max_batch=1, max_queue=3)
    assert sorted(values(results)) == list(range(9))


def test_bytes_are_bounded_and_a_single_frame_is_always_let_in() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        tasks = [rig.send(1, size=500)]
        with pytest.raises(OverloadedError, match="500 bytes") as caught:
            rig.send(2, size=1)
        assert caught.value.retry_after_s == pytest.approx(0.010)
        tasks += [rig.send(value, size=60, may_wait=True) for value in (3, 4, 5)]
        return await outcomes(tasks)

    results, rig = simulate(story, shared, max_bytes=100)
    assert values(results) == [1.0, 3.0, 4.0, 5.0]
    assert rig.batches == [[1], [3], [4], [5]]  # never two of 60 bytes at once


def test_a_deadline_that_nobody_could_meet_costs_nothing() -> None:
    async def story(rig: Rig) -> None:
        with pytest.raises(DeadlineError, match="nothing was spent"):
            rig.send(1, within=0.009)
        with pytest.raises(DeadlineError, match="deadline passed"):
            rig.send(2, within=-1.0)

    _, rig = simulate(story, linear)
    assert rig.batches == rig.prepared == []


def test_a_deadline_behind_too_much_work_is_refused_at_once_with_a_time_that_holds() -> None:
    async def story(rig: Rig) -> None:
        tasks = [rig.send(value, within=0.05) for value in range(5)]
        await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError) as caught:
            rig.send(100, within=0.05)
        assert caught.value.retry_after_s is not None
        await asyncio.sleep(caught.value.retry_after_s)
        await outcomes([*tasks, rig.send(100, within=0.05)])

    _, rig = simulate(story, linear, max_batch=1)
    assert sum(batch == [100] for batch in rig.batches) == 1


def test_frames_that_come_in_the_same_turn_of_the_loop_ride_together_at_once() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        return await outcomes([rig.send(value, light=True) for value in range(4)])

    _, rig = simulate(story, shared)
    assert rig.batches == [[0, 1, 2, 3]]


def test_light_frames_are_prepared_where_they_stand_and_fail_alone() -> None:
    async def story(rig: Rig) -> list[Ride | BaseException]:
        def broken() -> None:
            raise ValueError("no image")

        bad = rig.batcher.admit(broken, camera="a", light=True)  # type: ignore[arg-type]
        heavy = [rig.send(value) for value in range(8)]  # they occupy the only thread
        return await outcomes([rig.answer(0, bad), rig.send(9, camera="b", light=True), *heavy])

    results, rig = simulate(story, shared, prepare_s=0.05, threads=1, max_batch=1)
    assert isinstance(results[0], ValueError)
    assert rig.batches[0] == [9]


def test_the_engine_sets_off_again_before_answers_are_made() -> None:
    async def story(rig: Rig) -> None:
        tickets = [rig.admit(value, light=True) for value in range(4)]

        async def answer(ticket: Ticket) -> None:
            await ticket.ride
            busy.append(rig.batcher._inference.is_busy)
            rig.batcher.release(ticket, finished=True)

        await asyncio.gather(*map(answer, tickets))

    busy: list[bool] = []
    simulate(story, linear, max_batch=1)
    assert busy == [True, True, True, False]
