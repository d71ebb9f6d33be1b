"""A store with the history of a factory, and how long questions to it take.

python -m benchmarks.audit_history --store DIR --records 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serving.audit import (
    Answer,
    ClassFigures,
    Disagreement,
    FileRef,
    MapPlane,
    ModelUsed,
    PersonVerdict,
    RegionFigures,
    Review,
    Search,
    Span,
    Store,
    by_camera,
    by_class,
    latest_by_camera,
    next_for_review,
    part_history,
    reviewed,
    sampled,
    search,
)
from vision.types import Verdict

_DAY_NS = 86_400 * 10**9
_FIRST_NS = 1_750_000_000 * 10**9
_CAMERAS = tuple(f"line{line}-{side}" for line in range(4) for side in ("left", "right"))
_CLASSES = ("good", "blowhole", "break", "crack", "fray", "uneven")
_BATCH = 2000
# Of rejects and reviews that a person has spoken about.
_REVIEWED = 0.9
TARGET_MS = 300.0


class Clock:
    """12 records a second, around the clock."""

    def __init__(self, last_ns: int = 0) -> None:
        self.now = max(_FIRST_NS, last_ns)

    def __call__(self) -> int:
        self.now += _BATCH * 10**9 // 12
        return self.now


def made_up_answer(number: int, draw: random.Random) -> Answer:
    """Of 100 parts 3 are rejects and 2 reviews; the 100 bytes and more that each field really takes."""
    verdict = draw.choices((Verdict.PASS, Verdict.REJECT, Verdict.REVIEW), (95, 3, 2))[0]
    predicted = "good" if verdict is Verdict.PASS else draw.choices(_CLASSES[1:], (50, 25, 15, 8, 2))[0]
    score = draw.gauss(1.0, 0.2) if verdict is Verdict.PASS else draw.uniform(2.0, 9.0)
    version = "1" if number < 400_000 else "2"
    point = {"image_threshold": 2.07, "review_threshold": 1.91, "pixel_threshold": 2.2, "class_threshold": 0.5}
    region = RegionFigures(predicted, score, (100, 120, 40, 22), 612, (100, 120, 139, 120, 139, 141, 100, 141))
    return Answer(
        request_id=f"{number:032x}",
        verdict=verdict,
        reason=f"anomaly score {score:.4g} {'<' if verdict is Verdict.PASS else '>='} image threshold 2.07",
        received_ns=_FIRST_NS + number,
        captured_ns=_FIRST_NS + number,
        part=f"P{number // 2:08d}",
        lot=f"L{number // 5000:05d}",
        camera=draw.choice(_CAMERAS),
        frame=FileRef(f"{draw.getrandbits(256):064x}", 150_000, "image/jpeg"),
        frame_width=1280,
        frame_height=1024,
        predicted=predicted,
        anomaly_score=score,
        calibrated_anomaly_score=draw.random(),
        classes=tuple(ClassFigures(name, draw.random(), draw.gauss(0, 3), draw.random()) for name in _CLASSES),
        regions=() if verdict is Verdict.PASS else (region,),
        maps=FileRef(f"{draw.getrandbits(256):064x}", 9_000, "image/png"),
        planes=tuple(
            MapPlane(name, 28 * place, 28, 36, draw.random(), draw.random())
            for place, name in enumerate(("anomaly", *_CLASSES))
        ),
        drift="STEADY",
        model=ModelUsed("magnetic", version, version * 64, "d" * 64, "CPUExecutionProvider", "fp32", False, point),
        timings_ms={
            name: draw.random() for name in ("queue", "decode", "preprocess", "inference", "postprocess", "total_ms")
        },
        batch_size=2,
        sampled=verdict is Verdict.PASS and draw.random() < 0.01,
        sample_rate=0.01,
        versions={"defectlens": "0.1.0", "onnxruntime": "1.31.1", "numpy": "2.4.6"},
    )


def fill(store: Store, answers: int, *, reviews: bool = True) -> None:
    """Append answers, and reviews of most of those that ask for one, until there are so many answers."""
    draw = random.Random(7)  # noqa: S311, the same history every time
    written = 0
    while written < answers:
        batch = [made_up_answer(written + index, draw) for index in range(min(_BATCH, answers - written))]
        seqs = store.append(batch)
        written += len(batch)
        waiting = [
            (seq, one)
            for seq, one in zip(seqs, batch, strict=True)
            if one.sampled or (one.verdict is not Verdict.PASS and draw.random() < _REVIEWED)
        ]
        if reviews and waiting:
            store.append([_review(seq, one, draw) for seq, one in waiting])


def _review(seq: int, answer: Answer, draw: random.Random) -> Review:
    said = PersonVerdict.GOOD if answer.verdict is Verdict.PASS or draw.random() < 0.2 else PersonVerdict.DEFECT
    if answer.sampled and draw.random() < 0.02:
        said = PersonVerdict.DEFECT
    label = answer.predicted if said is PersonVerdict.DEFECT and answer.predicted != "good" else ""
    return Review(answer=seq, person=draw.choice(("eva", "ulf")), verdict=said, label=label)


def questions(store: Store) -> dict[str, Callable[[], Any]]:
    """What the inspector's pages ask."""
    newest = search(store, limit=1).answers[0]
    end = newest.time_ns
    day, shift = end - _DAY_NS, end - _DAY_NS // 3
    middle = newest.seq // 2
    lot = search(store, limit=1, before=middle).answers[0].lot
    part = search(store, limit=1, before=middle).answers[0].part
    wanted = {
        "newest page": Search(),
        "one day in the middle": Search(since_ns=end - 3 * _DAY_NS // 2, until_ns=end - _DAY_NS // 2),
        "lot": Search(lot=lot),
        "part": Search(part=part),
        "part begins": Search(part_begins=part[:7]),
        "camera": Search(camera=_CAMERAS[3]),
        "class": Search(predicted="uneven"),
        "rejects": Search(verdict=Verdict.REJECT),
        "rejects of a camera": Search(camera=_CAMERAS[3], verdict=Verdict.REJECT),
        "class of a camera": Search(camera=_CAMERAS[3], predicted="uneven"),
        "class of a camera, a day": Search(camera=_CAMERAS[3], predicted="uneven", since_ns=day),
        "passes called uneven (none)": Search(verdict=Verdict.PASS, predicted="uneven"),
        "old version's rejects of a camera": Search(model_version="1", model="magnetic", camera=_CAMERAS[3]),
        "old version": Search(model="magnetic", model_version="1"),
        "disagreements": Search(any_disagreement=True),
        "escapes": Search(disagreement=Disagreement.ESCAPE),
        "overkill of a camera": Search(disagreement=Disagreement.OVERKILL, camera=_CAMERAS[3]),
        "reviewed by eva as good": Search(person="eva", person_verdict=PersonVerdict.GOOD),
        "rejects without a review": Search(verdict=Verdict.REJECT, reviewed=False),
        "nothing at all": Search(part="nobody", camera=_CAMERAS[3]),
        "unknown camera": Search(camera="nobody", verdict=Verdict.REJECT),
    }
    asked: dict[str, Callable[[], Any]] = {name: _asking(store, one) for name, one in wanted.items()}
    return asked | {
        "page 2000 of all": lambda: search(store, before=newest.seq - 100_000),
        "latest of each camera": lambda: latest_by_camera(store),
        "counters of a shift": lambda: by_camera(store, Span(since_ns=shift)),
        "counters of a lot": lambda: by_camera(store, Span(lot=lot)),
        "counters of everything": lambda: by_camera(store),
        "Pareto of a shift": lambda: by_class(store, Span(since_ns=shift)),
        "reviews of everything": lambda: reviewed(store),
        "escape sample of a shift": lambda: sampled(store, Span(since_ns=shift)),
        "review queue": lambda: next_for_review(store),
        "review queue of a camera": lambda: next_for_review(store, camera=_CAMERAS[3]),
        "history of a part": lambda: part_history(store, part),
    }


def _asking(store: Store, wanted: Search) -> Callable[[], Any]:
    return lambda: search(store, wanted)


def measure(store: Store, rounds: int) -> Iterator[tuple[str, float, float]]:
    """Of each question its name, and the first and the median time of the rounds in ms."""
    for name, ask in questions(store).items():
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            ask()
            times.append((time.perf_counter() - start) * 1000.0)
        yield name, times[0], statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="folder or URL; it is filled if it is not there")
    parser.add_argument("--files", type=Path)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with Store.open(options.store, files=options.files, create=True, clock_ns=Clock()) as store:
        have = len(search(store, limit=1).answers)
        if not have:
            start = time.perf_counter()
            fill(store, options.records)
            print(f"filled in {time.perf_counter() - start:.0f} s")
        worst = 0.0
        for name, first, median in measure(store, options.rounds):
            worst = max(worst, median)
            print(f"{name:36} {first:9.1f} {median:9.1f} ms{'' if median < TARGET_MS else '  MISSED'}")
    print(json.dumps({"worst_median_ms": worst, "target_ms": TARGET_MS}))


if __name__ == "__main__":
    main()
