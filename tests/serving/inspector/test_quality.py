"""Reports, history and what is taken out as training data."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from defectlens import main
from serving.audit import (
    Blob,
    Disagreement,
    PersonVerdict,
    Review,
    Search,
    Span,
    Store,
    actions,
    search,
)
from serving.inspector.feedback import export, folder_name
from serving.inspector.pages_history import read_search
from serving.inspector.quality import MAP_COLUMNS, quality
from tests.serving.inspector import plates
from tests.serving.inspector.conftest import Page
from tests.serving.inspector.test_safety import sign_in
from training.data import read_data
from vision.errors import SettingsError
from vision.types import Verdict

PARTS = range(6, 30)
"""Numbers of the answers of the filled store: five accounts were made before them."""


def of(store: Store, verdict: Verdict) -> list[int]:
    return [seq for seq in PARTS if store.answer(seq).verdict is verdict]


def say(store: Store, seq: int, person: str, verdict: PersonVerdict, **fields: object) -> None:
    store.append([replace(Review(answer=seq, person=person, verdict=verdict), **fields)])


def test_a_report_counts_what_people_said(store: Store) -> None:
    rejects, passes = of(store, Verdict.REJECT), of(store, Verdict.PASS)
    for index, seq in enumerate(rejects[:6]):
        say(store, seq, "eva", PersonVerdict.GOOD if index < 2 else PersonVerdict.DEFECT, blind=index % 2 == 0)
    drawn = [seq for seq in passes if store.answer(seq).sampled]
    for seq in drawn:
        say(store, seq, "ivan", PersonVerdict.GOOD)
    say(store, rejects[0], "ivan", PersonVerdict.DEFECT)
    say(store, rejects[2], "ivan", PersonVerdict.UNSURE)
    found = quality(store, Span())
    assert found.total.total == len(PARTS)
    assert (found.false_rejects.hits, found.false_rejects.of) == (1, 5)
    assert found.overkill is not None
    assert found.overkill[0] < found.overkill[1] < found.overkill[2]
    assert found.escapes is not None
    assert (found.sampled.checked, found.sampled.found) == (len(drawn), 0)
    # Six of eva's, ivan's spot checks, and his other opinion about a reject.
    assert (found.model.of, found.model.agreed) == (6 + len(drawn) + 1, 4 + len(drawn) + 1)
    assert found.model_blind.of == 3
    assert [(pair.people, pair.agreement.of, pair.agreement.agreed) for pair in found.pairs] == [
        (("eva", "ivan"), 1, 0)
    ]
    assert found.positions is not None
    assert found.positions.share.shape[1] == MAP_COLUMNS
    assert 0 < found.positions.share.max() <= 1


def test_defects_lie_on_the_map_where_they_are_on_the_part(store: Store) -> None:
    frame = plates.plate(np.random.default_rng(0))
    cv2.circle(frame, (330, 60), 14, 20, -1)
    judged = plates.judge_plate(frame, "dent", request_id="x", lot="corner", camera="left")
    store.append([judged.answer], judged.blobs)
    positions = quality(store, Span(lot="corner")).positions
    assert positions is not None
    rows, columns = np.nonzero(positions.share)
    assert abs(columns.mean() + 0.5 - 330 / plates.WIDTH * MAP_COLUMNS) < 1
    assert abs(rows.mean() + 0.5 - 60 / plates.HEIGHT * positions.share.shape[0]) < 1


def test_an_empty_report_says_what_is_not_known(page: Page) -> None:
    with sign_in(page.url, "vera") as client:
        text = client.get("/report", params={"lot": "no such lot"}).text
    assert "no parts in this time" in text
    assert "not known" in text


def test_every_field_of_the_search_narrows_it(store: Store) -> None:
    rejects = of(store, Verdict.REJECT)
    say(store, rejects[0], "eva", PersonVerdict.GOOD)
    say(store, rejects[1], "ivan", PersonVerdict.DEFECT, label="stain")
    for asked, least in (
        ({"verdict": "REJECT"}, len(rejects)),
        ({"class": "scratch"}, 3),
        ({"lot": "L2"}, 8),
        ({"camera": "left"}, 12),
        ({"part": "P-00000"}, 1),
        ({"disagreement": "overkill"}, 1),
        ({"disagreement": "any"}, 1),
        ({"person": "eva"}, 1),
        ({"said": "good"}, 1),
        ({"version": "2"}, 0),
        ({"until": "2001-01-01T00:00"}, 0),
    ):
        found = len(search(store, read_search(asked), limit=100).answers)
        assert least <= found < len(PARTS), asked
    assert read_search({"disagreement": "agrees"}).disagreement is Disagreement.NONE
    assert read_search({"lot": "  ", "since": "nonsense"}) == Search()
    with pytest.raises(SettingsError):
        read_search({"verdict": "MAYBE"})


def test_history_goes_on_where_it_ended(page: Page) -> None:
    plates.fill(page.store, 32, seed=1)
    with sign_in(page.url, "vera") as client:
        first = client.get("/history").text
        assert first.count('class="result"') == 48
        address = first.split('hx-get="/history/rows?')[1].split('"')[0].replace("&amp;", "&")
        rest = client.get(f"/history/rows?{address}").text
        assert rest.count('class="result"') == 24 + 32 - 48
        assert "More" not in rest


def corrected(store: Store) -> dict[str, int]:
    """One part of each kind, as people put it right."""
    rejects, passes, review = of(store, Verdict.REJECT), of(store, Verdict.PASS), of(store, Verdict.REVIEW)[0]
    mask = np.zeros((plates.HEIGHT, plates.WIDTH), np.uint8)
    mask[100:120, 200:240] = 255
    blob = Blob.of(cv2.imencode(".png", mask)[1].tobytes(), "image/png")
    escaped = Review(answer=passes[0], person="eva", verdict=PersonVerdict.DEFECT, label="pit/hole", mask=blob.ref)
    store.append([escaped], [blob])
    say(store, rejects[0], "eva", PersonVerdict.GOOD)
    say(store, rejects[1], "eva", PersonVerdict.DEFECT, label=store.answer(rejects[1]).predicted)
    say(store, passes[1], "eva", PersonVerdict.GOOD)
    say(store, review, "eva", PersonVerdict.GOOD)
    say(store, rejects[2], "eva", PersonVerdict.UNSURE)
    say(store, rejects[3], "eva", PersonVerdict.DEFECT)
    store.append([Review(answer=rejects[3], person="eva", verdict=PersonVerdict.WITHDRAWN)])
    return {"escaped": passes[0], "overkill": rejects[0], "confirmed": rejects[1]}


def test_what_people_said_is_a_folder_that_training_reads(store: Store, tmp_path: Path) -> None:
    seqs = corrected(store)
    done = export(store, tmp_path / "out")
    confirmed = store.answer(seqs["confirmed"]).predicted
    assert done.by_label == {"good": 3, confirmed: 1, "pit-hole": 1}
    assert done.masks == 1
    data = read_data(tmp_path / "out")
    assert data.classes == ("good", *sorted(["pit-hole", confirmed]))
    assert len(data.train) == 5
    pit = next(sample for sample in data.train if sample.label == "pit-hole")
    assert pit.mask is not None
    frame = store.answer(seqs["escaped"]).frame
    assert frame is not None
    assert pit.path.read_bytes() == store.files.read(frame.sha256)
    lines = [json.loads(line) for line in (tmp_path / "out" / "feedback.jsonl").read_text().splitlines()]
    assert {line["answer"] for line in lines} >= set(seqs.values())
    with pytest.raises(SettingsError, match="not empty"):
        export(store, tmp_path / "out")


def test_only_what_was_overruled_or_asked(store: Store, tmp_path: Path) -> None:
    corrected(store)
    assert export(store, tmp_path / "out", overruled_alone=True).by_label == {"good": 2, "pit-hole": 1}


@pytest.mark.parametrize(
    ("label", "name"),
    [("pit/hole", "pit-hole"), ("..", "defect"), ("good", "defect"), ("", "defect"), ("Riß 2", "Riß 2")],
)
def test_classes_become_names_of_folders(label: str, name: str) -> None:
    assert folder_name(label) == name


def test_an_engineer_takes_it_out_on_the_page_and_that_is_recorded(page: Page, tmp_path: Path) -> None:
    corrected(page.store)
    with sign_in(page.url, "erik") as client:
        reply = client.post("/feedback", data={"overruled": "true"})
    archive = zipfile.ZipFile(io.BytesIO(reply.content))
    assert sum(name.endswith("_mask.png") for name in archive.namelist()) == 1
    took = actions(page.store, action="export-feedback")
    assert [(one.body["person"], one.body["details"]["images"]) for one in took] == [("erik", 3)]


def test_by_command_too(store: Store, tmp_path: Path) -> None:
    words = ["inspector", "export", "--db", str(tmp_path / "audit"), "--out", str(tmp_path / "out"), "--json"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "nothing to export" in refused.output
    corrected(store)
    done = CliRunner().invoke(main, words)
    assert json.loads(done.stdout.splitlines()[-1])["masks"] == 1
