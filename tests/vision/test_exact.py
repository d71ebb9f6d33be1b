"""Explanations are the computation: maps add up to logit and score, whatever the frame, its size and the weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.vision.test_model import VARIANTS
from vision.explanations import EXACT, TOP_SHARE, score_shares
from vision.model.detector import Detector, pool

SIDES = st.integers(2, 8).map(lambda cells: 32 * cells)


@cache
def trained(variant: str, seed: int) -> Detector:
    """A detector whose read-out speaks as loudly as a trained one's: logits of some tens."""
    torch.manual_seed(seed)
    detector = Detector(VARIANTS[variant]).eval()
    with torch.no_grad():
        for parameter in detector.readout.parameters():
            parameter.mul_(3.0)
        detector.readout.bias.normal_(0.0, 2.0)
    return detector


def picture(height: int, width: int, kind: str, seed: int) -> NDArray[np.uint8]:
    """Noise, one flat tone, or a black frame with one white spot."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame = np.full((height, width, 3), rng.integers(0, 256) if kind == "flat" else 0, np.uint8)
    if kind == "spot":
        y, x = int(rng.integers(height - 8)), int(rng.integers(width - 8))
        frame[y : y + 8, x : x + 8] = 255
    return frame


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.integers(0, 2),
    SIDES,
    SIDES,
    st.sampled_from(["noise", "flat", "spot"]),
    st.integers(0, 9999),
)
def test_maps_add_up_in_torch(variant: str, weights: int, height: int, width: int, kind: str, seed: int) -> None:
    detector = trained(variant, weights)
    with torch.no_grad():
        outputs = detector(torch.from_numpy(picture(height, width, kind, seed))[None])
    total = detector.readout.bias + outputs.saliency_map.sum(dim=(2, 3))
    torch.testing.assert_close(total, outputs.class_logits, atol=EXACT, rtol=0)
    if outputs.anomaly_score is not None:
        values = outputs.anomaly_map[0].numpy()
        explained = float((score_shares(values) * values).sum(dtype=np.float64))
        assert abs(explained - float(outputs.anomaly_score[0])) <= EXACT


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=60), elements=st.floats(-50, 50, width=32))
)
def test_shares_say_which_cells_make_the_score(values: NDArray[np.float32]) -> None:
    """With many equal values too, where any choice at the edge must give the same score."""
    shares = score_shares(values)
    assert (shares >= 0).all()
    assert abs(float(shares.sum()) - 1) < 1e-5
    chosen = np.sort(values[shares > 0])
    count = max(1, round(TOP_SHARE * values.size))
    np.testing.assert_array_equal(chosen, np.sort(values.ravel())[-count:])
    expected = float(pool(torch.from_numpy(values)[None])[0])
    assert abs(float((shares * values).sum(dtype=np.float64)) - expected) <= EXACT


def test_shares_of_a_map_whose_score_is_its_largest_value() -> None:
    values = np.array([[0.0, 3.0], [1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(score_shares(values, 0.01), [[0, 1], [0, 0]])
    np.testing.assert_array_equal(score_shares(values, 0.5), [[0, 0.5], [0, 0.5]])
