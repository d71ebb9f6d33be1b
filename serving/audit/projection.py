"""From a record's body to the rows that it is searched by. Verification does the same again and compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table

from serving.audit import schema
from serving.audit.records import Kind, PersonVerdict
from vision.types import Verdict

TABLES: dict[Kind, Table] = {
    Kind.ANSWER: schema.answers,
    Kind.REVIEW: schema.reviews,
    Kind.ACTION: schema.actions,
    Kind.PRUNE: schema.pruned,
}
"""Where the rows of each kind of record stand."""

Row = dict[str, Any]


def rows_of(body: Mapping[str, Any]) -> list[Row]:
    """Rows of ``TABLES[kind]``: one a record, and of a prune one a file."""
    kind = Kind(body["kind"])
    if kind is Kind.ANSWER:
        return [_answer(body)]
    if kind is Kind.REVIEW:
        names = ("seq", "time_ns", "answer", "person", "verdict", "label", "blind", "disagreement", "supersedes")
        return [{name: body[name] for name in names}]
    if kind is Kind.ACTION:
        return [{name: body[name] for name in ("seq", "time_ns", "action", "person", "subject")}]
    return [{"sha256": sha256, "seq": body["seq"]} for sha256 in body["removed"]]


def _answer(body: Mapping[str, Any]) -> Row:
    model, frame, maps = body["model"] or {}, body["frame"] or {}, body["maps"] or {}
    same = ("seq", "time_ns", "request_id", "part", "lot", "camera", "station")
    return {
        **{name: body[name] for name in same},
        "verdict": int(Verdict[body["verdict"]]),
        "predicted": body["predicted"],
        "anomaly_score": body["anomaly_score"],
        "error": body["error"],
        "model": model.get("name", ""),
        "model_version": model.get("version", ""),
        "bundle_digest": model.get("bundle_digest", ""),
        "frame": frame.get("sha256", ""),
        "media": frame.get("media", ""),
        "maps": maps.get("sha256", ""),
        "total_ms": body["timings_ms"].get("total_ms"),
        "sampled": body["sampled"],
    }


def waits_for_person(row: Row) -> bool:
    """Whether an answer (its row) goes to the worklist: there is something to look at, and a reason to."""
    return bool(row["frame"]) and (row["verdict"] != Verdict.PASS or row["sampled"])


def kept_longer(body: Mapping[str, Any]) -> bool:
    """Whether the files of a record outlive those of plain passes."""
    kind = Kind(body["kind"])
    if kind is Kind.ANSWER:
        return bool(body["verdict"] != Verdict.PASS.name)
    return kind is Kind.REVIEW and body["verdict"] == PersonVerdict.DEFECT
