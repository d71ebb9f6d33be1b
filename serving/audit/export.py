"""What leaves the store: a table for statistics (Parquet), and an evidence sheet for people (one HTML file)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.audit.chain import canonical
from serving.audit.search import AnswerRow, Search, search
from serving.audit.store import Store
from vision.errors import SettingsError

_CHUNK = 2000


def every(store: Store, wanted: Search) -> Iterator[AnswerRow]:
    """All answers that are wanted, in the order of time."""
    after: int | None = 0
    while after is not None:
        page = search(store, wanted, limit=_CHUNK, after=after)
        yield from page.answers
        after = page.next


def write_parquet(store: Store, wanted: Search, path: Path) -> int:
    """One row an answer, with the review that stands; how many.

    Columns: those of ``AnswerRow``, the review's as ``review_...``, ``digest`` of the record in hex, the class scores
    as maps from class to number, and ``record``, the whole body as JSON.

    Raises:
        SettingsError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise SettingsError(
            "an export to Parquet needs pyarrow; install it with `pip install 'defectlens[parquet]'`"
        ) from error
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _COLUMNS] + _maps(pa))
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(every(store, wanted)):
            found = _rows(store, batch)
            writer.write_table(pa.Table.from_pylist(found, schema=schema))
            rows += len(found)
    return rows


_COLUMNS = (
    ("seq", "int64"),
    ("time_ns", "int64"),
    *((name, "string") for name in ("request_id", "part", "lot", "camera", "station", "verdict", "predicted")),
    ("anomaly_score", "float64"),
    *((name, "string") for name in ("error", "model", "model_version", "bundle_digest", "frame", "media", "maps")),
    ("total_ms", "float64"),
    ("sampled", "bool_"),
    ("review_seq", "int64"),
    ("review_time_ns", "int64"),
    *((f"review_{name}", "string") for name in ("person", "verdict", "label", "disagreement", "note")),
    ("review_blind", "bool_"),
    ("digest", "string"),
    ("reason", "string"),
    ("record", "string"),
)


def _maps(pa: Any) -> list[Any]:
    return [(name, pa.map_(pa.string(), pa.float64())) for name in ("class_scores", "class_probabilities")]


def _batches(rows: Iterator[AnswerRow]) -> Iterator[list[AnswerRow]]:
    batch: list[AnswerRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _CHUNK:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows(store: Store, batch: list[AnswerRow]) -> list[dict[str, Any]]:
    reviews = [row.review.seq for row in batch if row.review is not None]
    stored = {one.seq: one for one in store.many([*(row.seq for row in batch), *reviews])}
    found = []
    for row in batch:
        values: dict[str, Any] = {name: getattr(row, name, None) for name, _ in _COLUMNS}
        body, review = stored[row.seq].body, row.review
        values |= {"verdict": row.verdict.name, "digest": stored[row.seq].digest, "reason": body["reason"]}
        values |= {"record": canonical(body)}
        for key, name in (("class_scores", "score"), ("class_probabilities", "probability")):
            values[key] = [(one["name"], one[name]) for one in body["classes"] if one[name] is not None]
        if review is not None:
            for name in ("seq", "time_ns", "person", "label", "blind"):
                values[f"review_{name}"] = getattr(review, name)
            values |= {"review_verdict": review.verdict.value, "review_disagreement": review.disagreement.value}
            values["review_note"] = stored[review.seq].body["note"]
        found.append(values)
    return found
