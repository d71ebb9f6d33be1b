"""Scores of frames that were judged before, from wherever they were kept.

``StoredScore`` is the whole interface: whatever yields them can be replayed. Today that is the JSON lines of
``defectlens evaluate`` (with labels) and of ``defectlens inspect`` (without).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision.errors import DataError
from vision.types import Verdict


@dataclass(frozen=True, slots=True)
class StoredScore:
    """One frame as it was judged.

    ``anomaly_score`` is None where the model or the frame had none. ``is_defect``: what the part truly is; None where
    nobody said. ``label``: its class, for people; empty where nobody said. ``class_probabilities``: by class, empty
    where none were calibrated.
    """

    name: str
    verdict: Verdict
    anomaly_score: float | None
    is_defect: bool | None = None
    label: str = ""
    class_probabilities: Mapping[str, float] = field(default_factory=dict)


def read_scores(path: Path, good_class: str = "good") -> Iterator[StoredScore]:
    """Frames of a file of JSON lines: ``predictions.jsonl`` of an evaluation or ``answers.jsonl`` of an inspection.

    Raises:
        DataError: a line is not one of those; says which.
    """
    for place, line in read_lines(path):
        yield _parse(line, place, good_class)


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file of JSON lines, each with its place for messages.

    Raises:
        DataError: a line is no JSON object.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            for number, text in enumerate(stream, 1):
                if text.strip():
                    yield f"{path}, line {number}", _object(text, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a file of JSON lines") from error


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error})") from error
    if not isinstance(line, dict):
        raise DataError(f"{place}: a JSON object was expected, got {type(line).__name__}")
    return line


def _parse(line: dict[str, Any], place: str, good_class: str) -> StoredScore:
    try:
        label = str(line.get("label") or "")
        score = line.get("anomaly_score")
        return StoredScore(
            name=str(line["path"]),
            verdict=Verdict[line["verdict"]],
            anomaly_score=None if score is None else float(score),
            is_defect=label != good_class if label else None,
            label=label,
            class_probabilities={
                str(name): float(value) for name, value in (line.get("class_probabilities") or {}).items()
            },
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{place}: {error!r}; expected path, verdict and anomaly_score, as `defectlens evaluate` and `inspect` "
            "write them"
        ) from error
