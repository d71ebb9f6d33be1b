"""One metrics code for all: scores and maps of the test images in, figures and a table out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.catalogue import OURS
from training import metrics
from training.data import Sample, read_frame
from training.tally import PixelTally
from vision.bundle import Manifest
from vision.decision import OperatingPoint
from vision.preprocess import InputSpec
from vision.types import FloatArray, Inspection, Verdict

_NONE = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Column:
    """``key`` of a result's figures; ``better`` is 1 where more is better, -1 where less is."""

    title: str
    key: str
    better: int
    digits: int


COLUMNS = (
    Column("image AUROC", "image_auroc", 1, 3),
    Column("image AP", "image_ap", 1, 3),
    Column("AUPRO(0.3)", "aupro", 1, 3),
    Column("pixel AP", "pixel_ap", 1, 3),
    Column("pixel AUROC", "pixel_auroc", 1, 3),
    Column("fit, s", "fit_seconds", -1, 0),
    Column("fit, CPU s", "fit_cpu_seconds", -1, 0),
    Column("fit, MiB", "peak_mib", -1, 0),
    Column("ms a frame", "ms", -1, 1),
    Column("serving, MiB", "serving_mib", -1, 0),
    Column("model, MB", "model_mb", -1, 1),
)


def measure(scores: FloatArray, maps: FloatArray, samples: Sequence[Sample], white_level: int) -> dict[str, Any]:
    """Image and pixel metrics with 95 % bootstrap intervals over images, as ``defectlens evaluate`` has them.

    Args:
        scores: ``[N]``, higher is worse.
        maps: ``[N, h, w]``, stretched to each frame's own size before they are measured.
        samples: the test images in the same order; ambiguous ones are left out.

    Raises:
        ValueError: not one score and map an image, or scores that are no numbers.
    """
    if len(scores) != len(samples) or len(maps) != len(samples):
        raise ValueError(f"{len(samples)} images, but {len(scores)} scores and {len(maps)} maps")
    if not (np.isfinite(scores).all() and np.isfinite(maps).all()):
        raise ValueError("there are scores that are no finite numbers")
    kept = np.asarray([not sample.is_ambiguous for sample in samples])
    is_defect = np.asarray([sample.is_defect for sample in samples])[kept]
    values = np.asarray(scores, np.float64)[kept]
    figures: dict[str, Any] = {"images": len(values), "defects": int(is_defect.sum()), "intervals": {}}
    named: dict[str, Callable[..., float]] = {
        "image_auroc": metrics.image_auroc,
        "image_ap": metrics.average_precision,
    }
    for name, metric in named.items():
        figures[name] = metric(values, is_defect)
        figures["intervals"][name] = metrics.bootstrap_interval(partial(metric, values, is_defect), len(values), seed=0)
    tally = PixelTally(samples, _manifest(white_level))
    for sample, anomaly_map in zip(samples, maps, strict=True):
        height, width = read_frame(sample.path, white_level).shape[:2]
        tally.add(sample, _inspection(anomaly_map, height, width))
    if (pixels := tally.figures(seed=0)) is not None:
        figures |= {"aupro": pixels.aupro, "pixel_ap": pixels.average_precision, "pixel_auroc": pixels.auroc}
        figures["intervals"] |= pixels.intervals
    return figures


def rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a method: of several seeds the mean, and the standard deviation where there are two or more."""
    methods = list(dict.fromkeys(result["method"] for result in results))
    table = []
    for method in methods:
        own = [result for result in results if result["method"] == method]
        row: dict[str, Any] = {key: own[0].get(key) for key in ("method", "title", "input")}
        row["seeds"] = len(own)
        row["notes"] = list(dict.fromkeys(note for result in own for note in result.get("notes", ())))
        for column in COLUMNS:
            values = [result[column.key] for result in own if result.get(column.key) is not None]
            row[column.key] = statistics.fmean(values) if values else None
            if len(values) > 1:
                row[f"{column.key}_deviation"] = statistics.stdev(values)
        if len(own) == 1:
            row["intervals"] = own[0].get("intervals", {})
        table.append(row)
    return table


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """The table for people; the best value of each column is bold, columns that nobody has are left out."""
    shown = [column for column in COLUMNS if any(row[column.key] is not None for row in table)]
    lines = ["| method | input | " + " | ".join(column.title for column in shown) + " |"]
    lines.append("|---" * (len(shown) + 2) + "|")
    best = {column.key: _best(table, column) for column in shown}
    for row in table:
        cells = [_cell(row, column, best[column.key]) for column in shown]
        lines.append(f"| {row['title']} | {row['input']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """In plain words, where defectlens is behind the best peer, and where it is ahead of all of them."""
    ours = next((row for row in table if row["method"] == OURS), None)
    if ours is None or len(table) == 1:
        return []
    ahead, behind = [], []
    for column in COLUMNS:
        peers = [row for row in table if row["method"] != OURS and row[column.key] is not None]
        if ours[column.key] is None or not peers:
            continue
        rival = max(peers, key=lambda row: column.better * row[column.key])
        mine, theirs = ours[column.key], rival[column.key]
        words = f"{column.title} ({mine:.{column.digits}f} against {theirs:.{column.digits}f} of {rival['title']})"
        (ahead if column.better * mine >= column.better * theirs else behind).append(words)
    return [
        f"{OURS} is ahead of every peer, or equal, on: {', '.join(ahead) or 'nothing'}",
        f"{OURS} is behind on: {', '.join(behind) or 'nothing'}",
    ]


def _best(table: Sequence[Mapping[str, Any]], column: Column) -> float:
    return float(max(column.better * row[column.key] for row in table if row[column.key] is not None))


def _cell(row: Mapping[str, Any], column: Column, best: float) -> str:
    value = row[column.key]
    if value is None:
        return "–"
    text = f"{value:.{column.digits}f}"
    if column.better * value == best:
        text = f"**{text}**"
    if f"{column.key}_deviation" in row and column.better > 0:
        return f"{text} ± {row[f'{column.key}_deviation']:.{column.digits}f}"
    if column.key == "image_auroc" and column.key in row.get("intervals", {}):
        low, high = row["intervals"][column.key]
        return f"{text} ({low:.3f} to {high:.3f})"
    return text


def _manifest(white_level: int) -> Manifest:
    """What the pixel metrics ask of a model: that it has an anomaly map."""
    return Manifest(
        name="peer",
        version="1",
        created="",
        input=InputSpec(64, 64, white_level),
        classes=("good", "anomaly"),
        good_class="good",
        predicts_by_anomaly_score=True,
        operating_point=OperatingPoint(1.0, 0.5, 1.0, evidence="none: only ranks are compared"),
        calibration_scores=(0.0,),
    )


def _inspection(anomaly_map: FloatArray, height: int, width: int) -> Inspection:
    return Inspection(
        verdict=Verdict.UNSPECIFIED,
        reason="",
        predicted="",
        class_scores=_NONE,
        class_logits=_NONE,
        anomaly_score=None,
        calibrated_anomaly_score=None,
        regions=(),
        anomaly_map=anomaly_map,
        saliency_map=_NONE,
        attention_map=_NONE,
        class_map=None,
        frame_height=height,
        frame_width=width,
    )
