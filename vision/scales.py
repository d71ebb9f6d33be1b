"""What the colours of an overlay mean: data of the bundle and never of the frame, so that frames can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision.bundle import Manifest
from vision.drawing import printable
from vision.explanations import EXACT, ClassCheck, evidence, round_up, score_shares
from vision.types import FloatArray, Inspection


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from ``low`` (clear) to ``high`` (full colour).

    ``title`` says what is shown, in which unit; ``notes`` what goes with it, a line each. ``mark`` is a value to mark
    on the legend, ``outline`` the map's cells that are to be outlined, bool ``[h, w]``. ``muted``: the map failed its
    check, and is to be drawn in grey.
    """

    low: float
    high: float
    title: str
    notes: tuple[str, ...] = ()
    mark: float | None = None
    outline: FloatArray | None = None
    muted: bool = False

    def share(self, values: FloatArray) -> FloatArray:
        scaled: FloatArray = np.clip((values - self.low) / (self.high - self.low), 0, 1).astype(np.float32)
        return np.nan_to_num(scaled)

    def position(self, value: float) -> float:
        """Where a value stands on the legend, 0..1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def anomaly_range(pixel_threshold: float) -> tuple[float, float]:
    """From clear to full colour, of every picture of an anomaly map: overlay, evidence sheet and page.

    Half and twice the pixel threshold, which every record of an answer holds; never the frame, so that two
    parts can be compared, and two pictures of one part look alike wherever they are shown. The upper end is at least 1
    above the threshold: near 0 every cell would have no colour or all of it.
    """
    if pixel_threshold > 0:
        return 0.5 * pixel_threshold, max(2 * pixel_threshold, pixel_threshold + 1.0)
    return 2 * pixel_threshold - 1.0, 1.0


def anomaly_scale(
    inspection: Inspection, manifest: Manifest, pixel_threshold: float, full_colour: float | None = None
) -> Scale:
    """As ``anomaly_range`` says, or up to ``full_colour``."""
    low, high = anomaly_range(pixel_threshold)
    high = high if full_colour is None else full_colour
    outline, note = _score_outline(inspection, manifest)
    own = manifest.operating_point.class_pixel_thresholds
    notes = ("white line: pixel threshold" + (" (some classes have their own)" if own else ""), *note)
    return Scale(min(low, high - 1e-6), high, "anomaly map, raw score of a cell", notes, pixel_threshold, outline)


def _score_outline(inspection: Inspection, manifest: Manifest) -> tuple[FloatArray | None, tuple[str, ...]]:
    """The cells that make the score; nothing where the map at hand does not give it (a map of another grid)."""
    if inspection.anomaly_map is None or inspection.anomaly_score is None:
        return None, ()
    told = manifest.explanations
    shares = (
        score_shares(inspection.anomaly_map) if told is None else score_shares(inspection.anomaly_map, told.top_share)
    )
    total = float((shares * inspection.anomaly_map).sum(dtype=np.float64))
    if not abs(total - inspection.anomaly_score) <= EXACT * max(1.0, abs(total)):
        return None, ()
    count = int((shares > 0).sum())
    return shares, (f"blue line: the {count} cells whose mean is the score" if count > 1 else "blue line: the score",)


def evidence_scale(inspection: Inspection, manifest: Manifest, name: str, full_colour: float | None = None) -> Scale:
    """What speaks for the class ``name``: to the bundle's scale, or to ``full_colour``.

    A bundle of an earlier version has no scale; then the frame's own largest value makes one, and the title says so.
    """
    index = manifest.classes.index(name)
    values, logit, told = inspection.saliency_map[index], float(inspection.class_logits[index]), manifest.explanations
    shown = printable(name)
    title = f"evidence for {shown}: what a cell adds to its logit"
    if full_colour is not None:
        high = full_colour
    elif told is not None and told.evidence_scale:
        high = told.evidence_scale[index]
    else:
        high = round_up(float(evidence(values).max(initial=0.0)))
        title += ", scaled to this frame"
    notes = []
    if told is not None:
        bias, total = told.biases[index], float(values.sum(dtype=np.float64))
        if abs(bias + total - logit) <= 10 * EXACT * max(1.0, abs(logit)):
            notes.append(f"bias {bias:.2f} + whole map {total:.2f} = logit {logit:.2f}")
    check = None if told is None else told.checks.get(name)
    notes.append(check_note(check))
    return Scale(0.0, high, title, tuple(notes), muted=check is not None and check.status == "failed")


def check_note(check: ClassCheck | None) -> str:
    """How far a class's evidence can be relied on, in one line."""
    if check is None or check.status == "unchecked":
        return "not measured how good this evidence is"
    if check.status == "failed":
        return f"FAILED ITS CHECK, do not go by it: {printable(check.why)}"
    if check.mass_in_mask is None or check.random_mass is None:
        return f"checked on {check.frames} frames"
    found, chance = _percent(check.mass_in_mask.value), _percent(check.random_mass.value)
    return f"checked on {check.frames} frames: {found} of it lay on the defect (by chance {chance})"


def _percent(share: float) -> str:
    """Small shares keep a digit: "by chance 0 %" would say that nothing could lie there by chance."""
    return f"{share:.0%}" if share >= 0.095 or share == 0.0 else f"{share:.1%}"
