"""How soon drift is noticed, and how often without a cause: ``python -m benchmarks.drift --tiles magnetic_tile``.

For each station, a reference is made of its good frames, and a monitor is fed first clean frames, then frames of a
camera to which something has happened. Frames are drawn at random from the station's stream, each with noise and light
of its own. A run counts if an alarm comes within 50 frames of the change and none before. A bundle adds the anomaly
score and the embedding, and streams in which parts get worse.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_frames import CHANGES, Station, elpv, magnetic_tile, plates, shot
from vision.bundle import Bundle, load_bundle
from vision.drift.monitor import Monitor
from vision.drift.reference import Reference, make_reference
from vision.drift.rules import FRAMES_PER_ALARM, Rules
from vision.drift.signals import Look
from vision.preprocess import to_model_input
from vision.types import FloatArray

WITHIN = 50
SETTLING = 25
# Shots of each part, so that a part that is drawn twice is not the same picture.
_SHOTS = 3


@dataclass(frozen=True)
class Shot:
    """What a monitor is fed for one frame."""

    look: Look
    anomaly_score: float | None = None
    embedding: FloatArray | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table. ``within``: share of runs with an alarm within ``WITHIN`` frames and none before;
    ``missed``: runs without one in 300 frames; ``early``: with one before the change; ``first`` and ``later``: of the
    others, what was said at the alarm, and ``WITHIN`` frames after the change or ``SETTLING`` after the alarm.
    """

    station: str
    change: str
    clean_before: int
    runs: int
    within: float
    median_delay: float | None
    missed: int
    early: int
    first: dict[str, int]
    later: dict[str, int]


class Bench:
    """One station with its reference, rules and shots of every change.

    Args:
        bundle: gives anomaly scores and embeddings.
    """

    def __init__(self, station: Station, bundle: Bundle | None, frames_per_alarm: int, *, own_only: bool) -> None:
        self.name = station.name
        self._station = station
        self._engine = None if bundle is None else bundle.engine(provider="cpu", threads=1)
        rng = np.random.default_rng(1)
        good = [self._input(shot(frame, "clean", rng)) for frame in station.reference]
        scores, embeddings = None, None
        if self._engine is not None:
            answers = [self._answer(self._input(shot(frame, "clean", rng))) for frame in station.known]
            scores = np.array([score for score, _ in answers if score is not None], np.float32)
            vectors = [embedding for _, embedding in answers if embedding is not None]
            embeddings = np.stack(vectors) if vectors else None
        self.reference: Reference = make_reference(good, anomaly_scores=scores, embeddings=embeddings)
        self.rules = Rules(self.reference, frames_per_alarm, against_calibration=not own_only)
        self._shots: dict[str, list[Shot]] = {}

    def shots(self, change: str) -> list[Shot]:
        """All shots of good parts through the changed camera; ``defective``: of defective parts through a clean one."""
        if change not in self._shots:
            rng = np.random.default_rng(2)
            frames = self._station.defective if change == "defective" else self._station.stream
            what = "clean" if change == "defective" else change
            times = 1 if self._engine is not None else _SHOTS
            self._shots[change] = [self._shot(shot(frame, what, rng)) for frame in frames for _ in range(times)]
        return self._shots[change]

    def _input(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return to_model_input(frame, self._station.spec)

    def _shot(self, frame: NDArray[np.uint8]) -> Shot:
        pixels = self._input(frame)
        return Shot(self.reference.eyes.look(pixels), *self._answer(pixels))

    def _answer(self, pixels: NDArray[np.uint8]) -> tuple[float | None, FloatArray | None]:
        if self._engine is None:
            return None, None
        outputs = self._engine.run(pixels[None])
        score = None if outputs.anomaly_score is None else float(outputs.anomaly_score[0])
        return score, None if outputs.embedding is None else outputs.embedding[0]


def stream(bench: Bench, change: str, before: int, share: float, rng: np.random.Generator) -> Iterator[Shot]:
    """Clean frames, then frames of which ``share`` are changed."""
    clean, changed = bench.shots("clean"), bench.shots(change)
    for _ in range(before):
        yield clean[rng.integers(len(clean))]
    while True:
        some = changed if rng.random() < share else clean
        yield some[rng.integers(len(some))]


def detect(bench: Bench, change: str, before: int, runs: int, share: float = 1.0, after: int = 300) -> Row:
    """Runs of one change after ``before`` clean frames."""
    delays: list[int] = []
    early = missed = 0
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for run in range(runs):
        rng = np.random.default_rng((run, before))
        monitor, found = Monitor(bench.rules, seed=run), None
        for index, one in enumerate(stream(bench, change, before, share, rng)):
            drift, begun = monitor.feed(one.look, anomaly_score=one.anomaly_score, embedding=one.embedding)
            words = f"{drift.state.name} {drift.signal}"
            if begun and found is None:
                found = index - before
                if found < 0:
                    break
                first[words] += 1
            if index - before >= (after if found is None else max(WITHIN, found + SETTLING)):
                later[words] += found is not None
                break
        if found is None:
            missed += 1
        elif found < 0:
            early += 1
        else:
            delays.append(found + 1)
    share_within = sum(delay <= WITHIN for delay in delays) / runs
    median = float(np.median(delays)) if delays else None
    label = change if share == 1.0 else f"{share:.0%} {change}"
    words = dict(first.most_common(3)), dict(later.most_common(3))
    return Row(bench.name, label, before, runs, share_within, median, missed, early, *words)


def false_alarms(bench: Bench, frames: int, streams: int) -> dict[str, Any]:
    """Alarms in clean streams, each of ``frames`` frames, and how long they took in all."""
    alarms: Counter[str] = Counter()
    for run in range(streams):
        rng = np.random.default_rng((run, 77))
        monitor = Monitor(bench.rules, seed=run)
        clean = bench.shots("clean")
        for index in range(frames):
            one = clean[rng.integers(len(clean))]
            _, begun = monitor.feed(one.look, anomaly_score=one.anomaly_score, embedding=one.embedding)
            for alarm in begun:
                alarms[f"{alarm.signal} at {index}"] += 1
    return {"station": bench.name, "clean_frames": frames * streams, "streams": streams, "alarms": dict(alarms)}


def cost_ms(bench: Bench, frames: int = 500) -> dict[str, float]:
    """CPU time of one frame, median, at 256x256: the look, and the evidence."""
    cv2.setNumThreads(1)
    pixels = [
        cv2.resize(bench._input(frame), (256, 256), interpolation=cv2.INTER_AREA)
        for frame in bench._station.reference[:100]
    ]
    reference = make_reference(pixels, anomaly_scores=np.arange(100, dtype=np.float32))
    monitor = Monitor(Rules(reference))
    looks, feeds = [], []
    for index in range(frames):
        start = time.thread_time_ns()
        look = reference.eyes.look(pixels[index % len(pixels)])
        middle = time.thread_time_ns()
        monitor.feed(look, anomaly_score=float(index % 100))
        looks.append(middle - start)
        feeds.append(time.thread_time_ns() - middle)
    return {"look": float(np.median(looks)) / 1e6, "evidence": float(np.mean(feeds)) / 1e6}


def stations(arguments: argparse.Namespace) -> list[Station]:
    found: list[Station] = []
    if arguments.tiles is not None:
        found += magnetic_tile(arguments.tiles, chosen_on=arguments.stream, reference_of=arguments.reference)
    return found + ([*plates(), *elpv()] if arguments.fixed_framing else [])


def show(row: Row) -> None:
    median = "-" if row.median_delay is None else f"{row.median_delay:.0f}"
    first, later = (", ".join(f"{name} {count}" for name, count in words.items()) for words in (row.first, row.later))
    print(
        f"| {row.station} | {row.change} | {row.clean_before} | {row.within:.0%} | {median} | {row.missed} "
        f"| {row.early} | {first} | {later} |",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tiles", type=Path, help="folder of magnetic tile, in the MVTec layout")
    parser.add_argument("--bundle", type=Path, help="of magnetic tile: adds the anomaly score and the embedding")
    parser.add_argument("--stream", choices=["test", "validation"], default="test", help="which tiles make the stream")
    parser.add_argument("--reference", choices=["all", "calibration"], default="all", help="of magnetic tile")
    parser.add_argument("--fixed-framing", action="store_true", help="drawn plates and solar cells too")
    parser.add_argument("--only", help="stations whose name contains this")
    parser.add_argument("--changes", nargs="*", default=[name for name in CHANGES if name != "clean"])
    parser.add_argument("--before", type=int, nargs="*", default=[0, 300, 1000], help="clean frames before the change")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--clean", type=int, default=10_000, help="frames of each clean stream")
    parser.add_argument("--streams", type=int, default=3, help="clean streams")
    parser.add_argument("--frames-per-alarm", type=int, default=FRAMES_PER_ALARM)
    parser.add_argument("--own-only", action="store_true", help="compare each camera with its own first frames alone")
    parser.add_argument("--out", type=Path, help="everything as JSON")
    chosen = parser.parse_args(arguments)
    bundle = None if chosen.bundle is None else load_bundle(chosen.bundle)
    rows: list[Row] = []
    clean: list[dict[str, Any]] = []
    cost = None
    heads = ("station", "change", "clean frames before", f"alarm within {WITHIN}", "median", "missed", "early")
    print("| " + " | ".join((*heads, "said at first", "later")) + " |")
    print("|---|---|---|---|---|---|---|---|---|")
    for station in stations(chosen):
        if chosen.only is not None and chosen.only not in station.name:
            continue
        bench = Bench(station, bundle, chosen.frames_per_alarm, own_only=chosen.own_only)
        for change in chosen.changes:
            for before in chosen.before:
                rows.append(detect(bench, change, before, chosen.runs))
                show(rows[-1])
        if bundle is not None and station.defective:
            for share in (0.1, 0.3, 1.0):
                rows.append(detect(bench, "defective", chosen.before[-1], chosen.runs, share))
                show(rows[-1])
        if chosen.streams:
            clean.append(false_alarms(bench, chosen.clean, chosen.streams))
            print(json.dumps(clean[-1]), flush=True)
        cost = cost or cost_ms(bench)
    print(json.dumps({"cpu_ms_a_frame_at_256x256": cost}))
    if chosen.out is not None:
        document = {"rows": [asdict(row) for row in rows], "clean": clean, "cpu_ms": cost}
        chosen.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
