"""The evidence sheet of a part or a lot: one self-contained HTML file that shows what was decided, and on what."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from serving.audit import schema
from serving.audit.chain import link
from serving.audit.export import every
from serving.audit.frames import jpeg, picture, seen_picture, stored_frame, stored_maps
from serving.audit.records import Answer, PersonVerdict, Review
from serving.audit.search import AnswerRow, Search, reviews_of
from serving.audit.signing import Checkpoint, PublicKey, kept_checkpoints
from serving.audit.store import Store
from vision.errors import AuditError, DefectLensError, SettingsError
from vision.types import Verdict

SHOWN = 50
"""Answers that are shown with pictures; of more, those that were no plain passes come first."""
_MOST = 20_000
_LONGEST_PX = 900


def write_evidence(store: Store, wanted: Search, path: Path, *, title: str, key: PublicKey | None) -> int:
    """Write the sheet of all answers that are wanted; how many there are.

    Every record on it is checked against its digest and every picture against its own while it is made.

    Args:
        key: whose checkpoints are named; None names none.

    Raises:
        SettingsError: there is no such answer, or there are too many for a sheet.
        AuditError: a record was changed. No sheet is made of it.
    """
    rows = list(islice(every(store, wanted), _MOST + 1))
    if not rows:
        raise SettingsError(f"the store has no answer of {title}")
    if len(rows) > _MOST:
        raise SettingsError(
            f"{title} has more than {_MOST} answers, too many for a sheet; ask for less, or for Parquet"
        )
    digests = _checked(store, [row.seq for row in rows])
    first = sorted(rows, key=lambda row: (row.verdict is Verdict.PASS and row.review is None, row.seq))[:SHOWN]
    shown = sorted(first, key=lambda row: row.seq)
    page = Template(Path(__file__).with_name("evidence.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        answers=len(rows),
        store=escape(store.store_id),
        made=_time(int(datetime.now(UTC).timestamp() * 1e9)),
        basis=_basis(store, rows, key),
        parts="".join(_part(store, row, digests[row.seq]) for row in shown),
        rest=_list(rows, digests) if len(rows) > len(shown) else "",
    )
    path.write_text(page, encoding="utf-8")
    return len(rows)


def _checked(store: Store, seqs: Sequence[int]) -> dict[int, str]:
    """By number the digests of records, in hex, each of which fits its record."""
    table, digests = schema.records.c, {}
    for start in range(0, len(seqs), 500):
        columns = (table.seq, table.previous, table.digest, table.body)
        query = select(*columns).where(table.seq.in_(seqs[start : start + 500]))
        with store.reading() as connection:
            for seq, previous, digest, body in connection.execute(query):
                if link(previous, body) != digest or json.loads(body)["seq"] != seq:
                    raise AuditError(
                        f"record {seq} was changed after it was written, so no evidence can be made of it; `defectlens "
                        "audit verify` shows what else was"
                    )
                digests[seq] = digest.hex()
    return digests


def _basis(store: Store, rows: Sequence[AnswerRow], key: PublicKey | None) -> str:
    covering = _covering(store, rows[-1].seq, key)
    signed = "No signed checkpoint covers all of these records yet."
    if covering is not None:
        signed = (
            f"Record {covering.seq}, signed {_time(covering.time_ns)} with the key <code>{covering.key}</code>, comes "
            "after all of these and so speaks for them."
        )
    return (
        "<p>Each record below fits the digest that it has in the store's chain, and each picture the digest in its "
        "record; that was checked while this sheet was made. Whether the whole chain is intact is what <code>"
        f"defectlens audit verify</code> shows.</p><p>{signed}</p>"
    )


def _covering(store: Store, seq: int, key: PublicKey | None) -> Checkpoint | None:
    """The first valid checkpoint at or behind a record."""
    if key is None:
        return None
    valid = (one for one in kept_checkpoints(store) if one.seq >= seq and key.signed(one))
    return next(valid, None)


def _part(store: Store, row: AnswerRow, digest: str) -> str:
    answer = store.answer(row.seq)
    heading = " · ".join(
        escape(text)
        for text in (answer.part or answer.request_id, answer.lot, answer.camera, _time(row.time_ns))
        if text
    )
    facts = [
        ("Reason", escape(answer.reason)),
        ("Model", _model(answer)),
        ("Anomaly score", _score(answer)),
        ("Classes", escape(", ".join(f"{one.name} {_share(one.score)}" for one in answer.classes))),
        ("Regions", escape("; ".join(f"{one.label} at {one.box}, {one.area_px} px" for one in answer.regions))),
        ("Request", escape(answer.request_id)),
        ("Times", _times(answer)),
        ("Record", f"{row.seq}, digest <code>{digest}</code>"),
        ("Frame", "" if answer.frame is None else f"SHA-256 <code>{answer.frame.sha256}</code>"),
    ]
    table = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in facts if value)
    verdict = f'<span class="{answer.verdict.name}">{answer.verdict.name}</span>'
    said = f" {escape(answer.predicted)}" if answer.predicted else ""
    return (
        f'<section class="card"><h2>{verdict}{said}</h2><p class="soft">{heading}</p>{_pictures(store, answer)}'
        f"<table>{table}</table>{_reviews(store, row.seq)}</section>"
    )


def _pictures(store: Store, answer: Answer) -> str:
    if answer.frame is None:
        return '<p class="soft">No frame was kept of this answer.</p>'
    try:
        frame = stored_frame(store, answer)
    except DefectLensError as error:
        return f'<p class="soft">The frame cannot be shown: {escape(str(error))}</p>'
    size = f"{answer.frame_width} × {answer.frame_height} px" if answer.frame_width else ""
    figures = [_figure_of(picture(frame, _LONGEST_PX), f"The frame as it came in. {size}")]
    try:
        seen = seen_picture(frame, answer, stored_maps(store, answer), _LONGEST_PX)
    except AuditError as error:
        return "".join(figures) + f'<p class="soft">The maps cannot be shown: {escape(str(error))}</p>'
    if seen is not None:
        figures.append(_figure_of(seen, "What the model saw, and the regions that it found."))
    return f'<div class="pictures">{"".join(figures)}</div>'


def _figure_of(pixels: NDArray[np.uint8], words: str) -> str:
    data = base64.b64encode(jpeg(pixels)).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{escape(words)}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _reviews(store: Store, seq: int) -> str:
    rows = ""
    for stored in reviews_of(store, seq):
        review = stored.record
        if isinstance(review, Review):
            what = "took the review before back" if review.verdict is PersonVerdict.WITHDRAWN else review.verdict.value
            cells = (
                _time(stored.time_ns),
                escape(review.person),
                escape(f"{what} {review.label}"),
                escape(review.note),
            )
            rows += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    if not rows:
        return '<p class="soft">No person has spoken about this part.</p>'
    head = "".join(f"<th>{name}</th>" for name in ("When", "Who", "What", "Note"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _list(rows: Sequence[AnswerRow], digests: dict[int, str]) -> str:
    names = ("Record", "When", "Part", "Camera", "Verdict", "Class", "Score", "Person", "Digest")
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for row in rows:
        person = "" if row.review is None else f"{row.review.verdict.value} ({row.review.person})"
        texts: tuple[Any, ...] = (row.seq, _time(row.time_ns), row.part, row.camera, row.verdict.name, row.predicted)
        texts += (_figure(row.anomaly_score), person, digests[row.seq][:16])
        lines.append(f"<tr>{''.join(f'<td>{escape(str(text))}</td>' for text in texts)}</tr>")
    return (
        f'<section class="card"><h2>All answers</h2><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></section>"
    )


def _model(answer: Answer) -> str:
    model = answer.model
    if model is None:
        return ""
    text = f"{model.name} {model.version} on {model.provider} in {model.precision}"
    return f"{escape(text)}, bundle <code>{model.bundle_digest}</code>"


def _score(answer: Answer) -> str:
    if answer.anomaly_score is None:
        return ""
    point = {} if answer.model is None else answer.model.point
    named = (("reject", "image_threshold"), ("review", "review_threshold"))
    limits = [f"{word} from {point[name]:.4g}" for word, name in named if point.get(name) is not None]
    return escape(f"{answer.anomaly_score:.6g}" + (f" ({', '.join(limits)})" if limits else ""))


def _times(answer: Answer) -> str:
    taken = "" if answer.captured_ns is None else f"taken {_time(answer.captured_ns)}, "
    took = answer.timings_ms.get("total_ms")
    return f"{taken}received {_time(answer.received_ns)}" + ("" if took is None else f", answered after {took:.1f} ms")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(sep=" ", timespec="milliseconds")
