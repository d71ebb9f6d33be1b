"""What a camera shows, how unusual it is, and what is said about it: without a server, on drawn parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fakes import textured
from vision.bundle import Manifest, load_bundle, write_manifest
from vision.drift.betting import EDGES, LARGE, SMALL_AND_LARGE, bets_on_ends, bets_on_outliers, bets_on_shifts
from vision.drift.monitor import HOLD, LEARNING_FRAMES, Monitor
from vision.drift.reference import (
    ANOMALY,
    EMBEDDING,
    REFERENCE,
    Reference,
    bundle_reference,
    make_reference,
    read_reference,
    write_reference,
)
from vision.drift.rules import Rules
from vision.drift.signals import BLOCK, IMAGE_SIGNALS, Look, dirt
from vision.drift.states import DriftState
from vision.errors import BundleError, SettingsError

Frame = NDArray[np.uint8]
HEIGHT, WIDTH = 96, 128
_PARTS = 100


def part(name: str) -> Frame:
    return textured(name, HEIGHT, WIDTH)


def parts(kind: str, count: int) -> list[Frame]:
    return [part(f"{kind} {index}") for index in range(count)]


def changed(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Frame], Frame]:
    return lambda frame: np.clip(np.rint(change(frame.astype(np.float32))), 0, 255).astype(np.uint8)


def towards(corner_light: float) -> NDArray[np.float32]:
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    return (1.0 - (1.0 - corner_light) * (x * x + y * y) / 2.0)[:, :, None].astype(np.float32)


def ramp() -> NDArray[np.float32]:
    return np.linspace(0.9, 1.1, WIDTH, dtype=np.float32)[None, :, None]


def speckled(frame: Frame) -> Frame:
    marked = frame.copy()
    for place in ((40, 30), (90, 60), (64, 80)):
        cv2.circle(marked, place, 3, (70, 70, 70), -1)
    return marked


CHANGES: dict[str, tuple[Callable[[Frame], Frame], str, int]] = {
    "blurred": (lambda frame: cv2.GaussianBlur(frame, (0, 0), 1.2), "focus", -1),
    "shaken across": (lambda frame: cv2.blur(frame, (5, 1)), "streaks", -1),
    "brighter": (changed(lambda pixels: pixels * 1.2), "brightness", 1),
    "darker": (changed(lambda pixels: pixels * 0.8), "brightness", -1),
    "hazy": (changed(lambda pixels: pixels * 0.5 + 64), "contrast", -1),
    "vignetted": (changed(lambda pixels: pixels * towards(0.8)), "vignetting", -1),
    "lit from the right": (changed(lambda pixels: pixels * ramp()), "light_x", 1),
    "moved right": (lambda frame: np.roll(frame, 3, axis=1), "shift_x", 1),
    "moved up": (lambda frame: np.roll(frame, -3, axis=0), "shift_y", -1),
    "dusty": (speckled, "dirt", 1),
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    rng = np.random.default_rng(0)
    return make_reference(
        parts("good", 200),
        anomaly_scores=rng.normal(size=150).astype(np.float32),
        embeddings=rng.normal(size=(150, 16)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def rules(reference: Reference) -> Rules:
    return Rules(reference)


def shift(reference: Reference, frames: list[Frame], name: str) -> float:
    """Of the median over frames, in spreads of the reference."""
    looks = [reference.eyes.look(frame) for frame in frames]
    if name == "dirt":
        blocks = [looks[start : start + BLOCK] for start in range(0, len(looks), BLOCK)]
        values = [dirt(np.stack([look.specks for look in block])) for block in blocks]
    else:
        values = [float(look.values[[signal.name for signal in IMAGE_SIGNALS].index(name)]) for look in looks]
    known = reference.values[name]
    low, middle, high = np.quantile(known, [0.16, 0.5, 0.84])
    return float((np.median(values) - middle) / ((high - low) / 2))


class Camera:
    """A monitor, fed with frames of the same parts in any order; what the model would say is drawn at random."""

    looks: ClassVar[dict[tuple[int, str, int], Look]] = {}

    def __init__(self, rules: Rules, seed: int = 0) -> None:
        self.monitor = Monitor(rules, seed)
        self.rules = rules
        self._rng = np.random.default_rng(seed)
        self._count = 0

    def show(
        self,
        count: int,
        change: str = "",
        *,
        score: float = 0.0,
        embedding: float = 0.0,
        until_alarm: bool = True,
    ) -> int | None:
        """Frames until a new alarm; None without any."""
        for index in range(count):
            self._count += 1
            look = self._look(change, int(self._rng.integers(_PARTS)))
            noise = self._rng.normal(size=16).astype(np.float32)
            _, begun = self.monitor.feed(
                look,
                anomaly_score=score + self._rng.normal(),
                embedding=noise + np.float32(embedding),
                now=float(self._count),
            )
            if begun and until_alarm:
                return index + 1
        return None

    def _look(self, change: str, index: int) -> Look:
        eyes = self.rules.reference.eyes
        key = (id(eyes), change, index)
        if key not in self.looks:
            frame = part(f"stream {index}")
            for one in change.split(" and ") if change else ():
                frame = CHANGES[one][0](frame)
            self.looks[key] = eyes.look(frame)
        return self.looks[key]


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_of_a_camera_moves_its_signal(reference: Reference, name: str) -> None:
    change, signal, direction = CHANGES[name]
    frames = parts("seen", 16)
    assert abs(shift(reference, frames, signal)) < 1.0
    assert shift(reference, [change(frame) for frame in frames], signal) * direction > 2.5


@pytest.mark.parametrize("signal", [signal.name for signal in IMAGE_SIGNALS if signal.name not in ("red", "blue")])
def test_a_defect_on_the_parts_is_no_change_of_the_camera(reference: Reference, signal: str) -> None:
    """A dark hole at another place of every part."""

    def damaged(index: int) -> Frame:
        frame = part(f"seen {index}")
        rng = np.random.default_rng(index)
        cv2.circle(frame, (int(rng.integers(20, WIDTH - 20)), int(rng.integers(20, HEIGHT - 20))), 4, (10, 10, 10), -1)
        return frame

    assert abs(shift(reference, [damaged(index) for index in range(64)], signal)) < 1.5


def test_a_shift_is_told_in_pixels(reference: Reference) -> None:
    place = [signal.name for signal in IMAGE_SIGNALS].index("shift_x")
    moved = [reference.eyes.look(np.roll(frame, 2, axis=1)).values[place] for frame in parts("seen", 16)]
    assert float(np.median(moved)) == pytest.approx(2.0, abs=0.7)


def test_bets_are_fair() -> None:
    widths = np.diff(np.concatenate([[0.0], EDGES, [1.0]]))
    for bets in (bets_on_shifts(SMALL_AND_LARGE), bets_on_shifts(LARGE), bets_on_ends(), bets_on_outliers()):
        np.testing.assert_allclose(bets @ widths, 1.0, atol=1e-6)
        assert (bets[:, -1] > bets[:, 0]).all()


@pytest.mark.slow
def test_false_alarms_keep_the_promise() -> None:
    """One in 2,000 frames of a camera is allowed here; values with ties, and signals that move together."""
    rng = np.random.default_rng(3)
    reference = make_reference(parts("good", 60), anomaly_scores=np.round(rng.normal(size=100), 1).astype(np.float32))
    rules = Rules(reference, frames_per_alarm=2000)
    looks = [reference.eyes.look(frame) for frame in parts("good", 60)]
    alarms = frames = 0
    for run in range(30):
        monitor = Monitor(rules, seed=run)
        common = rng.normal(size=400)
        for index in range(400):
            look = replace(looks[0], values=_resampled(reference, rng, common[index]), specks=looks[index % 60].specks)
            _, begun = monitor.feed(look, anomaly_score=float(np.round(rng.normal(), 1)))
            alarms += len(begun)
            frames += 1
    assert frames == 12_000
    assert alarms <= 6 + 4  # six on average at the very most, and two standard deviations


def _resampled(reference: Reference, rng: np.random.Generator, common: float) -> NDArray[np.float32]:
    """Every signal at the same quantile of its reference, more or less."""
    rank = float(np.clip(0.5 + 0.25 * common + rng.normal(0.0, 0.05), 0.0, 1.0))
    names = [signal.name for signal in IMAGE_SIGNALS if signal.name != "dirt"]
    values = [
        np.quantile(reference.values.get(name, np.zeros(1)), rng.permutation([rank, rng.random()])[0]) for name in names
    ]
    return np.array(values, np.float32)


def _quantile(values: NDArray[np.float32] | None, rank: float) -> float:
    """Sorted values at a rank; 0 for a signal that is not there."""
    return 0.0 if values is None else float(values[int(rank * (len(values) - 1))])


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_camera_is_noticed_and_named(rules: Rules, name: str) -> None:
    _, signal, direction = CHANGES[name]
    camera = Camera(rules)
    assert camera.show(150) is None
    assert camera.monitor.drift.state is DriftState.STEADY
    delay = camera.show(60, name)
    assert delay is not None
    assert delay <= 50
    camera.show(10, name, until_alarm=False)
    report = camera.monitor.report()
    assert report.drift.state is DriftState.CAMERA_CHANGED
    named = {alarm.signal: alarm for alarm in report.alarms}
    assert signal in named
    assert named[signal].shift * direction > 0
    assert abs(named[signal].since_frame - 151) <= BLOCK + 3


def test_worse_parts_are_not_put_down_to_the_camera(rules: Rules) -> None:
    camera = Camera(rules)
    assert camera.show(150) is None
    delay = camera.show(60, score=2.5)
    assert delay is not None
    assert camera.monitor.drift.state is DriftState.UNCLEAR  # dust would raise scores before it is seen itself
    camera.show(24, score=2.5)
    assert camera.monitor.drift.state is DriftState.PARTS_WORSE
    assert camera.monitor.drift.signal == ANOMALY.name


def test_better_scores_are_no_alarm_however_long_they_last(rules: Rules) -> None:
    """A bet on lower scores would be worth more than numbers can hold after some hundred frames."""
    camera = Camera(rules)
    assert camera.show(600, score=-8.0) is None
    assert camera.show(60, score=3.0) is not None


def test_worse_scores_of_a_blurred_camera_are_put_down_to_the_camera(rules: Rules) -> None:
    camera = Camera(rules)
    camera.show(150)
    camera.show(60, "blurred", score=4.0, until_alarm=False)
    assert camera.monitor.drift.state is DriftState.CAMERA_CHANGED
    assert camera.monitor.drift.signal == "focus"


def test_a_look_that_no_camera_signal_names(rules: Rules) -> None:
    camera = Camera(rules)
    camera.show(150)
    assert camera.show(60, embedding=3.0) is not None
    assert camera.monitor.drift.state is DriftState.UNCLEAR


def test_a_camera_that_is_wrong_from_the_start_is_noticed(rules: Rules) -> None:
    camera = Camera(rules)
    delay = camera.show(40, "blurred")
    assert delay is not None
    assert camera.monitor.report().alarms[0].against_calibration


def test_alone_with_its_own_frames_a_camera_that_was_always_so_is_usual(reference: Reference) -> None:
    """One of many cameras that the calibration is from: darker than the others, and then it gets darker still."""
    own = Rules(reference, against_calibration=False)
    camera = Camera(own)
    assert camera.show(LEARNING_FRAMES - 1, "darker") is None
    assert camera.monitor.drift.state is DriftState.LEARNING
    assert camera.show(60, "darker") is None
    assert camera.monitor.drift.state is DriftState.STEADY
    assert camera.show(50, "darker and darker") is not None
    assert not camera.monitor.report().alarms[0].against_calibration


def test_an_alarm_stands_while_the_change_does_and_ends_after_the_repair(rules: Rules) -> None:
    camera = Camera(rules)
    camera.show(150)
    camera.show(4 * HOLD, "blurred", until_alarm=False)  # what looks changed never becomes usual
    assert camera.monitor.drift.state is DriftState.CAMERA_CHANGED
    assert camera.monitor.report().alarms_so_far["focus"] == 1
    camera.show(BLOCK * HOLD + 50, until_alarm=False)
    assert camera.monitor.drift.state is DriftState.STEADY
    assert camera.monitor.report().alarms == ()


def test_the_same_frames_give_the_same_answers(rules: Rules) -> None:
    one, other = Camera(rules, seed=5), Camera(rules, seed=5)
    one.show(60)
    other.show(60)
    assert one.monitor.report() == other.monitor.report()


def test_a_reference_comes_back_as_it_was(reference: Reference, tmp_path: Path) -> None:
    write_reference(tmp_path, reference)
    again = read_reference(tmp_path)
    assert again.frames == 200
    assert again.signals == reference.signals
    for name, values in reference.values.items():
        np.testing.assert_array_equal(values, again.values[name])
    frame = part("seen 1")
    # Halves of the speck pictures are kept in 16 bits.
    np.testing.assert_allclose(reference.eyes.look(frame).values, again.eyes.look(frame).values)
    assert np.abs(reference.eyes.look(frame).specks.astype(int) - again.eyes.look(frame).specks).max() <= 1


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 40 good frames; got 12, 28 more"):
        make_reference(parts("good", 12))


def test_a_grey_camera_has_no_colour_to_watch(reference: Reference) -> None:
    assert {"red", "blue"}.isdisjoint(reference.values)
    tinted = [frame * np.array([1.0, 1.0, 1.0 - 0.002 * index]) for index, frame in enumerate(parts("good", 50))]
    assert "blue" in make_reference([frame.astype(np.uint8) for frame in tinted]).values


def test_embeddings_are_measured_by_the_others(reference: Reference) -> None:
    """By their own cloud, frames would look closer than new ones."""
    rng = np.random.default_rng(1)
    assert reference.cloud is not None
    fresh = [reference.cloud.distance(rng.normal(size=16).astype(np.float32)) for _ in range(400)]
    assert np.median(fresh) == pytest.approx(np.median(reference.values[EMBEDDING.name]), rel=0.05)


def test_bundles_without_a_reference_have_none(bundle_folder: Path) -> None:
    assert bundle_reference(load_bundle(bundle_folder)) is None


def test_a_damaged_reference_is_refused(bundle_folder: Path, manifest: Manifest, reference: Reference) -> None:
    write_reference(bundle_folder, reference)
    write_manifest(bundle_folder, manifest)
    assert bundle_reference(load_bundle(bundle_folder)) is not None
    (bundle_folder / REFERENCE).write_bytes(b"PK")
    with pytest.raises(BundleError, match=r"reference\.npz"):
        load_bundle(bundle_folder)
    write_manifest(bundle_folder, manifest)  # a forger makes the digest fit
    with pytest.raises(BundleError, match=r"reference\.npz"):
        bundle_reference(load_bundle(bundle_folder))
