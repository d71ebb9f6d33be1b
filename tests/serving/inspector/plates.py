"""A line that makes brushed plates, judged by how far a plate is from the middle one of many good plates.

Everything is computed: plates, maps, regions, verdicts; nothing of it is a trained model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.audit import Answer, Blob, ClassFigures, MapPlane, ModelUsed, RegionFigures, Store
from serving.audit.maps import write_sheet
from vision.postprocess import find_regions
from vision.types import FloatArray, Verdict

HEIGHT, WIDTH, GRID = 300, 400, (30, 40)
CLASSES = ("good", "dent", "scratch", "stain")
REVIEW, REJECT, PIXEL = 16.0, 22.0, 18.0
MODEL = ModelUsed(
    "plate", "1", "b" * 64, "m" * 64, "CPUExecutionProvider", "fp32", False,
    {"image_threshold": REJECT, "review_threshold": REVIEW, "pixel_threshold": PIXEL},
)  # fmt: skip


def plate(rng: np.random.Generator, defect: str = "good", strength: float = 1.0) -> NDArray[np.uint8]:
    """A brushed metal plate with a chamfer and two bores, grey, uint8 ``[HEIGHT, WIDTH]``."""
    grain = cv2.blur(rng.normal(0, 40, (HEIGHT, WIDTH)).astype(np.float32), (61, 1))
    light = np.linspace(rng.uniform(126, 130), rng.uniform(148, 152), WIDTH, dtype=np.float32)[None, :]
    pixels = light + grain + rng.normal(0, 2, (HEIGHT, WIDTH)).astype(np.float32)
    cv2.rectangle(pixels, (8, 8), (WIDTH - 9, HEIGHT - 9), 180.0, 3, cv2.LINE_AA)
    for x in (70, WIDTH - 70):
        cv2.circle(pixels, (x, HEIGHT // 2), 24, 45.0, -1, cv2.LINE_AA)
        cv2.circle(pixels, (x, HEIGHT // 2), 24, 190.0, 2, cv2.LINE_AA)
    shade = np.zeros((HEIGHT, WIDTH), np.float32)
    x, y = int(rng.integers(130, 270)), int(rng.integers(60, 240))
    if defect == "scratch":
        steps = np.cumsum(rng.normal((14, 9), 5, (7, 2)), axis=0) + np.array([x - 50, y - 30])
        cv2.polylines(shade, [steps.astype(np.int32)], isClosed=False, color=1.0, thickness=3, lineType=cv2.LINE_AA)
    elif defect == "dent":
        cv2.circle(shade, (x, y), int(rng.integers(8, 15)), 0.9, -1, cv2.LINE_AA)
    elif defect == "stain":
        cv2.ellipse(shade, (x, y), (34, 18), float(rng.uniform(0, 180)), 0, 360, 0.5, -1, cv2.LINE_AA)
    pixels -= 95 * strength * cv2.GaussianBlur(shade, (0, 0), 1.2)
    return np.clip(cv2.GaussianBlur(pixels, (0, 0), 0.8), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _middle() -> FloatArray:
    rng = np.random.default_rng(99)
    return np.median(np.stack([plate(rng) for _ in range(9)]), axis=0).astype(np.float32)


@dataclass(frozen=True)
class Judged:
    """An answer with its files."""

    answer: Answer
    blobs: list[Blob]


def judge_plate(frame: NDArray[np.uint8], shape: str, **fields: Any) -> Judged:
    """What the line says about a plate. ``shape``: the class that is named where there is a defect."""
    far = cv2.GaussianBlur(np.abs(frame.astype(np.float32) - _middle()), (0, 0), 3)
    grid = cv2.resize(far, GRID[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    score = float(grid.max())
    verdict = Verdict.REJECT if score >= REJECT else Verdict.REVIEW if score >= REVIEW else Verdict.PASS
    predicted = "good" if verdict is Verdict.PASS else shape
    regions = find_regions(
        grid, PIXEL, HEIGHT, WIDTH, class_map=None, defect_classes=CLASSES[1:], default_label=predicted
    )
    planes = {"anomaly": grid} | {
        name: np.maximum(grid - 8, 0) * (0.1 if name == predicted else 0.02) for name in CLASSES
    }
    sheet, places = write_sheet(planes)
    maps, picture = Blob.of(sheet, "image/png"), Blob.of(cv2.imencode(".png", frame)[1].tobytes(), "image/png")
    sure = min(0.99, 0.5 + abs(score - REVIEW) / 30)
    answer = Answer(
        verdict=verdict,
        reason=f"anomaly score {score:.4g} against {REVIEW:g} and {REJECT:g}",
        received_ns=1,
        frame=picture.ref,
        frame_width=WIDTH,
        frame_height=HEIGHT,
        predicted=predicted,
        anomaly_score=score,
        classes=tuple(
            ClassFigures(name, sure if name == predicted else 0.01, 1.0, sure if name == predicted else 0.01)
            for name in CLASSES
        ),
        regions=tuple(
            RegionFigures(
                one.label,
                one.score,
                (one.box.x, one.box.y, one.box.width, one.box.height),
                one.area_px,
                _outline(one.mask, one.box.x, one.box.y),
            )
            for one in regions
        ),
        maps=maps.ref,
        planes=tuple(MapPlane(one.name, one.top, one.height, one.width, one.scale, one.offset) for one in places),
        model=MODEL,
        timings_ms={"total_ms": 31.0},
        **fields,
    )
    return Judged(answer, [picture, maps])


def _outline(mask: NDArray[np.bool_], x: int, y: int) -> tuple[int, ...]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    return tuple(int(value) for value in max(contours, key=len).reshape(-1))


_RUN = ("good", "scratch", "good", "good", "dent", "good", "stain", "good")


def fill(store: Store, parts: int = 24, *, seed: int = 0, cameras: tuple[str, ...] = ("left", "right")) -> list[int]:
    """Add parts as a line would; every eighth is a faint dent, and every fourth passed part is drawn for a check."""
    rng = np.random.default_rng(seed)
    seqs: list[int] = []
    passed = 0
    for index in range(parts):
        shape = _RUN[index % len(_RUN)]
        strength = 0.3 if shape == "dent" and index % 16 == 4 else 1.0
        judged = judge_plate(
            plate(rng, shape, strength),
            shape,
            request_id=f"r{seed}-{index}",
            part=f"P-{seed}{index:04d}",
            lot=f"L{1 + index // 16}",
            camera=cameras[index % len(cameras)],
        )
        answer = judged.answer
        if answer.verdict is Verdict.PASS:
            passed += 1
            answer = _drawn(answer, passed % 4 == 1)
        seqs += store.append([answer], judged.blobs)
    return seqs


def _drawn(answer: Answer, sampled: bool) -> Answer:
    from dataclasses import replace

    return replace(answer, sampled=sampled, sample_rate=0.25)
