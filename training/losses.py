"""Losses; each a pure function of tensors, a mean over what it applies to, and 0 where it applies to nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Cells of a batch without a defect count as if so large a share were defective, which is what masks usually mark.
_USUAL_DEFECT_SHARE = 0.05
# Evidence of a class that is really seen is of this order or above, in logits.
_SOME_EVIDENCE = 1.0


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft cross-entropy. ``logits`` and ``target`` ``[N, C]``; a target row of zeros takes no part."""
    rows = target.sum(dim=1) > 0
    if not bool(rows.any()):
        return logits.sum() * 0.0
    return -(target[rows] * logits[rows].float().log_softmax(dim=1)).sum(dim=1).mean()


def image_loss(score: Tensor, defect: Tensor) -> Tensor:
    """Binary cross-entropy of the pooled mask logit ``[N]`` against soft labels ``[N]`` in 0..1."""
    return F.binary_cross_entropy_with_logits(score.float(), defect)


def pixel_loss(logits: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Focal loss plus Dice. ``logits``, ``mask`` ``[N, h, w]``; ``known`` bool ``[N]`` says which masks are to be used.

    Sources: Lin et al. 2017 (γ = 2, no α), Milletari et al. 2016 (soft Dice over the batch, so that a frame without a
    defect does not count as a miss). A batch without a defect pixel has no overlap to speak of: the focal loss alone.
    """
    if not bool(known.any()):
        return logits.sum() * 0.0
    logits, mask = logits[known].float(), mask[known]
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    probability = logits.sigmoid()
    miss = torch.where(mask > 0.5, 1 - probability, probability)
    focal = miss.square() * entropy
    if not bool(mask.any()):
        return focal.mean() / _USUAL_DEFECT_SHARE
    # Normalised by the defect pixels, not by all: otherwise a 10-pixel defect counts for nothing in a large frame.
    focal = focal.sum() / (mask.sum() + 0.001 * mask.numel())
    overlap = (probability * mask).sum()
    dice = 1 - (2 * overlap + 1.0) / (probability.sum() + mask.sum() + 1.0)
    return focal + dice


def class_map_loss(logits: Tensor, mask: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy over the defect classes inside the masks.

    ``logits`` ``[N, D, h, w]``, ``mask`` ``[N, h, w]``, ``target`` ``[N]`` the class of each frame's defect (−1: none).
    Every frame counts the same, whatever the size of its defect.
    """
    rows = known & (target >= 0)
    if not bool(rows.any()):
        return logits.sum() * 0.0
    weight = (mask[rows] > 0.5).float()
    labels = target[rows][:, None, None].expand_as(weight)
    entropy = F.cross_entropy(logits[rows].float(), labels, reduction="none")
    return ((entropy * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1.0)).mean()


def evidence_loss(contributions: Tensor, mask: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """−log of the share of a defect's evidence that lies inside its mask: right for the right reasons.

    Evidence is what speaks for the class, the positive contributions. Source of the idea: Ross et al. 2017, who punish
    what lies outside. That alone has an easy way out, no evidence at all and the class told by the others having none
    either; so the share is taken of the evidence and one unit of logit more. ``contributions`` ``[N, C, h, w]``,
    ``mask`` ``[N, h, w]``, ``target`` ``[N]`` the class whose evidence is meant (−1: none).
    """
    rows = known & (target >= 0) & ((mask > 0.5).flatten(1).any(dim=1))
    if not bool(rows.any()):
        return contributions.sum() * 0.0
    evidence = contributions[rows, target[rows]].float().clamp(min=0.0)
    inside, total = (evidence * (mask[rows] > 0)).sum(dim=(1, 2)), evidence.sum(dim=(1, 2))
    return -((inside + 1e-3) / (total + _SOME_EVIDENCE)).log().mean()


def reconstruction_loss(distances: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Mean of d · (d / mean d) over the levels: places that are already rebuilt well count less.

    Source: the mining losses of Dinomaly and INP-Former (Luo et al. 2025), exponent 1. ``distances`` ``[N, h, w]`` a
    level, ``rows`` bool ``[N]`` the frames to be learned.
    """
    if not bool(rows.any()):
        return sum((level.sum() * 0.0 for level in distances), torch.zeros(()))
    total = torch.zeros((), device=rows.device)
    for level in distances:
        chosen = level[rows]
        weight = (chosen / chosen.mean().clamp(min=1e-6)).detach()
        total = total + (chosen * weight).mean()
    return total
