from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training import losses


def test_class_loss_is_cross_entropy_and_skips_unknown_rows() -> None:
    logits = torch.randn(3, 4)
    target = F.one_hot(torch.tensor([1, 2, 0]), 4).float()
    expected = F.cross_entropy(logits[:2], torch.tensor([1, 2]))
    target[2] = 0
    torch.testing.assert_close(losses.class_loss(logits, target), expected)
    assert float(losses.class_loss(logits, torch.zeros(3, 4))) == 0


def test_soft_labels_pull_towards_their_share() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    losses.class_loss(logits, torch.tensor([[2 / 3, 1 / 3]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_good_frames_alone_speak_no_louder_than_what_says_whether_a_frame_is_defective() -> None:
    logits = torch.full((4, 32, 32), -1.5, requires_grad=True)  # one place in five is suspected
    losses.pixel_loss(logits, torch.zeros(4, 32, 32), torch.ones(4, dtype=torch.bool)).backward()
    assert logits.grad is not None
    everywhere = float(logits.grad.sum())
    score = torch.full((4,), -1.5, requires_grad=True)
    losses.image_loss(score, torch.zeros(4)).backward()
    assert score.grad is not None
    assert 0.0 < everywhere < 2.0 * float(score.grad.sum())


def test_pixel_loss_rewards_the_right_place_and_ignores_unknown_masks() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:4, 2:4] = 1
    right, wrong = torch.full((2, 8, 8), -6.0), torch.full((2, 8, 8), -6.0)
    right[0, 2:4, 2:4] = 6
    wrong[0, 5:7, 5:7] = 6
    known = torch.tensor([True, True])
    assert losses.pixel_loss(right, mask, known) < 0.2 * losses.pixel_loss(wrong, mask, known)
    unknown = torch.tensor([False, True])
    torch.testing.assert_close(
        losses.pixel_loss(right, mask, unknown), losses.pixel_loss(right[1:], mask[1:], known[1:])
    )
    assert float(losses.pixel_loss(right, mask, torch.zeros(2, dtype=torch.bool))) == 0


def test_a_missed_small_defect_costs_in_a_large_frame_too() -> None:
    mask = torch.zeros(1, 128, 128)
    mask[0, :2, :2] = 1
    silent = torch.full((1, 128, 128), -6.0)
    assert losses.pixel_loss(silent, mask, torch.tensor([True])) > 0.9


def test_class_map_loss_looks_inside_masks_only() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 1, :2] = 9
    logits[0, 0, 2:] = 9
    mask = torch.zeros(1, 4, 4)
    mask[0, :2] = 1
    known = torch.tensor([True])
    assert losses.class_map_loss(logits, mask, torch.tensor([1]), known) < 0.01
    assert losses.class_map_loss(logits, mask, torch.tensor([0]), known) > 5
    assert float(losses.class_map_loss(logits, mask, torch.tensor([-1]), known)) == 0


def test_reconstruction_loss_minds_the_hard_places_and_the_chosen_rows() -> None:
    level = torch.full((2, 4, 4), 0.1, requires_grad=True)
    hard = level.clone()
    hard[0, 0, 0] = 1.0
    even = losses.reconstruction_loss([level], torch.tensor([True, True]))
    assert float(even.detach()) == pytest.approx(0.1)
    mined = losses.reconstruction_loss([hard], torch.tensor([True, False]))
    assert mined > hard[0].mean()
    mined.backward()
    assert level.grad is not None
    assert float(level.grad[1].abs().sum()) == 0
    assert float(losses.reconstruction_loss([hard.detach()], torch.tensor([False, False]))) == 0


def test_evidence_belongs_on_the_defect() -> None:
    mask = torch.zeros(2, 4, 4)
    mask[0, 0, 0] = 1
    target, known = torch.tensor([1, 2]), torch.tensor([True, True])

    def loss(inside: float, outside: float) -> float:
        contributions = torch.zeros(2, 3, 4, 4)
        contributions[0, 1, 0, 0], contributions[0, 1, 3, 3] = inside, outside
        contributions[1, 2] = 5.0  # a frame with an empty mask says nothing
        return float(losses.evidence_loss(contributions, mask, target, known))

    assert loss(6.0, 0.0) < loss(6.0, 6.0) < loss(0.0, 6.0)
    assert loss(6.0, 0.0) < 0.2
    assert loss(0.0, 0.0) > 2.0, "to show no evidence at all must not be a way out"
    assert loss(6.0, -9.0) == loss(6.0, 0.0), "what speaks against the class is no evidence"


def test_evidence_without_a_known_mask_or_class_is_left_alone() -> None:
    contributions = torch.ones(2, 3, 4, 4, requires_grad=True)
    mask = torch.ones(2, 4, 4)
    for target, known in (([-1, -1], [True, True]), ([1, 1], [False, False])):
        value = losses.evidence_loss(contributions, mask, torch.tensor(target), torch.tensor(known))
        assert float(value.detach()) == 0
        value.backward()
