"""The whole network: backbone → tokens → attention blocks → localizer and read-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision.explanations import TOP_SHARE
from vision.model.backbone import Backbone
from vision.model.config import ModelConfig
from vision.model.localizer import MaskHead, Reconstruction, Smoothing, cosine_distances
from vision.model.mixers import Block
from vision.model.readout import AdditiveReadout
from vision.model.tokens import TokenFusion, stretch_to, to_maps


class DetectorOutputs(NamedTuple):
    """Tensors of one batch; the first six are the graph's outputs (see ``vision.types.ModelOutputs``).

    The others are for the losses: ``mask_logits`` ``[N, 1 + D, H/4, W/4]``; of the reconstruction at strides 8, 16 and
    32 the ``standardised`` features, their ``predicted`` ones and the ``distances`` between them (1 − cosine).
    """

    class_logits: Tensor
    saliency_map: Tensor
    attention_map: Tensor
    anomaly_score: Tensor | None
    anomaly_map: Tensor | None
    class_map: Tensor | None
    mask_logits: Tensor | None
    standardised: list[Tensor] | None = None
    predicted: list[Tensor] | None = None
    distances: list[Tensor] | None = None


class Detector(nn.Module):
    """Frames in, answers out.

    The anomaly map is ``Σ_k weight_k · (signal_k − center_k) / scale_k`` over the two signals of the localizer
    (reconstruction distance, mask logit); weights, centres and scales are buffers set on validation images by
    ``set_combination``.
    """

    map_weight: Tensor
    map_center: Tensor
    map_scale: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        channels = self.backbone.channels
        self.fusion = TokenFusion(channels[1:], config.dim)
        self.blocks = nn.ModuleList(Block(config.mixer, config.dim, config.heads) for _ in range(config.depth))
        self.readout = AdditiveReadout(config.dim, len(config.classes), guided=config.guided_readout)
        self.reconstruction: Reconstruction | None = None
        self.mask_head: MaskHead | None = None
        if config.reconstruction:
            self.reconstruction = Reconstruction(
                channels[1:],
                dim=config.reconstruction_dim,
                depth=config.reconstruction_depth,
                heads=config.heads,
                dropout=config.dropout,
            )
        if config.good_class is not None:
            classes = len(config.defect_classes) if config.class_map else 0
            self.mask_head = MaskHead(channels[:2], config.dim, classes, reconstruction=config.reconstruction)
        self.smoothing = Smoothing()
        self.register_buffer("map_weight", torch.tensor([1.0 if config.reconstruction else 0.0, 1.0]))
        self.register_buffer("map_center", torch.zeros(2))
        self.register_buffer("map_scale", torch.ones(2))

    @torch.no_grad()
    def set_combination(self, weight: Sequence[float], center: Sequence[float], scale: Sequence[float]) -> None:
        """Set how the two signals make the anomaly map; each (reconstruction, mask)."""
        for buffer, values in ((self.map_weight, weight), (self.map_center, center), (self.map_scale, scale)):
            buffer.copy_(torch.tensor(list(values), dtype=torch.float32))

    def forward(self, frames: Tensor) -> DetectorOutputs:
        """uint8 ``[N, H, W, 3]`` RGB, H and W multiples of 32, to all outputs."""
        return self.read(self.backbone(frames))

    def read(self, features: Sequence[Tensor]) -> DetectorOutputs:
        """Backbone features at strides 4, 8, 16, 32 to all outputs; lets frozen features be computed once."""
        stride4, stride8 = features[0], features[1]
        tokens, grid = self.fusion(features[1:])
        for block in self.blocks:
            tokens = block(tokens, grid)
        if self.mask_head is None:
            logits, saliency, attended = self.readout(tokens, grid)
            return DetectorOutputs(logits, saliency, attended, None, None, None, None)

        standardised = predicted = distances = None
        if self.reconstruction is not None:
            # Gradients of other heads must not teach the reconstruction to show defects.
            standardised = self.reconstruction.standardise([value.detach() for value in features[1:]])
            predicted = self.reconstruction(standardised)
            distances = cosine_distances(predicted, standardised)
        seen = None if distances is None else [value.detach() for value in distances]
        mask_logits = self.mask_head(to_maps(tokens, grid), stride8, stride4, seen).float()
        logits, saliency, attended = self.readout(tokens, grid, mask_logits[:, 0])
        anomaly_map = self._combine(distances, mask_logits)
        class_map = mask_logits[:, 1:].softmax(dim=1) if self.config.class_map else None
        return DetectorOutputs(
            logits,
            saliency,
            attended,
            pool(anomaly_map),
            anomaly_map,
            class_map,
            mask_logits,
            standardised,
            predicted,
            distances,
        )

    def reconstruction_map(self, distances: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The three distances summed on the stride-4 grid and smoothed: ``[N, h, w]``."""
        total = torch.stack([stretch_to(value[:, None], size) for value in distances]).sum(dim=0)
        return torch.as_tensor(self.smoothing(total)[:, 0])

    def _combine(self, distances: Sequence[Tensor] | None, mask_logits: Tensor) -> Tensor:
        scaled = (mask_logits[:, 0] - self.map_center[1]) / self.map_scale[1]
        combined = self.map_weight[1] * scaled
        if distances is not None:
            size = (mask_logits.shape[-2], mask_logits.shape[-1])
            rebuilt = (self.reconstruction_map(distances, size) - self.map_center[0]) / self.map_scale[0]
            combined = combined + self.map_weight[0] * rebuilt
        return combined


def pool(maps: Tensor) -> Tensor:
    """Mean of the largest ``TOP_SHARE`` of each map, as ``vision.explanations`` says: ``[N, h, w]`` to ``[N]``."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(TOP_SHARE * flat.shape[1])), dim=1).values.mean(dim=1)
