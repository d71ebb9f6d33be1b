"""Usual explanations against captum and against their own formulas, on a small detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn

from tests.vision.test_model import VARIANTS, frames
from training.explain.heads import head_maps, named_blocks, silenced
from training.explain.methods import METHODS, engine_maps, grad_cams, integrated_gradients, rollout, torch_maps
from training.explain.randomise import cascade, correlations
from training.explain.subjects import Subject
from training.torch_engine import TorchEngine
from vision.model.detector import Detector

TARGETS = torch.tensor([1, 2])


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(VARIANTS["everything"]).eval()


class Logits(nn.Module):
    """The class logits alone, as captum wants them; tokens have channels last, captum wants them first."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.tap = nn.Identity()
        self.detector.fusion.register_forward_hook(lambda _, __, out: (self.tap(out[0].transpose(1, 2)).mT, out[1]))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.detector(pixels).class_logits
        return logits


def test_grad_cam_is_captums(detector: Detector) -> None:
    batch = frames(2)
    ours, _ = grad_cams(detector, batch, TARGETS)
    model = Logits(Detector(detector.config).eval())
    model.detector.load_state_dict(detector.state_dict())
    theirs = LayerGradCam(model, model.tap).attribute(batch.float(), TARGETS, relu_attributions=True)
    torch.testing.assert_close(ours.flatten(1), theirs[:, 0], atol=1e-6, rtol=1e-4)
    assert ours.shape == (2, 6, 8)
    assert ours.max() > 0


def test_grad_cam_pp_follows_its_paper() -> None:
    """Equations 10, 11 and 19 of Chattopadhay et al. with loops, on a detector whose tokens we can see."""
    torch.manual_seed(1)
    detector = Detector(VARIANTS["not guided"]).eval()
    batch = frames(1)
    seen: list[Tensor] = []
    handle = detector.fusion.register_forward_hook(lambda _, __, out: seen.append(out[0]))
    score = detector(batch).class_logits[0, 1]
    handle.remove()
    activation = seen[0][0].T  # [channels, places]
    (gradient,) = torch.autograd.grad(score, seen)
    gradient = gradient[0].T
    expected = torch.zeros(activation.shape[1])
    for channel in range(activation.shape[0]):
        g, a = gradient[channel], activation[channel]
        alpha = g**2 / (2 * g**2 + (a * g**3).sum())
        expected += (alpha * g.relu()).sum() * a
    _, ours = grad_cams(detector, batch, torch.tensor([1]))
    torch.testing.assert_close(ours[0].flatten(), expected.relu().detach(), atol=1e-6, rtol=1e-3)


@pytest.mark.slow
def test_integrated_gradients_are_captums_and_complete(detector: Detector) -> None:
    batch = frames(2).float()
    start = torch.full_like(batch, 90.0)
    ours = integrated_gradients(detector, batch, start, TARGETS)
    reference = IntegratedGradients(Logits(detector))
    theirs = reference.attribute(batch, start, TARGETS, n_steps=24, method="riemann_middle").sum(dim=-1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    with torch.no_grad():
        whole, empty = detector(batch).class_logits, detector(start).class_logits
    difference = (whole - empty).gather(1, TARGETS[:, None])[:, 0]
    many = integrated_gradients(detector, batch, start, TARGETS, steps=64)
    torch.testing.assert_close(many.sum(dim=(1, 2)), difference, atol=0.05, rtol=0.05)


def test_rollout_without_attention_blocks_is_the_class_attention() -> None:
    torch.manual_seed(0)
    detector = Detector(VARIANTS["not guided"]).eval()
    blocks, detector.blocks = detector.blocks, nn.ModuleList()
    batch = frames(2)
    with torch.no_grad():
        attended = detector(batch).attention_map[torch.arange(2), TARGETS]
    torch.testing.assert_close(rollout(detector, batch, TARGETS), attended)
    detector.blocks = blocks
    found = rollout(detector, batch, TARGETS)
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(2))


def test_every_method_gives_one_map_a_frame(detector: Detector) -> None:
    batch = frames(2).numpy()
    maps = engine_maps(TorchEngine(detector).run(batch), TARGETS.tolist(), 0)
    maps |= torch_maps(detector, batch, np.full_like(batch, 90), TARGETS.tolist())
    assert maps.keys() == METHODS.keys()
    for name, values in maps.items():
        assert values.shape[0] == 2, name
        assert np.isfinite(values).all(), name


def test_randomising_takes_every_weight_and_leaves_the_model_alone(detector: Detector) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    stages = []
    for stage, broken in cascade(detector, seed=0):
        stages.append(stage)
        last = {name: value.clone() for name, value in broken.named_parameters()}
    assert stages == ["read-out", "mask head", "attention block 1", "fusion", "reconstruction", "CNN"]
    same = [
        name
        for name, value in last.items()
        if torch.equal(value, before[name]) and value.unique().numel() > 1  # fresh biases and gains are all alike
    ]
    assert not same
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
def test_maps_lose_their_likeness_with_the_weights(detector: Detector) -> None:
    subjects = [
        Subject(None, frame, np.zeros((96, 128), bool), 1, np.full_like(frame, 90))  # type: ignore[arg-type]
        for frame in frames(3).numpy()
    ]
    found = correlations(detector, subjects, seed=0)
    assert found.keys() == METHODS.keys() - {"random"}
    np.testing.assert_allclose(found["anomaly_map"]["read-out"], 1.0)  # which does not depend on it
    assert found["saliency"]["read-out"].mean() < 0.9
    assert all(values["CNN"].shape == (3,) for values in found.values())


def test_a_silenced_head_is_one_whose_outgoing_weights_are_zero() -> None:
    torch.manual_seed(0)
    detector = Detector(VARIANTS["masks"]).eval()
    batch = frames(1)
    block = named_blocks(detector)["block 1"]
    with torch.no_grad():
        whole = detector(batch).class_logits
        with silenced(block, 2):
            without = detector(batch).class_logits
        again = detector(batch).class_logits
        block.mixer.out.weight[:, 16:24] = 0.0
        expected = detector(batch).class_logits
    torch.testing.assert_close(without, expected)
    torch.testing.assert_close(again, whole)
    assert not torch.allclose(without, whole, atol=1e-5)


def test_what_heads_look_at_adds_up_to_one(detector: Detector) -> None:
    (frame,) = frames(1).numpy()
    found = head_maps(detector, Subject(None, frame, np.zeros((96, 128), bool), 1, frame))  # type: ignore[arg-type]
    assert found.keys() == {"block 1", "reconstruction 1"}
    for maps in found.values():
        assert maps.shape == (4, 6, 8)
        np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1.0, atol=1e-5)
