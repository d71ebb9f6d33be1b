"""What becomes of a person's verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import cv2
import httpx
import numpy as np
import pytest

from serving.audit import PersonVerdict, Review, Store, reviews_of, waiting
from serving.inspector.plans import Plans
from tests.serving.inspector.conftest import Page
from tests.serving.inspector.plates import HEIGHT, WIDTH
from tests.serving.inspector.test_safety import sign_in
from vision.types import Verdict


@pytest.fixture
def eva(page: Page) -> Iterator[httpx.Client]:
    with sign_in(page.url) as client:
        yield client


def shown(text: str) -> int:
    found = re.search(r'data-seq="(\d+)"', text)
    return int(found[1]) if found else 0


def last_review(store: Store, seq: int) -> Review:
    record = reviews_of(store, seq)[-1].record
    assert isinstance(record, Review)
    return record


def test_a_verdict_is_recorded_and_the_next_part_follows(page: Page, eva: httpx.Client) -> None:
    seq = shown(eva.get("/review").text)
    before = waiting(page.store)
    drawing = [{"kind": "polygon", "points": [10, 10, 60, 10, 60, 40, 10, 40]}]
    values = {"verdict": "defect", "label": "dent", "note": "by the left bore", "shapes": json.dumps(drawing)}
    reply = eva.post(f"/review/{seq}", data=values | {"seconds": "3.25"})
    assert shown(reply.text) not in (0, seq)
    assert waiting(page.store).doubtful == before.doubtful - 1
    said = last_review(page.store, seq)
    assert (said.person, said.verdict, said.label, said.note) == ("eva", "defect", "dent", "by the left bore")
    assert said.seconds == 3.2
    assert not said.blind
    assert said.mask is not None
    mask = cv2.imdecode(np.frombuffer(page.store.files.read(said.mask.sha256), np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask[25, 30] == 255
    assert mask[100, 100] == 0
    assert said.regions[0].label == "dent"


def test_a_good_part_keeps_no_class_and_no_drawing(page: Page, eva: httpx.Client) -> None:
    seq = shown(eva.get("/review").text)
    drawing = json.dumps([{"kind": "brush", "points": [10, 10], "width": 9}])
    eva.post(f"/review/{seq}", data={"verdict": "good", "label": "dent", "shapes": drawing})
    said = last_review(page.store, seq)
    assert (said.verdict, said.label, said.mask) == (PersonVerdict.GOOD, "", None)


def test_undo_is_a_further_record_and_brings_the_part_back(page: Page, eva: httpx.Client) -> None:
    seq = shown(eva.get("/review").text)
    eva.post(f"/review/{seq}", data={"verdict": "good"})
    assert shown(eva.post("/review/undo").text) == seq
    assert [one.body["verdict"] for one in reviews_of(page.store, seq)] == ["good", "withdrawn"]
    assert shown(eva.get("/review/next").text) == seq
    nothing = eva.post("/review/undo")
    assert nothing.status_code == 400
    assert "nothing of yours" in nothing.text


def test_undo_of_a_second_thought_brings_the_first_one_back(page: Page, eva: httpx.Client) -> None:
    seq = shown(eva.get("/review").text)
    eva.post(f"/review/{seq}", data={"verdict": "defect", "label": "dent", "single": "true"})
    eva.post(f"/review/{seq}", data={"verdict": "good", "single": "true"})
    eva.post("/review/undo")
    said = last_review(page.store, seq)
    assert (said.verdict, said.label) == (PersonVerdict.DEFECT, "dent")


def test_undo_never_takes_back_what_somebody_else_said(page: Page, eva: httpx.Client) -> None:
    seq = shown(eva.get("/review").text)
    eva.post(f"/review/{seq}", data={"verdict": "good"})
    page.store.append([Review(answer=seq, person="ivan", verdict=PersonVerdict.DEFECT)])
    assert eva.post("/review/undo").status_code == 400
    assert last_review(page.store, seq).person == "ivan"


def test_two_people_never_get_the_same_part(page: Page, eva: httpx.Client) -> None:
    with sign_in(page.url, "ivan") as ivan:
        seen: dict[str, set[int]] = {"eva": set(), "ivan": set()}
        for _ in range(4):
            for name, client in (("eva", eva), ("ivan", ivan)):
                seq = shown(client.get("/review/next").text)
                seen[name].add(seq)
                client.post(f"/review/{seq}", data={"verdict": "unsure"})
        assert len(seen["eva"]) == len(seen["ivan"]) == 4
        assert not seen["eva"] & seen["ivan"]


def test_next_leaves_a_part_open_and_comes_back_to_it(page: Page, eva: httpx.Client) -> None:
    first = seq = shown(eva.get("/review").text)
    total = waiting(page.store)
    order = []
    for _ in range(total.doubtful + total.sampled):
        order.append(seq)
        seq = shown(eva.get("/review/next", params={"skip": seq}).text)
    assert len(set(order)) == len(order)
    assert seq == first


def test_spot_checks_are_mixed_in_before_the_doubtful_parts_are_used_up(store: Store) -> None:
    plans = Plans()
    passed_at = []
    for place in range(12):
        seq = plans.upcoming(store, "eva", ("", ""))[0]
        if store.answer(seq).verdict is Verdict.PASS:
            passed_at.append(place)
        store.append([Review(answer=seq, person="eva", verdict=PersonVerdict.GOOD)])
    assert passed_at
    assert passed_at[0] < waiting(store).doubtful + 12


def test_blind_mode_shows_nothing_of_the_model_before_the_verdict(page: Page, eva: httpx.Client) -> None:
    text = eva.get("/review", params={"blind": "true"}).text
    seq = shown(text)
    answer = page.store.answer(seq)
    panel = text[text.index('id="panel"') : text.index('id="help"')]
    for secret in (answer.reason, "heat.png?", answer.verdict.name.title(), "99 % sure", "Agree"):
        assert secret not in panel
    reply = eva.post(f"/review/{seq}", params={"blind": "true"}, data={"verdict": "good"})
    assert shown(reply.text) == seq
    assert answer.reason in reply.text
    assert last_review(page.store, seq).blind
    # Whoever has seen the model's opinion cannot be blind to it any more.
    eva.post(f"/review/{seq}", params={"blind": "true"}, data={"verdict": "defect"})
    assert not last_review(page.store, seq).blind


def test_a_part_that_was_looked_at_before_is_not_judged_blind(page: Page, eva: httpx.Client) -> None:
    seq = shown(eva.get("/review").text)
    eva.post(f"/review/{seq}", params={"blind": "true"}, data={"verdict": "good"})
    assert not last_review(page.store, seq).blind


def test_what_a_model_asks_about_cannot_be_agreed_with(page: Page, eva: httpx.Client) -> None:
    by_verdict = {answer.verdict: seq for seq, answer in ((seq, page.store.answer(seq)) for seq in range(6, 30))}
    assert "Agree: good part" in eva.get(f"/part/{by_verdict[Verdict.PASS]}").text
    assert "Agree: " in eva.get(f"/part/{by_verdict[Verdict.REJECT]}").text
    assert "Agree" not in eva.get(f"/part/{by_verdict[Verdict.REVIEW]}").text


@pytest.mark.parametrize(
    "values",
    [
        {"verdict": "withdrawn"},
        {"verdict": "defect", "shapes": "no json"},
        {"verdict": "defect", "shapes": '[{"kind": "polygon", "points": [1, 2]}]'},
        {"verdict": "defect", "shapes": '[{"kind": "brush", "points": [1, NaN]}]'},
        {"verdict": "good", "note": "x" * 2001},
    ],
)
def test_what_cannot_be_is_refused_and_not_recorded(page: Page, eva: httpx.Client, values: dict[str, str]) -> None:
    seq = shown(eva.get("/review").text)
    assert eva.post(f"/review/{seq}", data=values).status_code == 400
    assert reviews_of(page.store, seq) == []


def test_names_from_cameras_cannot_become_part_of_the_page(page: Page, eva: httpx.Client) -> None:
    from tests.serving.inspector import plates

    frame = plates.plate(np.random.default_rng(1), "stain")
    bad = "\"'><script>alert(1)</script>"
    judged = plates.judge_plate(frame, "stain", request_id="x", part=bad, lot=bad, camera=bad)
    seq = page.store.append([judged.answer], judged.blobs)[0]
    eva.post(f"/review/{seq}", data={"verdict": "defect", "label": bad[:60], "note": bad})
    for address in (f"/part/{seq}", "/history", "/report", "/review", "/wall"):
        text = eva.get(address).text
        assert "<script>alert" not in text
        assert "'><script" not in text


def test_the_good_part_beside_is_the_most_similar_one_of_the_same_camera(page: Page, eva: httpx.Client) -> None:
    seq = next(one for one in range(20, 40) if page.store.answer(one).verdict is Verdict.REJECT)
    found = eva.get(f"/part/{seq}/alike").json()
    other = page.store.answer(found["seq"])
    assert other.camera == page.store.answer(seq).camera
    assert other.verdict is Verdict.PASS
    assert found["heat"] is None
