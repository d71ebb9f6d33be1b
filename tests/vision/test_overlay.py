from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vision.bundle import Manifest
from vision.calibration.probability import ClassCalibration
from vision.decision import OperatingPoint
from vision.drawing import CONTOUR, colour_table, fitting, printable, text_size
from vision.errors import SettingsError, UnknownClassError
from vision.explanations import ClassCheck, Estimate, Explanations, Status
from vision.overlay import render_overlay
from vision.postprocess import judge
from vision.scales import anomaly_range, evidence_scale
from vision.types import Frame, Inspection, ModelOutputs, Verdict

HEADER = 78
MARGIN = 14
FOOTER = 96


def grey(height: int = 500, width: int = 600) -> Frame:
    columns, rows = np.arange(width, dtype=np.uint16) * 7, np.arange(height, dtype=np.uint16) * 3
    return (np.add.outer(rows, columns) % 200 + 20).astype(np.uint8)


def inspected(
    frame: Frame,
    manifest: Manifest,
    spots: tuple[tuple[slice, slice], ...] = (np.s_[10:20, 20:30],),
    *,
    score: float = 0.9,
    logits: tuple[float, float] = (0.0, 2.0),
) -> Inspection:
    """An inspection whose 50x60 anomaly map is 0.2 and 1.0 in the spots."""
    values = np.full((50, 60), 0.2, np.float32)
    for spot in spots:
        values[spot] = 1.0
    saliency = np.stack([-values, values])
    outputs = ModelOutputs(
        class_logits=np.array([logits], np.float32),
        saliency_map=saliency[None],
        attention_map=np.abs(saliency)[None],
        anomaly_score=np.array([score], np.float32) if manifest.has_anomaly_score else None,
        anomaly_map=values[None] if manifest.has_anomaly_score else None,
    )
    return judge(outputs, manifest, frame.shape[0], frame.shape[1])


def left_pane(picture: NDArray[np.uint8], height: int = 500, width: int = 600) -> NDArray[np.uint8]:
    return picture[HEADER : HEADER + height, MARGIN : MARGIN + width]


def right_pane(picture: NDArray[np.uint8], height: int = 500, width: int = 600) -> NDArray[np.uint8]:
    left = 2 * MARGIN + width
    return picture[HEADER : HEADER + height, left : left + width]


def without_anomaly(manifest: Manifest) -> Manifest:
    return replace(
        manifest,
        classes=("dent", "scratch"),
        good_class=None,
        operating_point=OperatingPoint(None, None, None),
        calibration_scores=(),
    )


def test_a_clean_grey_frame_is_shown_as_it_is(manifest: Manifest) -> None:
    frame = grey()
    picture = render_overlay(frame, inspected(frame, manifest, ()), manifest)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(left_pane(picture), np.repeat(frame[:, :, None], 3, axis=2))


def test_an_unknown_defect_has_no_class_to_show(manifest: Manifest) -> None:
    sure = ClassCalibration("temperature", (1.0, 1.0), (0.0, 0.0), 50, {}, "a test")
    point = replace(manifest.operating_point, unknown_below=0.5)
    knowing = replace(manifest, class_calibration=sure, operating_point=point)
    frame = grey()
    inspection = inspected(frame, knowing, logits=(2.0, 0.0))
    assert inspection.is_unknown
    header = np.s_[:HEADER]
    known = inspected(frame, knowing, logits=(0.0, 2.0))
    assert (render_overlay(frame, inspection, knowing)[header] != render_overlay(frame, known, knowing)[header]).any()
    # Nothing of a class that does not exist is asked for, even where there is no anomaly map to show.
    render_overlay(frame, replace(inspection, anomaly_map=None), knowing)


def test_a_clean_colour_frame_is_shown_as_it_is(manifest: Manifest) -> None:
    frame = np.stack([grey(), grey()[::-1], grey()[:, ::-1]], axis=-1)
    picture = render_overlay(frame, inspected(frame, manifest, ()), manifest)
    np.testing.assert_array_equal(left_pane(picture), frame)


def test_everything_but_contours_and_labels_stays_grey(manifest: Manifest) -> None:
    frame = grey()
    pane = left_pane(render_overlay(frame, inspected(frame, manifest), manifest))
    coloured = (pane.max(axis=2) != pane.min(axis=2)).mean()
    assert 0 < coloured < 0.02


@pytest.mark.parametrize(
    "spots",
    [
        (np.s_[10:20, 20:30],),
        (np.s_[0:50, 0:50],),
        (np.s_[0:2, 0:2], np.s_[48:50, 58:60], np.s_[0:2, 58:60]),
        tuple(np.s_[row : row + 3, column : column + 3] for row in range(0, 50, 6) for column in range(0, 60, 6)),
        (np.s_[0:50, 0:60],),
    ],
)
def test_neither_contour_nor_label_covers_a_defect(manifest: Manifest, spots: tuple[tuple[slice, slice], ...]) -> None:
    frame = grey()
    inspection = inspected(frame, manifest, spots)
    pane = left_pane(render_overlay(frame, inspection, manifest))
    for region in inspection.regions:
        box = region.box
        window = np.s_[box.y : box.y + box.height, box.x : box.x + box.width]
        shown = pane[window][region.mask]
        np.testing.assert_array_equal(shown, np.repeat(frame[window][region.mask][:, None], 3, axis=1))


def test_a_label_stands_near_its_region(manifest: Manifest) -> None:
    frame = np.full((500, 600), 90, np.uint8)
    inspection = inspected(frame, manifest)
    changed = (left_pane(render_overlay(frame, inspection, manifest)) != 90).any(axis=2)
    (region,) = inspection.regions
    box = region.box
    near = changed.copy()
    near[max(0, box.y - 40) : box.y + box.height + 40, max(0, box.x - 60) : box.x + box.width + 60] = False
    assert changed.any()
    assert not near.any()


@pytest.mark.parametrize("threshold", [-3.0, 0.0, 0.02, 0.9, 4.0])
def test_the_threshold_lies_inside_a_scale_that_is_wide_enough_to_show_values(threshold: float) -> None:
    low, high = anomaly_range(threshold)
    assert low < high - 0.9
    assert low <= threshold < high


def test_the_map_colours_only_what_is_above_the_scale(manifest: Manifest) -> None:
    frame = grey()
    pane = right_pane(render_overlay(frame, inspected(frame, manifest), manifest))
    assert (pane[400, 50] == frame[400, 50]).all()
    middle = pane[150, 250].astype(int)
    assert middle.max() - middle.min() > 30


def test_the_part_stays_visible_under_the_map(manifest: Manifest) -> None:
    frame = np.where(np.indices((500, 600)).sum(axis=0) % 16 < 8, 40, 200).astype(np.uint8)
    pane = right_pane(render_overlay(frame, inspected(frame, manifest, (np.s_[:, :],)), manifest))
    inside = pane[100:400, 100:500].astype(int).mean(axis=2)
    assert inside[frame[100:400, 100:500] == 200].mean() - inside[frame[100:400, 100:500] == 40].mean() > 40


def explained(manifest: Manifest, status: Status = "passed") -> Manifest:
    checks = {"scratch": ClassCheck(status, "made up", 9, Estimate(0.8, 0.7, 0.9), Estimate(0.1, 0.05, 0.15))}
    return replace(
        manifest, explanations=Explanations((0.5, -1.0), evidence_scale=(0.5, 1.0), checks=checks, measured="made up")
    )


def test_evidence_of_a_class_that_failed_its_check_is_grey(manifest: Manifest) -> None:
    frame = grey()
    inspection = inspected(frame, manifest)
    for status, coloured in (("passed", True), ("unchecked", True), ("failed", False)):
        picture = render_overlay(frame, inspection, explained(manifest, status), class_name="scratch")
        pane = right_pane(picture).astype(int)
        assert bool(np.ptp(pane, axis=2).max() > 60) is coloured, status
        assert (pane[150, 250] != frame[150, 250]).any(), status  # the map is there, in grey too


def test_evidence_has_one_scale_for_every_frame_of_a_bundle(manifest: Manifest) -> None:
    told = explained(manifest)
    frame = np.full((500, 600), 90, np.uint8)
    weak = inspected(frame, told)
    strong = replace(weak, saliency_map=weak.saliency_map * np.linspace(1, 4, 60, dtype=np.float32))
    one, two = (right_pane(render_overlay(frame, found, told, class_name="scratch")) for found in (weak, strong))
    assert (one[400, 0] == two[400, 0]).all()
    before = replace(told, explanations=None)  # an earlier version's: scaled to each frame
    one, two = (right_pane(render_overlay(frame, found, before, class_name="scratch")) for found in (weak, strong))
    assert (one[400, 0] != two[400, 0]).any()


def test_full_colour_can_be_set_and_must_make_sense(manifest: Manifest) -> None:
    frame = np.full((500, 600), 90, np.uint8)
    inspection = inspected(frame, manifest)
    full, faint = (
        right_pane(render_overlay(frame, inspection, manifest, full_colour=value))[150, 250].astype(int)
        for value in (1.0, 50.0)
    )
    assert np.abs(full - 90).sum() > 100 > np.abs(faint - 90).sum()
    for nonsense in (0.0, -1.0, float("nan")):
        with pytest.raises(SettingsError, match="finite number above 0"):
            render_overlay(frame, inspection, manifest, full_colour=nonsense)


def test_the_cells_that_make_the_score_are_outlined_where_they_give_it(manifest: Manifest) -> None:
    """30 of the 3,000 cells are one percent: their mean is 1, and no other score is explained by them."""
    frame = grey()
    for score, outlined in ((1.0, True), (0.9, False)):
        inspection = inspected(frame, manifest, (np.s_[10:16, 20:25],), score=score)
        pane = right_pane(render_overlay(frame, inspection, manifest))
        found = np.argwhere((pane == CONTOUR).all(axis=2))
        assert bool(len(found)) is outlined
        if outlined:
            assert found.min(axis=0).tolist() == [100, 200]
            assert found.max(axis=0).tolist() == [159, 249]


def test_the_legend_says_what_adds_up_and_how_good_it_is(manifest: Manifest) -> None:
    frame = grey()
    values = np.full((1, 2, 10, 10), 0.02, np.float32)
    logits = np.array([[2.5, 1.0]], np.float32)
    inspection = judge(ModelOutputs(logits, values, values), without_anomaly(manifest), *frame.shape)
    told = replace(explained(manifest), classes=("good", "scratch"))
    notes = evidence_scale(inspection, told, "scratch").notes
    assert notes == (
        "bias -1.00 + whole map 2.00 = logit 1.00",
        "checked on 9 frames: 80% of it lay on the defect (by chance 10%)",
    )
    stretched = replace(inspection, saliency_map=np.repeat(inspection.saliency_map, 2, axis=1))
    assert evidence_scale(stretched, told, "scratch").notes == notes[1:]
    assert evidence_scale(inspection, explained(manifest, "failed"), "scratch").notes[1].startswith("FAILED ITS CHECK")
    assert evidence_scale(inspection, manifest, "scratch").title.endswith("scaled to this frame")


def test_one_scale_for_every_frame_of_a_bundle(manifest: Manifest) -> None:
    """The legend, and a spot of the same value, look alike whatever else is in the frame."""
    frame = np.full((500, 600), 90, np.uint8)
    one = render_overlay(frame, inspected(frame, manifest), manifest)
    two = render_overlay(frame, inspected(frame, manifest, (np.s_[10:20, 20:30], np.s_[30:45, 5:55])), manifest)
    np.testing.assert_array_equal(one[HEADER + 500 :, MARGIN + 610 :], two[HEADER + 500 :, MARGIN + 610 :])
    np.testing.assert_array_equal(right_pane(one)[150, 250], right_pane(two)[150, 250])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), (480, 480)),
        ((480, 300), (480, 300)),
        ((900, 700), (900, 700)),
        ((3648, 5472), (600, 900)),
        ((16, 16), (480, 480)),
    ],
)
def test_pane_sizes(manifest: Manifest, size: tuple[int, int], expected: tuple[int, int]) -> None:
    frame = grey(*size)
    picture = render_overlay(frame, inspected(frame, manifest), manifest)
    column = max(expected[1], 340)
    assert picture.shape == (HEADER + expected[0] + FOOTER, 2 * column + 3 * MARGIN, 3)


@pytest.mark.parametrize("size", [(100, 500), (500, 100), (40, 4000), (4000, 40), (1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes(manifest: Manifest, size: tuple[int, int]) -> None:
    frame = grey(*size)
    height, width = render_overlay(frame, inspected(frame, manifest), manifest).shape[:2]
    assert 340 <= width <= 2 * 900 + 3 * MARGIN
    assert height <= 2 * 900 + 200
    if size[1] > size[0]:  # wide frames one below the other
        assert width <= 900 + 2 * MARGIN


def test_a_model_without_an_anomaly_map_shows_its_saliency(manifest: Manifest) -> None:
    bare = without_anomaly(manifest)
    frame = grey()
    inspection = inspected(frame, bare)
    picture = render_overlay(frame, inspection, bare)
    np.testing.assert_array_equal(picture, render_overlay(frame, inspection, bare, class_name="scratch"))
    pane = right_pane(picture)[150, 250].astype(int)
    assert pane.max() - pane.min() > 30


def test_evidence_against_a_class_is_not_shown_as_evidence_for_it(manifest: Manifest) -> None:
    frame = grey()
    picture = render_overlay(frame, inspected(frame, manifest, ()), manifest, class_name="good")
    np.testing.assert_array_equal(right_pane(picture), np.repeat(frame[:, :, None], 3, axis=2))


def test_a_class_that_the_model_does_not_have(manifest: Manifest) -> None:
    frame = grey()
    with pytest.raises(UnknownClassError, match="no class 'rust' to show; choose one of good, scratch"):
        render_overlay(frame, inspected(frame, manifest), manifest, class_name="rust")


def test_another_frame_than_the_inspected_one(manifest: Manifest) -> None:
    with pytest.raises(SettingsError, match="of a 600x500 frame, this one has 500x600"):
        render_overlay(grey(600, 500), inspected(grey(), manifest), manifest)


def test_the_same_picture_every_time(manifest: Manifest) -> None:
    frame = grey()
    inspection = inspected(frame, manifest)
    first = render_overlay(frame, inspection, manifest)
    np.testing.assert_array_equal(first, render_overlay(frame.copy(), inspection, manifest))


def test_the_frame_is_not_drawn_upon(manifest: Manifest) -> None:
    frame = np.stack([grey()] * 3, axis=-1)
    before = frame.copy()
    frame.setflags(write=False)
    render_overlay(frame, inspected(frame, manifest), manifest)
    np.testing.assert_array_equal(frame, before)


def test_verdicts_differ_in_shape_and_not_in_colour_alone(manifest: Manifest) -> None:
    frame = grey()
    base = inspected(frame, manifest, ())
    symbols = []
    for verdict in Verdict:
        picture = render_overlay(frame, replace(base, verdict=verdict), manifest)
        lightness = cv2.cvtColor(picture[8:46, 10:50], cv2.COLOR_RGB2GRAY)
        symbols.append(np.digitize(lightness, [60, 190]).ravel())  # background, filled shape, white mark
    for one in (Verdict.PASS, Verdict.REJECT, Verdict.REVIEW, Verdict.NO_VERDICT):
        for other in (Verdict.PASS, Verdict.REJECT, Verdict.REVIEW, Verdict.NO_VERDICT):
            if one is not other:
                assert (symbols[one] != symbols[other]).mean() > 0.05


@pytest.mark.parametrize("thresholds", [(0.8, 0.7, 0.39), (0.2, 0.1, 0.1), (-1.0, -2.0, -3.0), (0.0, 0.0, 0.0)])
@pytest.mark.filterwarnings("error")
def test_any_operating_point_gives_a_scale(manifest: Manifest, thresholds: tuple[float, float, float]) -> None:
    frame = grey(120, 120)
    for scores in ((), (0.1, 0.25, 0.4)):
        other = replace(manifest, operating_point=OperatingPoint(*thresholds), calibration_scores=scores)
        assert render_overlay(frame, inspected(frame, other), other).any()


def test_a_broken_map_is_still_drawn(manifest: Manifest) -> None:
    frame = grey()
    nan = np.full((50, 60), np.nan, np.float32)
    inspection = replace(
        inspected(frame, manifest, ()), anomaly_map=nan, anomaly_score=float("nan"), verdict=Verdict.NO_VERDICT
    )
    picture = render_overlay(frame, inspection, manifest)
    np.testing.assert_array_equal(right_pane(picture), np.repeat(frame[:, :, None], 3, axis=2))


def test_long_and_foreign_class_names(manifest: Manifest) -> None:
    name = "Überlappung der Kante 角度 " * 6
    other = replace(manifest, classes=("good", name))
    frame = grey(100, 100)
    assert render_overlay(frame, inspected(frame, other), other).shape[1] == 2 * 480 + 3 * MARGIN
    assert printable("Öl 角") == "Ol ?"


def test_text_is_made_to_fit() -> None:
    text, scale = fitting("a rather long line of text", 0.6, 120)
    assert text_size(text, scale)[0] <= 120
    assert text.endswith("..")
    assert fitting("short", 0.6, 500) == ("short", 0.6)


def test_lightness_of_the_colours_grows_with_the_value() -> None:
    """So that the map reads without colour vision and in a grey print."""
    lightness = cv2.cvtColor(colour_table()[None], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(lightness) >= -1).all()
    assert lightness[-1] - lightness[0] > 150
