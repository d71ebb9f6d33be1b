"""Records to test with."""

from __future__ import annotations

from typing import Any

from serving.audit import Answer, Blob, ClassFigures, FileRef, MapPlane, ModelUsed, RawLayout, RegionFigures, Store
from vision.types import Verdict

MODEL = ModelUsed("parts", "3", "b" * 64, "m" * 64, "CPUExecutionProvider", "fp32", False, {"image_threshold": 0.3})


def answer(verdict: Verdict = Verdict.PASS, **fields: Any) -> Answer:
    """An answer about a frame that is not stored, unless ``frame=...`` says else."""
    defaults: dict[str, Any] = {
        "request_id": "r1",
        "reason": "made up",
        "received_ns": 1,
        "frame": FileRef("f" * 64, 3, "image/png"),
        "model": MODEL,
        "predicted": "good" if verdict is Verdict.PASS else "crack",
    }
    return Answer(verdict=verdict, **(defaults | fields))


def full_answer() -> Answer:
    """Every field has something in it that JSON could lose."""
    return answer(
        Verdict.REJECT,
        request_id='räkna "1"',
        captured_ns=1_700_000_000_123_456_789,
        part="A-17",
        lot="L2",
        camera="left",
        station="press-3",
        layout=RawLayout(4, 3, 8, "MONO8"),
        frame_width=4,
        frame_height=3,
        anomaly_score=0.30000001192092896,
        calibrated_anomaly_score=0.99,
        classes=(ClassFigures("good", 0.1, -1e-30, 0.25), ClassFigures("crack", None, None)),
        class_hits=("crack",),
        unknown_defect=True,
        regions=(RegionFigures("crack", 0.5, (0, 0, 2, 2), 4, (0, 0, 1, 0, 1, 1)),),
        maps=FileRef("a" * 64, 9, "image/png"),
        planes=(MapPlane("anomaly", 0, 8, 12, 1e-5, -0.25),),
        drift="STEADY",
        timings_ms={"total_ms": 12.5},
        batch_size=2,
        sampled=False,
        sample_rate=0.01,
        versions={"defectlens": "0.1.0"},
    )


def add(store: Store, *answers: Answer, content: bytes | None = None) -> list[int]:
    """Append answers, with one frame's content for all of them if one is given."""
    if content is None:
        return store.append(answers)
    from dataclasses import replace

    blob = Blob.of(content, "image/png")
    return store.append([replace(one, frame=blob.ref) for one in answers], [blob])
