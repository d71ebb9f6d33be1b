"""The subspace of good frames: solved like principal components, refitted without moving what counts as far."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tests.images import make_folder
from training.data import DataSet, read_data
from training.stores import FrameStore
from training.subspace import fit_subspace, principal
from vision.model.backbone import Backbone, load_pretrained
from vision.model.config import ModelConfig
from vision.model.detector import Detector
from vision.model.subspace import rest
from vision.preprocess import InputSpec


def test_principal_components_agree_with_scikit_learn() -> None:
    rows = torch.randn(20, 60, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 60)
    rows = rows - rows.mean(dim=0)
    ours, theirs = principal(rows, 5), PCA(5, svd_solver="full").fit(rows.numpy()).components_
    np.testing.assert_allclose(np.abs((ours.numpy() * theirs).sum(axis=1)), 1, atol=1e-4)
    torch.testing.assert_close(ours @ ours.t(), torch.eye(5), atol=1e-4, rtol=0)


def test_no_more_components_than_the_frames_have() -> None:
    rows = torch.randn(4, 30)
    rows = rows - rows.mean(dim=0)
    basis = principal(rows, 10)
    assert len(basis) == 3
    assert float(rest(rows, basis).abs().max()) < 1e-4
    assert len(principal(torch.zeros(1, 30), 10)) == 0


def _detector(tmp_path: Path, tiny_weights: Path, *, subspace: int) -> tuple[Detector, DataSet]:
    data = read_data(make_folder(tmp_path, train={"good": 24}))
    config = ModelConfig(
        "test_efficientnet", 96, 128, data.classes, "good", False, False, dim=32, heads=4, subspace=subspace
    )
    torch.manual_seed(0)
    detector = Detector(config)
    load_pretrained(detector.backbone, tiny_weights)
    return detector, data


@pytest.fixture
def fitted(tmp_path: Path, tiny_weights: Path) -> tuple[Detector, FrameStore, FrameStore]:
    detector, data = _detector(tmp_path, tiny_weights, subspace=30)
    stores = [FrameStore(part, InputSpec(96, 128)) for part in (data.train[:16], data.train[16:])]
    fit_subspace(detector, stores[:1])
    return detector, stores[0], stores[1]


def _distances(detector: Detector, frames: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        found = detector.eval()(torch.from_numpy(frames)).subspace_map
    assert found is not None
    return found


@torch.no_grad()
def _check_rounding(detector: Detector, features: list[torch.Tensor]) -> None:
    """What features are rounded by does not show in their distances."""
    assert detector.subspace is not None
    rounded = [level * (1 + 3e-7) for level in features[2:]]
    torch.testing.assert_close(detector.subspace(rounded), detector.subspace(features[2:]), atol=1e-3, rtol=0)


def _frames(store: FrameStore) -> np.ndarray:
    return np.stack([store[index][0] for index in range(len(store))])


def test_known_frames_lie_nearer_than_new_ones_and_those_nearer_than_damaged_ones(
    fitted: tuple[Detector, FrameStore, FrameStore],
) -> None:
    detector, known, new = fitted
    damaged = _frames(new).copy()
    damaged[:, 40:72, 64:96] = 255 - damaged[:, 40:72, 64:96]
    near, further, far = (_distances(detector, frames).mean() for frames in (_frames(known), _frames(new), damaged))
    assert near < further < far


def test_frames_that_lie_alike_foresee_each_other_and_noise_does_not(tmp_path: Path, tiny_weights: Path) -> None:
    detector, data = _detector(tmp_path, tiny_weights, subspace=8)
    rng = np.random.default_rng(0)
    part, light = rng.integers(60, 190, (96, 128, 3)), np.linspace(-50, 50, 24)

    class Pictures(FrameStore):
        def __init__(self, *, alike: bool) -> None:
            super().__init__(data.train, InputSpec(96, 128))
            self._alike = alike

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            new = rng.integers(60, 190, part.shape)
            frame = part + light[index] + 0.02 * new if self._alike else new
            return frame.clip(0, 255).astype(np.uint8), np.zeros(part.shape[:2], np.uint8)

    alike, noise = (fit_subspace(detector, [Pictures(alike=value)]) for value in (True, False))
    assert alike is not None
    assert noise is not None
    assert noise < 0.3 < 0.8 < alike <= 1.0
    assert fit_subspace(detector, [Pictures(alike=True)], again=True) is None


def test_more_frames_bring_new_parts_nearer_and_leave_the_yardstick(
    fitted: tuple[Detector, FrameStore, FrameStore],
) -> None:
    detector, known, new = fitted
    before = _distances(detector, _frames(new)).mean()
    yardstick = [
        float(getattr(detector.subspace, f"{name}{level}")) for name in ("center", "spread") for level in (0, 1)
    ]
    fit_subspace(detector, [known, new], again=True)
    assert _distances(detector, _frames(new)).mean() < before
    assert yardstick == [
        float(getattr(detector.subspace, f"{name}{level}")) for name in ("center", "spread") for level in (0, 1)
    ]


@pytest.mark.parametrize(("tiles", "at_once"), [({}, 1), ({"tile_height": 96, "tile_width": 128}, 4)])
def test_large_frames_are_measured_one_at_a_time_and_their_tiles_more_at_once(
    fitted: tuple[Detector, FrameStore, FrameStore],
    monkeypatch: pytest.MonkeyPatch,
    tiles: dict[str, int],
    at_once: int,
) -> None:
    detector, known, new = fitted
    detector.config = replace(detector.config, height=192, width=256, **tiles)
    real, batches = Backbone.forward, []

    def counted(self: Backbone, frames: torch.Tensor) -> list[torch.Tensor]:
        batches.append(len(frames))
        return real(self, frames)

    monkeypatch.setattr(Backbone, "forward", counted)
    monkeypatch.setattr("vision.preprocess._BATCH_PIXELS", detector.config.height * detector.config.width)
    fit_subspace(detector, [known, new], again=True)
    assert set(batches) == {at_once}
    assert sum(batches) == len(known) + len(new)


def test_good_frames_that_are_all_alike_do_not_make_a_measure_of_rounding(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained backbone can draw good frames together until the patterns explain them whole."""
    detector, data = _detector(tmp_path, tiny_weights, subspace=30)
    store = FrameStore(data.train, InputSpec(96, 128))
    real = detector.backbone.forward

    def drawn_together(frames: torch.Tensor) -> list[torch.Tensor]:
        """One pattern, more or less of it in each frame."""
        share = torch.frac(37 * frames.float().mean(dim=(1, 2, 3))).view(-1, 1, 1, 1)
        return [share * level for level in real(torch.from_numpy(store[0][0][None]))]

    monkeypatch.setattr(detector.backbone, "forward", drawn_together)
    fit_subspace(detector, [store])
    _check_rounding(detector, drawn_together(torch.from_numpy(_frames(store)[:4])))


def test_a_channel_that_is_silent_on_good_frames_does_not_drown_the_others(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone with ReLU can have such channels, and a defect is what makes them speak."""
    detector, data = _detector(tmp_path, tiny_weights, subspace=8)
    store = FrameStore(data.train, InputSpec(96, 128))
    real = detector.backbone.forward

    def first_channel_silent(frames: torch.Tensor) -> list[torch.Tensor]:
        levels = [level.clone() for level in real(frames)]
        for level in levels:
            level[:, 0] = 0
        return levels

    monkeypatch.setattr(detector.backbone, "forward", first_channel_silent)
    fit_subspace(detector, [store])
    _check_rounding(detector, real(torch.from_numpy(_frames(store)[:4])))
