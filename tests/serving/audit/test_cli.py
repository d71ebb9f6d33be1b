"""``defectlens audit`` on the store of a real server."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from defectlens import main
from serving.audit import Action, PersonVerdict, Review, Search, Store, search
from serving.messages import RawImage
from serving.recording_options import AuditSettings
from tests.fakes import part, textured
from tests.serving.conftest import Serve, png
from vision.preprocess import PixelFormat


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


def figures(result: Result) -> dict[str, Any]:
    """The JSON line at the end of stdout."""
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture
async def audit(serve: Serve, tmp_path: Path) -> Path:
    """The folder of a store with frames of several kinds, some of which rode in one batch."""
    folder = tmp_path / "audit"
    async with serve(audit=AuditSettings(where=str(folder))) as (_, client):
        for number in range(4):
            await client.inspect(png(textured(str(number))), part_id=f"A-{number}", lot="L1", camera_id="left")
        await client.inspect(png(part(spot=255)), part_id="A-9", lot="L1", camera_id="right")
        pixels = textured("raw")[:, :, 0].copy()
        await client.inspect(RawImage(pixels.tobytes(), 96, 64, PixelFormat.MONO8), part_id="A-10", lot="L2")
    with Store.open(folder) as store:
        seq = search(store, Search(part="A-9")).answers[0].seq
        review = Review(answer=seq, person="eva <b>", verdict=PersonVerdict.GOOD, note="only <dirt>")
        store.append([review, Action(action="login", person="eva")])
    return folder


async def test_verify_says_what_is_proved_and_by_what(audit: Path, tmp_path: Path) -> None:
    result = run("verify", audit, "--json")
    assert result.exit_code == 0, result.output
    assert figures(result)["intact"] is True
    assert "are not signed yet" in result.output  # the review came after the server's last signature
    exported, key = tmp_path / "checkpoints", tmp_path / "key.pub"
    done = run("checkpoints", audit, "--sign", "--out", exported, "--public-key-out", key, "--json")
    assert done.exit_code == 0, done.output
    result = run("verify", audit, "--checkpoints", exported, "--public-key", key, "--json")
    found = figures(result)
    assert (found["signed"], found["problems"]) == (found["records"], [])
    assert "note" not in result.output


async def test_verify_fails_on_an_altered_frame(audit: Path) -> None:
    with Store.open(audit) as store:
        frame = store.files.path(search(store, Search(part="A-1")).answers[0].frame)
    frame.write_bytes(frame.read_bytes()[:-1] + b"?")
    result = run("verify", audit)
    assert result.exit_code == 1
    assert "the frame of record 4 was changed" in result.output
    assert run("verify", audit, "--no-files").exit_code == 0


async def test_replay_gives_the_same_scores_bit_for_bit(audit: Path) -> None:
    for chosen in (("--lot", "L1"), ("--lot", "L2"), ("--seq", "7")):
        result = run("replay", audit, *chosen, "--json")
        assert result.exit_code == 0, result.output
        found = figures(result)
        assert found["bitwise"] == found["answers"] > 0


async def test_replay_on_another_provider_is_within_the_tolerance(audit: Path) -> None:
    result = run("replay", audit, "--lot", "L1", "--provider", "openvino", "--json")
    assert result.exit_code == 0, result.output
    assert figures(result)["reproduced"] == 5
    assert {one["provider"] for one in figures(result)["replays"]} == {"OpenVINO"}


async def test_replay_notices_an_answer_that_the_model_does_not_give(audit: Path) -> None:
    """Whoever holds the key can write false records that verify; the model does not bear them out."""
    with Store.open(audit) as store:
        row = search(store, Search(part="A-9")).answers[0]
        true = store.answer(row.seq)
        store.append([replace(true, part="A-11", anomaly_score=0.01)])
    result = run("replay", audit, "--part", "A-11")
    assert result.exit_code == 1
    assert "NOT REPRODUCED" in result.output


async def test_replay_says_why_it_cannot(audit: Path) -> None:
    run("prune", audit, "--passes-days", "0")
    result = run("replay", audit, "--part", "A-1", "--json")
    assert result.exit_code == 1
    assert "it was pruned" in result.output
    assert figures(result)["not_replayed"] == 1
    assert run("replay", audit, "--part", "nobody").exit_code == 2


async def test_the_evidence_sheet_shows_everything_in_one_file(audit: Path, tmp_path: Path) -> None:
    result = run("export", audit, "--lot", "L1", "--html", tmp_path / "L1.html", "--json")
    assert result.exit_code == 0, result.output
    assert figures(result)["answers"] == 5
    page = (tmp_path / "L1.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 10
    assert "http" not in page
    assert "only &lt;dirt&gt;" in page
    with Store.open(audit) as store:
        assert store.get(search(store, Search(part="A-9")).answers[0].seq).digest in page
    assert "speaks for them" not in page or "signed 2" in page


async def test_no_evidence_is_made_of_a_changed_record(audit: Path, tmp_path: Path) -> None:
    with sqlite3.connect(audit / "records.sqlite") as database:
        database.execute("DROP TRIGGER records_no_update")
        database.execute("UPDATE records SET body = replace(body, 'REJECT', 'PASS') WHERE kind = 'answer'")
    result = run("export", audit, "--part", "A-9", "--html", tmp_path / "sheet.html")
    assert result.exit_code == 1
    assert "was changed after it was written" in result.output
    assert not (tmp_path / "sheet.html").exists()


async def test_the_table_has_answers_and_what_was_said_about_them(audit: Path, tmp_path: Path) -> None:
    result = run("export", audit, "--parquet", tmp_path / "answers.parquet", "--json")
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["part"] for row in rows] == ["A-0", "A-1", "A-2", "A-3", "A-9", "A-10"]
    reject = rows[4]
    assert (reject["verdict"], reject["review_verdict"]) == ("REJECT", "good")
    assert (reject["review_disagreement"], reject["review_note"]) == ("overkill", "only <dirt>")
    assert {name for name, _ in reject["class_scores"]} == {"good", "bright", "dark"}
    assert json.loads(reject["record"])["part"] == "A-9"
    assert run("export", audit, "--parquet", tmp_path / "x", "--until", "2020-01-01", "--json").exit_code == 0
    assert pq.read_table(tmp_path / "x").num_rows == 0
    assert run("export", audit, "--html", tmp_path / "all.html").exit_code == 2


async def test_prune_is_told_and_recorded(audit: Path) -> None:
    result = run("prune", audit, "--passes-days", "0", "--by", "eva", "--dry-run", "--json")
    would = figures(result)
    assert would["files"] > 0
    done = figures(run("prune", audit, "--passes-days", "0", "--by", "eva", "--json"))
    assert done["files"] == would["files"]
    assert figures(run("verify", audit, "--json"))["pruned"] == done["files"]
    assert run("prune", audit).exit_code == 2


def decide(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


async def test_what_if_replays_the_answers_of_a_store(audit: Path, tmp_path: Path) -> None:
    out = tmp_path / "whatif"
    result = decide("whatif", "--audit", audit, "--image-threshold", "0.9", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = figures(result)
    assert (found["frames"], found["changes"]) == (6, 1)  # the spot's score is 0.5
    document = json.loads((out / "whatif.json").read_text())
    assert document["rates"]["as it was"]["overkill_rate"]["value"] == 1.0  # of the one part that a person spoke about
    assert document["changes"][0]["name"].startswith("A-9 (record ")
    assert any("people said" in note for note in document["notes"])
    lot = decide("whatif", "--audit", audit, "--lot", "L2", "--image-threshold", "0.9", "--out", out, "--json")
    assert figures(lot)["frames"] == 1
    assert decide("whatif", "--image-threshold", "0.9", "--out", out).exit_code == 2
    assert decide("whatif", "--audit", audit, "--lot", "none", "--image-threshold", "1", "--out", out).exit_code == 2


async def test_escapes_come_from_parts_that_were_drawn_at_random(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    async with serve(audit=AuditSettings(where=str(folder), sample=1.0)) as (_, client):
        for number in range(4):
            await client.inspect(png(textured(str(number))), camera_id="left")
    assert decide("escapes", "--audit", folder).exit_code == 2  # nobody has looked yet
    with Store.open(folder) as store:
        seqs = [row.seq for row in search(store).answers]
        said = [PersonVerdict.GOOD, PersonVerdict.DEFECT, PersonVerdict.GOOD]
        store.append([Review(answer=seq, person="eva", verdict=one) for seq, one in zip(seqs, said, strict=False)])
    result = decide("escapes", "--audit", folder, "--camera", "left", "--json")
    assert result.exit_code == 0, result.output
    found = figures(result)
    assert (found["checked"], found["found"], found["passed"], found["count"]) == (3, 1, 4, [1, 2])
    assert decide("escapes", "--audit", folder, "--checked", "3", "--found", "0").exit_code == 2
    assert decide("escapes", "--camera", "left", "--checked", "3", "--found", "0").exit_code == 2
