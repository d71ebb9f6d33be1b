"""Taking patches away, checked with scores that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.vision.test_model import VARIANTS, frames
from training.explain.figures import area_under_curve
from training.explain.perturb import PATCH, best_reference, curves, feature_score, picture_score, replace_patches
from vision.model.detector import Detector

GRID = (6, 8)


def scene(value: int, spot: int | None = None) -> NDArray[np.uint8]:
    """A flat frame of 96x128 px, perhaps with a spot in patch (2, 3)."""
    frame = np.full((96, 128, 3), value, np.uint8)
    if spot is not None:
        frame[32:48, 48:64] = spot
    return frame


def test_nothing_half_and_all_is_replaced() -> None:
    frame, reference = scene(100), scene(200)
    none, everything = np.zeros(GRID, bool), np.ones(GRID, bool)
    np.testing.assert_array_equal(replace_patches(frame, reference, none), frame)
    np.testing.assert_array_equal(replace_patches(frame, reference, everything), reference)
    left = none.copy()
    left[:, :4] = True
    mixed = replace_patches(frame, reference, left)
    assert (mixed[:, : 4 * PATCH - 20] == 200).all()
    assert (mixed[:, 4 * PATCH + 20 :] == 100).all()
    assert np.abs(np.diff(mixed[0, :, 0].astype(int))).max() < 12  # no edge that could be taken for a crack


def test_the_reference_is_the_likest_good_frame_in_the_frames_light() -> None:
    ramp = np.broadcast_to(np.linspace(60, 160, 128).astype(np.uint8)[None, :, None], (96, 128, 3))
    good = np.stack([ramp[:, ::-1], ramp, scene(100)])
    darker = (ramp - 30).astype(np.uint8)
    darker[20:40, 30:50] = 255  # the defect must not decide
    np.testing.assert_array_equal(best_reference(darker, good), ramp - 30)


def brightness_of_the_spot(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of two classes; the second one is high while the spot in patch (2, 3) is bright."""
    bright = batch[:, 36:44, 52:60].mean(axis=(1, 2, 3)) > 170
    return np.where(bright[:, None], [[0.0, 9.0]], [[9.0, 0.0]]).astype(np.float32)


def test_a_map_that_is_right_keeps_the_score_and_takes_it_away() -> None:
    score = picture_score(brightness_of_the_spot, scene(100, spot=250), scene(100), batch=5)
    right, wrong = np.zeros(GRID, np.float32), np.ones(GRID, np.float32)
    right[1:4, 2:5] = 1.0  # with its neighbours, for what is replaced has soft edges
    right[2, 3] = 2.0
    wrong[1:4, 2:5] = 0.0
    found = curves({"right": right, "wrong": wrong}, score, GRID, target=1)
    for one in found.values():
        assert one.shares[0] == 0
        assert one.shares[-1] == 1
        assert one.insertion[0] == one.deletion[-1] < 0.01
        assert one.insertion[-1] == one.deletion[0] > 0.99
    area = {
        name: (area_under_curve(one.shares, one.insertion), area_under_curve(one.shares, one.deletion))
        for name, one in found.items()
    }
    assert area["right"][0] > 0.8 > 0.2 > area["wrong"][0]
    assert area["right"][1] < 0.2 < 0.8 < area["wrong"][1]


def test_equal_values_do_not_favour_the_top_of_the_frame() -> None:
    taken: list[NDArray[np.bool_]] = []

    def score(replaced: NDArray[np.bool_]) -> NDArray[np.float32]:
        taken.extend(replaced)
        return np.zeros((len(replaced), 2), np.float32)

    curves({"flat": np.zeros(GRID, np.float32)}, score, GRID, target=1)
    few = next(one for one in taken if one.sum() == 8)
    assert few[3:].any()
    assert few[:3].any()


def test_features_are_replaced_by_what_the_reconstruction_expects() -> None:
    torch.manual_seed(0)
    detector = Detector(VARIANTS["everything"]).eval()
    frame, reference = frames(2).numpy()
    score = feature_score(detector, frame, reference, batch=2)
    half = np.zeros((3, *GRID), bool)
    half[1, :3] = True
    half[2] = True
    logits = score(half)
    with torch.no_grad():
        whole = detector(torch.from_numpy(frame)[None]).class_logits[0].numpy()
        features = detector.backbone(torch.from_numpy(frame)[None])
        rebuilt = detector.reconstruction.normal_features(features[1:])
        finest = detector.backbone(torch.from_numpy(reference)[None])[0]
        normal = detector.read([finest, *rebuilt]).class_logits[0].numpy()
    np.testing.assert_allclose(logits[0], whole, atol=1e-5)
    np.testing.assert_allclose(logits[2], normal, atol=1e-5)
    assert not np.allclose(logits[1], whole, atol=1e-4)
    with pytest.raises(ValueError, match="no reconstruction"):
        feature_score(Detector(VARIANTS["masks"]), frame, reference, batch=2)
