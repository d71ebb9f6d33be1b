"""What an operating point rests on: kept in the bundle, sent by the server, shown wherever a threshold is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vision.calibration.intervals import Rate

EXCHANGEABLE = (
    "good parts stay as they were when the calibration images were taken (exchangeable with them): same product, "
    "camera, light and process"
)
EXCHANGEABLE_LOTS = (
    "lots stay as they were when the calibration lots were made (exchangeable with them): same product, camera, light "
    "and process; parts within a lot may be alike"
)
SAME_DEFECTS = "defects in production are of the kinds, and as often of each kind, as the defective calibration images"


@dataclass(frozen=True)
class Evidence:
    """Structured evidence of one operating point.

    Args:
        rule: what was asked for: ``max-overkill``, ``min-recall``, ``cost`` or ``default`` (training's own choice).
        asked: the numbers that were asked for, by option.
        method: the statistical method, in words.
        confidence: 0..1; None where the promise holds on average over calibrations.
        not_passed_bound: at most this share of good parts is not passed; None where nothing is promised.
        rejected_bound: at most this share of good parts is rejected outright.
        recall_bound: at least this share of defective parts is not passed.
        good_images, defective_images: what it rests on.
        lots: how many lots the bound counts; None where it counts images.
        data: the folder and part of the data, for people.
        data_digest: SHA-256 (hex) over the contents of the images.
        assumption: what must be true for the promise to hold.
        measured: on the calibration images themselves, by name; never a promise.
        class_policy: class thresholds as they stood before the good images were looked at; the operating point's own
            are higher where these were reached too often.
        notes: what else whoever signs should know, one sentence each.
    """

    rule: str
    asked: dict[str, float]
    method: str
    confidence: float | None
    not_passed_bound: float | None
    rejected_bound: float | None
    recall_bound: float | None
    good_images: int
    defective_images: int
    lots: int | None
    data: str
    data_digest: str
    assumption: str
    measured: dict[str, Rate] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    class_policy: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evidence:
        """From what ``dataclasses.asdict`` and JSON made of it."""
        measured = {name: Rate(**entry) for name, entry in values["measured"].items()}
        return cls(**{**values, "measured": measured, "notes": tuple(values["notes"])})

    @property
    def promise(self) -> str:
        """What is promised, in one sentence."""
        parts = []
        if self.not_passed_bound is not None:
            text = f"at most {percent(self.not_passed_bound)} of good parts are not passed"
            if self.rejected_bound is not None and self.rejected_bound < self.not_passed_bound:
                text += f", at most {percent(self.rejected_bound)} are rejected outright"
            parts.append(text)
        if self.recall_bound is not None:
            parts.append(f"at least {percent(self.recall_bound)} of defective parts are not passed")
        if not parts:
            return "nothing is promised: the thresholds have the least cost on the calibration images"
        return "; ".join(parts) + (
            f", with {percent(self.confidence)} confidence" if self.confidence is not None else ", on average"
        )

    @property
    def basis(self) -> str:
        """How many images (and lots) it rests on."""
        parts = [f"{self.good_images} good"] if self.good_images and not self._is_about_defects_alone else []
        parts += (
            [f"{self.defective_images} defective"] if self.defective_images and not self._is_about_good_alone else []
        )
        lots = "" if self.lots is None else f" from {self.lots} lots (the bound counts lots)"
        return f"{' and '.join(parts)} calibration images{lots}"

    @property
    def _is_about_good_alone(self) -> bool:
        return self.not_passed_bound is not None and self.recall_bound is None

    @property
    def _is_about_defects_alone(self) -> bool:
        return self.recall_bound is not None and self.not_passed_bound is None

    def words(self) -> str:
        """Everything that a person has to know before signing, as plain text."""
        return " ".join(f"{line}." if line[-1] not in ".!" else line for line in self.lines())

    def lines(self) -> list[str]:
        """The same, a line for each thing to know."""
        promises = self.not_passed_bound is not None or self.recall_bound is not None
        found = [
            f"Promised: {self.promise}" if promises else self.promise[0].upper() + self.promise[1:],
            f"It rests on {self.basis} ({self.method})",
            f"It holds while {self.assumption}",
        ]
        if promises and self.recall_bound is None:
            found.append("It promises nothing about escapes")
        return [*found, *self.notes]

    @cached_property
    def review_note(self) -> str:
        """What a good part's chance of reaching the review threshold is, for the reason of a verdict; may be empty."""
        return self._note(self.not_passed_bound)

    @cached_property
    def image_note(self) -> str:
        """The same for the image threshold."""
        return self._note(self.rejected_bound)

    def _note(self, bound: float | None) -> str:
        if bound is None:
            return ""
        sure = "" if self.confidence is None else f", {percent(self.confidence)} sure"
        return f" (at most {percent(bound)} of good parts reach it{sure})"


def percent(share: float) -> str:
    """``0.0123`` to ``1.23 %``, with three digits that mean something."""
    return f"{100 * share:.3g} %"
