"""What a training step minimises, as one module, so that one or several devices run it alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training import losses
from training.batches import Batch
from training.options import Recipe
from vision.model.backbone import early_modules
from vision.model.detector import Detector, DetectorOutputs
from vision.model.localizer import cosine_distances

# How much each loss counts; all are of the order of 1 at the start.
_WEIGHTS = {"class": 1.0, "image": 1.0, "pixel": 1.0, "class_map": 0.5, "evidence": 0.1, "reconstruction": 1.0}


class Objective(nn.Module):
    """A detector and its losses.

    Where the backbone is trained, the layers up to stride 4 stay frozen: they are general, and training them would
    double the time of a step.
    """

    def __init__(self, detector: Detector, recipe: Recipe) -> None:
        super().__init__()
        self.detector = detector
        self.detector.backbone.requires_grad_(recipe.tune_backbone)
        if recipe.tune_backbone:
            for module in early_modules(detector.backbone):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> Objective:
        """The backbone stays in evaluation mode, whether it is trained or not: the statistics of its normalisation are
        those that its weights know, of a million pictures, and not of a batch that holds few parts.
        """
        super().train(mode)
        self.detector.backbone.eval()
        return self

    def forward(self, batch: Batch, features: Sequence[Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss and its parts; without frozen ``features`` the frames go through the CNN."""
        if features is None and batch.frames.shape[1:3] == self.detector.config.piece:
            features = self.detector.backbone(batch.frames)  # also of single tiles
        outputs = self.detector(batch.frames) if features is None else self.detector.read(features)
        parts = self._parts(outputs, batch)
        total = torch.stack([_WEIGHTS[name] * value for name, value in parts.items()]).sum()
        return total, {name: value.detach() for name, value in parts.items()}

    def _parts(self, outputs: DetectorOutputs, batch: Batch) -> dict[str, Tensor]:
        parts = {"class": losses.class_loss(outputs.class_logits, batch.target)}
        if outputs.mask_logits is None:
            return parts
        logits = outputs.mask_logits[:, 0]
        good = self.detector.config.good_class
        if good is not None:
            parts["image"] = losses.image_loss(self.detector.pool(logits), batch.defect)
        parts["pixel"] = losses.pixel_loss(logits, batch.mask, batch.has_mask)
        if outputs.class_map is not None:
            classes = outputs.mask_logits[:, 1:]
            parts["class_map"] = losses.class_map_loss(classes, batch.mask, batch.defect_class, batch.has_mask)
        # The good class comes first, and its evidence may lie anywhere; a row of zeros has no class.
        target = batch.target.argmax(dim=1)
        first = 0 if good is None else 1
        target = torch.where((target >= first) & (batch.target.sum(dim=1) > 0), target, -1)
        parts["evidence"] = losses.evidence_loss(outputs.saliency_map, batch.mask, target, batch.has_mask)
        if outputs.predicted is not None and outputs.standardised is not None:
            # A frame with a synthetic defect is to be rebuilt as the frame without it (as in OneNIP, Gao 2024).
            rows = batch.clean_row >= 0
            source = batch.clean_row.clamp(min=0)
            clean = [level[source] for level in outputs.standardised]
            parts["reconstruction"] = losses.reconstruction_loss(cosine_distances(outputs.predicted, clean), rows)
        return parts
