from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vision.bundle import Manifest
from vision.decision import OperatingPoint, softmax
from vision.postprocess import ANOMALY, find_regions, has_regions, judge, resize_map
from vision.types import FloatArray, ModelOutputs, Verdict


def blank(height: int = 40, width: int = 60) -> FloatArray:
    return np.zeros((height, width), np.float32)


def outputs_of(
    anomaly_map: FloatArray | None, logits: tuple[float, float] = (2.0, 0.0), score: float | None = None
) -> ModelOutputs:
    known = anomaly_map is not None
    value = float(anomaly_map.max()) if known and score is None else score
    return ModelOutputs(
        class_logits=np.array([logits], np.float32),
        saliency_map=np.zeros((1, 2, 4, 6), np.float32),
        attention_map=np.zeros((1, 2, 4, 6), np.float32),
        anomaly_score=None if value is None else np.array([value], np.float32),
        anomaly_map=anomaly_map[None] if known else None,
    )


def test_softmax() -> None:
    scores = softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]], np.float32))
    np.testing.assert_allclose(scores, [[0.5, 0.5], [0.25, 0.75]], atol=1e-6)
    assert scores.dtype == np.float32


def test_boxes_masks_and_areas_are_exact_at_frame_size() -> None:
    values = blank()
    values[5:10, 20:30] = 0.7
    values[7, 25] = 0.9
    values[30:33, 2:4] = 0.8
    values[32, 3] = 0.0
    first, second = find_regions(values, 0.5, 40, 60)
    assert (first.box.x, first.box.y, first.box.width, first.box.height) == (20, 5, 10, 5)
    assert first.score == pytest.approx(0.9)
    assert first.area_px == 50
    assert first.mask.all()
    assert (second.box.x, second.box.y, second.box.width, second.box.height) == (2, 30, 2, 3)
    np.testing.assert_array_equal(second.mask, [[True, True], [True, True], [True, False]])
    assert second.area_px == 5
    assert {first.label, second.label} == {ANOMALY}


def test_a_value_equal_to_the_threshold_is_a_hit() -> None:
    values = blank()
    values[3, 4] = 0.5
    (region,) = find_regions(values, 0.5, 40, 60)
    assert region.area_px == 1
    assert find_regions(values, float(np.nextafter(np.float32(0.5), np.float32(1))), 40, 60) == ()


def test_diagonal_neighbours_are_one_region() -> None:
    values = blank()
    values[1, 1] = values[2, 2] = 1.0
    (region,) = find_regions(values, 0.5, 40, 60)
    assert region.area_px == 2


@pytest.mark.parametrize(("height", "width"), [(80, 120), (400, 600), (30, 45), (37, 411)])
def test_maps_are_stretched_to_the_frame(height: int, width: int) -> None:
    values = blank()
    values[10:20, 15:45] = 1.0
    (region,) = find_regions(values, 0.5, height, width)
    assert region.box.x == pytest.approx(width / 4, abs=width / 60 + 1)
    assert region.box.y == pytest.approx(height / 4, abs=height / 40 + 1)
    assert region.area_px == pytest.approx(height * width / 8, rel=0.15)
    assert region.mask.shape == (region.box.height, region.box.width)
    assert region.area_px == region.mask.sum()


@pytest.mark.parametrize(("height", "width"), [(3648, 5472), (5472, 1000), (2049, 2049), (1, 4100), (4100, 30)])
def test_huge_and_thin_frames(height: int, width: int) -> None:
    values = blank()
    values[:, 45:] = 1.0
    (region,) = find_regions(values, 0.5, height, width)
    assert region.box.x + region.box.width == width
    assert region.box.height == height
    assert region.mask.shape == (region.box.height, region.box.width)
    assert region.area_px == pytest.approx(height * width / 4, rel=0.15 if width > 100 else 0.5)


def test_regions_stay_inside_the_frame_at_its_edges() -> None:
    values = blank()
    values[0, 0] = values[-1, -1] = 1.0
    for region in find_regions(values, 0.5, 3001, 4003):
        assert region.box.x + region.box.width <= 4003
        assert region.box.y + region.box.height <= 3001
        assert region.area_px > 0


def test_at_most_a_hundred_regions_the_worst_first() -> None:
    values = blank(60, 60)
    values[::4, ::4] = np.linspace(0.6, 1.0, 225, dtype=np.float32).reshape(15, 15)
    regions = find_regions(values, 0.5, 60, 60)
    assert len(regions) == 100
    scores = [region.score for region in regions]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1.0)


def test_a_frame_smaller_than_the_map_may_lose_a_hit() -> None:
    values = blank()
    values[2, 3] = 0.9
    for height, width in ((1, 1), (1, 3), (3, 1), (4, 4)):
        regions = find_regions(values, 0.5, height, width)
        assert all(region.area_px > 0 for region in regions)


def test_no_region_in_a_clean_or_broken_map() -> None:
    assert find_regions(blank(), 0.5, 40, 60) == ()
    assert find_regions(np.full((4, 4), np.nan, np.float32), 0.5, 40, 60) == ()


def test_a_region_is_named_by_the_class_map() -> None:
    values = blank()
    values[5:10, 5:10] = values[20:30, 40:50] = 1.0
    class_map = np.zeros((2, 40, 60), np.float32)
    class_map[0, :, :30] = class_map[1, :, 30:] = 1.0
    regions = find_regions(
        values, 0.5, 40, 60, class_map=class_map, defect_classes=["dent", "crack"], default_label="unused"
    )
    assert {region.box.x: region.label for region in regions} == {5: "dent", 40: "crack"}


@pytest.fixture
def with_classes(manifest: Manifest) -> Manifest:
    point = replace(manifest.operating_point, class_pixel_thresholds={"dent": 0.9})
    return replace(manifest, classes=("good", "dent", "crack"), operating_point=point)


def _halos(peak: float) -> ModelOutputs:
    """A dent on the left and a crack on the right, each of 10x10 cells at 0.7 around 4x4 at ``peak``."""
    values, class_map = blank(), np.zeros((2, 40, 60), np.float32)
    for left in (10, 40):
        values[10:20, left : left + 10] = 0.7
        values[13:17, left + 3 : left + 7] = peak
    class_map[0, :, :30] = class_map[1, :, 30:] = 1.0
    return replace(outputs_of(values, score=0.85), class_logits=np.array([[0.0, 2.0, 0.0]], np.float32),
                   class_map=class_map[None])  # fmt: skip


def test_where_a_class_is_favoured_that_has_a_pixel_threshold_it_draws_the_outline(with_classes: Manifest) -> None:
    outputs = _halos(0.95)
    found = {region.label: region for region in judge(outputs, with_classes, 40, 60).regions}
    assert (found["dent"].box.width, found["dent"].area_px) == (4, 16)
    assert (found["crack"].box.width, found["crack"].area_px) == (10, 100)
    assert found["dent"].score == pytest.approx(0.95)
    assert has_regions(outputs, with_classes)


def test_a_part_that_is_not_passed_shows_where_even_below_its_class_s_threshold(with_classes: Manifest) -> None:
    outputs = _halos(0.75)
    assert outputs.anomaly_map is not None
    assert outputs.class_map is not None
    outputs.anomaly_map[0, :, 30:] = 0.0  # the dent alone is left
    rejected = judge(outputs, with_classes, 40, 60)
    assert rejected.verdict is Verdict.REJECT
    assert [region.label for region in rejected.regions] == ["dent"]
    passed = judge(replace(outputs, anomaly_score=np.array([0.1], np.float32)), with_classes, 40, 60)
    assert passed.verdict is Verdict.PASS
    assert passed.regions == ()


def test_class_pixel_thresholds_are_found_from_below_the_usual_one(with_classes: Manifest) -> None:
    lower = replace(with_classes.operating_point, class_pixel_thresholds={"dent": 0.3})
    outputs = _halos(0.5)
    assert outputs.anomaly_map is not None
    outputs.anomaly_map[0] = np.minimum(outputs.anomaly_map[0], 0.5)
    manifest = replace(with_classes, operating_point=lower)
    assert has_regions(outputs, manifest)
    assert [region.label for region in judge(outputs, manifest, 40, 60).regions] == ["dent"]


def test_resizing_a_map_is_the_inverse_of_the_stretch() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(32, axis=0)
    wide = resize_map(ramp, 320, 640)
    assert wide.shape == (320, 640)
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide[160, 320], 0.5, atol=0.01)


@pytest.mark.parametrize(
    ("peak", "verdict"), [(0.5, Verdict.PASS), (0.75, Verdict.REVIEW), (0.8, Verdict.REJECT), (1.0, Verdict.REJECT)]
)
def test_judging_by_the_anomaly_score(manifest: Manifest, peak: float, verdict: Verdict) -> None:
    values = blank()
    values[4:8, 4:8] = peak
    inspection = judge(outputs_of(values), manifest, 40, 60)
    assert inspection.verdict is verdict
    assert inspection.predicted == "good"
    assert inspection.anomaly_score == pytest.approx(peak)
    assert inspection.calibrated_anomaly_score == pytest.approx(0.8)
    assert len(inspection.regions) == (1 if peak >= 0.6 else 0)
    assert all(region.label == ANOMALY for region in inspection.regions)
    assert (inspection.frame_height, inspection.frame_width) == (40, 60)


def test_regions_of_a_part_with_a_predicted_defect_carry_its_class(manifest: Manifest) -> None:
    values = blank()
    values[4:8, 4:8] = 1.0
    inspection = judge(outputs_of(values, logits=(0.0, 2.0)), manifest, 40, 60)
    assert inspection.predicted == "scratch"
    assert [region.label for region in inspection.regions] == ["scratch"]


@pytest.mark.parametrize(("score", "predicted"), [(0.79, "good"), (0.81, "scratch")])
def test_without_labelled_defects_the_image_threshold_predicts(
    manifest: Manifest, score: float, predicted: str
) -> None:
    one_class = replace(manifest, predicts_by_anomaly_score=True)
    assert judge(outputs_of(blank(), score=score), one_class, 40, 60).predicted == predicted


def test_a_model_that_knows_no_good_part(manifest: Manifest) -> None:
    bare = replace(
        manifest,
        classes=("dent", "crack"),
        good_class=None,
        operating_point=OperatingPoint(None, None, None, class_threshold=0.8),
        calibration_scores=(),
    )
    sure = judge(outputs_of(None, logits=(0.0, 4.0)), bare, 40, 60)
    assert (sure.verdict, sure.predicted) == (Verdict.REJECT, "crack")
    unsure = judge(outputs_of(None, logits=(0.0, 0.1)), bare, 40, 60)
    assert unsure.verdict is Verdict.REVIEW
    assert unsure.anomaly_score is unsure.calibrated_anomaly_score is unsure.anomaly_map is None
    assert unsure.regions == ()
    # It saw masks of defects: where they are can be shown, and what they are, but no part passes for want of them.
    marked = blank()
    marked[10:12, 20:24] = 1.0
    classes = np.stack([np.full_like(marked, 0.9), np.full_like(marked, 0.1)])[None]
    masks = replace(bare, operating_point=replace(bare.operating_point, pixel_threshold=0.5))
    seen = replace(outputs_of(marked, logits=(0.0, 4.0)), anomaly_score=None, class_map=classes)
    found = judge(seen, masks, 40, 60)
    assert found.anomaly_score is None
    assert [(region.label, region.area_px) for region in found.regions] == [("dent", 8)]
    clean = replace(outputs_of(blank(), logits=(0.0, 0.1)), anomaly_score=None)
    nothing = judge(clean, masks, 40, 60)
    assert (nothing.verdict, nothing.regions) == (Verdict.REVIEW, ())


def test_a_score_that_is_no_number_gives_no_verdict(manifest: Manifest) -> None:
    inspection = judge(outputs_of(blank(), score=float("nan")), manifest, 40, 60)
    assert inspection.verdict is Verdict.NO_VERDICT
    assert "nan" in inspection.reason


def test_a_regions_class_is_the_favourite_of_its_pixels() -> None:
    """The short way over the grid gives what stretching every plane to the frame would give."""
    random = np.random.default_rng(3)
    names = ["a", "b", "c"]
    for height, width in ((97, 131), (300, 200), (40, 60)):
        values = resize_map(random.standard_normal((5, 7)).astype(np.float32), 12, 16)
        class_map = random.random((3, 12, 16)).astype(np.float32)
        regions = find_regions(values, 0.5, height, width, class_map=class_map, defect_classes=names)
        assert regions
        stretched = np.stack([resize_map(plane, height, width) for plane in class_map])
        for region in regions:
            box = region.box
            window = np.s_[:, box.y : box.y + box.height, box.x : box.x + box.width]
            means = stretched[window][:, region.mask].mean(axis=1)
            assert region.label == names[int(np.argmax(means))]


def test_a_large_defect_in_a_large_frame_is_found_on_a_coarser_map_at_hardly_any_loss() -> None:
    rows, columns = np.mgrid[:56, :72].astype(np.float32)
    values = np.exp(-(((rows - 20) / 9) ** 2 + ((columns - 40) / 14) ** 2)).astype(np.float32)
    (region,) = find_regions(values, 0.3, 1024, 1280)
    truth = resize_map(values, 1024, 1280) >= 0.3
    found = np.zeros_like(truth)
    box = region.box
    found[box.y : box.y + box.height, box.x : box.x + box.width] = region.mask
    assert (found & truth).sum() / (found | truth).sum() > 0.985
    assert region.area_px == found.sum()


def test_regions_can_be_left_out_and_nothing_else_changes(manifest: Manifest) -> None:
    values = blank()
    values[5:10, 20:30] = 5.0
    outputs = outputs_of(values)
    whole, bare = judge(outputs, manifest, 40, 60), judge(outputs, manifest, 40, 60, regions=False)
    assert len(whole.regions) == 1
    assert bare.regions == ()
    assert (bare.verdict, bare.reason, bare.predicted) == (whole.verdict, whole.reason, whole.predicted)


def test_a_value_that_is_no_number_hides_no_defect_elsewhere(manifest: Manifest) -> None:
    values = blank()
    values[5:10, 20:30] = 5.0
    values[30, 50] = np.nan
    assert len(judge(outputs_of(values, score=5.0), manifest, 40, 60).regions) == 1
