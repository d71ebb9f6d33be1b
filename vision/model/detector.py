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
from vision.model.subspace import NormalSubspace
from vision.model.tiling import Tiling
from vision.model.tokens import TokenFusion, stretch_to, to_maps

# Numbers that stand for a frame as a whole when it is compared with others: enough to tell pictures apart, few enough
# that a hundred good frames tell their covariance.
EMBEDDING_SIZE = 64


class DetectorOutputs(NamedTuple):
    """Tensors of one batch; the first seven are the graph's outputs (see ``vision.types.ModelOutputs``).

    The others are for the losses: ``mask_logits`` ``[N, 1 + D, H/4, W/4]``; of the reconstruction at strides 8, 16 and
    32 the ``standardised`` features, their ``predicted`` ones and the ``distances`` between them (1 − cosine); the
    ``subspace_map`` ``[N, H/4, W/4]`` of a model that has a subspace.
    """

    class_logits: Tensor
    saliency_map: Tensor
    attention_map: Tensor
    anomaly_score: Tensor | None
    anomaly_map: Tensor | None
    class_map: Tensor | None
    embedding: Tensor
    mask_logits: Tensor | None
    standardised: list[Tensor] | None = None
    predicted: list[Tensor] | None = None
    distances: list[Tensor] | None = None
    subspace_map: Tensor | None = None


class Found(NamedTuple):
    """What is found in a piece (a frame, or a tile of one) by itself, before it is read as a whole: scores and values
    of the read-out ``[N, C, h, w]``, the mask's logits, distances of the reconstruction and of the subspace.
    """

    scores: Tensor
    values: Tensor
    embedding: Tensor
    mask_logits: Tensor | None = None
    distance8: Tensor | None = None
    distance16: Tensor | None = None
    distance32: Tensor | None = None
    subspace_map: Tensor | None = None


# So many standard deviations below good frames nothing lies; half precision holds it, and every runtime takes it.
NO_FLOOR = -1e4
_DISTANCES = ("distance8", "distance16", "distance32")


class Detector(nn.Module):
    """Frames in, answers out. Frames that the config cuts into tiles are looked at tile by tile, and read as a whole.

    The anomaly map is ``Σ_k weight_k · max((signal_k − center_k) / scale_k, floor_k)`` over the signals of the
    localizer (reconstruction distance, mask logit and, if there is one, distance to the subspace); only the mask logit
    may have a floor. Weights, centres, scales and the floor are buffers set on validation images by
    ``set_combination``. Without a good class it is the mask logit, and there is no anomaly score: every frame of
    training had a defect.
    """

    map_weight: Tensor
    map_center: Tensor
    map_scale: Tensor
    mask_floor: Tensor

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
        if config.localizes:
            classes = len(config.defect_classes) if config.class_map else 0
            self.mask_head = MaskHead(channels[:2], config.dim, classes, reconstruction=config.reconstruction)
        self.subspace: NormalSubspace | None = None
        if config.subspace:
            self.subspace = NormalSubspace(channels[2:], *config.piece, config.subspace)
        self.tiling = None if config.tiles is None else Tiling(config.tiles)
        self.smoothing = Smoothing()
        weights = [1.0 if config.reconstruction else 0.0, 1.0] + [1.0] * bool(config.subspace)
        self.register_buffer("map_weight", torch.tensor(weights))
        self.register_buffer("map_center", torch.zeros(len(weights)))
        self.register_buffer("map_scale", torch.ones(len(weights)))
        self.register_buffer("mask_floor", torch.tensor(NO_FLOOR))
        self.register_load_state_dict_pre_hook(_without_floor)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def set_combination(
        self,
        weight: Sequence[float],
        center: Sequence[float],
        scale: Sequence[float],
        *,
        mask_floor: float = NO_FLOOR,
    ) -> None:
        """Set how the signals make the anomaly map; each (reconstruction, mask) or (reconstruction, mask, subspace).

        Args:
            mask_floor: the least that the standardised mask logit counts for.
        """
        for buffer, values in ((self.map_weight, weight), (self.map_center, center), (self.map_scale, scale)):
            buffer.copy_(torch.tensor(list(values), dtype=torch.float32))
        self.mask_floor.fill_(mask_floor)

    def forward(self, frames: Tensor) -> DetectorOutputs:
        """uint8 ``[N, H, W, 3]`` RGB to all outputs: of the config's size, or, in one piece, multiples of 32."""
        if self.tiling is None:
            return self.read(self.backbone(frames))
        found = Found(*self.tiling.over(frames, self._look_at))
        return self._answer(self._stitch(found, self.tiling))

    def read(self, features: Sequence[Tensor]) -> DetectorOutputs:
        """Backbone features at strides 4, 8, 16, 32 of frames in one piece, or of single tiles, to all outputs; lets
        frozen features be computed once.
        """
        rebuilt = self._rebuild(features)
        outputs = self._answer(self._look(features, rebuilt))
        return outputs if rebuilt is None else outputs._replace(standardised=rebuilt[0], predicted=rebuilt[1])

    def _look_at(self, pieces: Tensor) -> Found:
        features = self.backbone(pieces)
        return self._look(features, self._rebuild(features))

    def _rebuild(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Standardised features and what the reconstruction makes of them; None without one."""
        if self.reconstruction is None:
            return None
        # Gradients of other heads must not teach the reconstruction to show defects.
        standardised = self.reconstruction.standardise([value.detach() for value in features[1:]])
        return standardised, self.reconstruction(standardised)

    def _look(self, features: Sequence[Tensor], rebuilt: tuple[list[Tensor], list[Tensor]] | None) -> Found:
        """What is found in each piece by itself."""
        stride4, stride8 = features[0], features[1]
        tokens, grid = self.fusion(features[1:])
        for block in self.blocks:
            tokens = block(tokens, grid)
        scores, values = self.readout.ask(tokens, grid)
        embedding = embed(features[2])
        if self.mask_head is None:
            return Found(scores, values, embedding)
        distances = None if rebuilt is None else cosine_distances(rebuilt[1], rebuilt[0])
        seen = None if distances is None else [value.detach() for value in distances]
        mask_logits = self.mask_head(to_maps(tokens, grid), stride8, stride4, seen).float()
        subspace_map = None
        if self.subspace is not None and not self.training:  # solved for after training; no loss looks at it
            size = (mask_logits.shape[-2], mask_logits.shape[-1])
            subspace_map = stretch_to(self.subspace([value.detach() for value in features[2:]])[:, None], size)[:, 0]
        found = Found(scores, values, embedding, mask_logits, subspace_map=subspace_map)
        return found if distances is None else found._replace(**dict(zip(_DISTANCES, distances, strict=True)))

    @staticmethod
    def _stitch(found: Found, tiling: Tiling) -> Found:
        """What was found in tiles, as maps of their frames."""

        def stitched(maps: Tensor) -> Tensor:
            return tiling.stitch(maps) if maps.ndim == 4 else tiling.stitch(maps[:, None])[:, 0]

        maps = {
            name: stitched(value) for name, value in found._asdict().items() if value is not None and value.ndim > 2
        }
        return found._replace(embedding=tiling.mean(found.embedding), **maps)

    def _answer(self, found: Found) -> DetectorOutputs:
        """The outputs of frames from what was found in them."""
        mask_logits = found.mask_logits
        if mask_logits is None:
            logits, saliency, attended = self.readout.gather(found.scores, found.values, None)
            return DetectorOutputs(logits, saliency, attended, None, None, None, found.embedding, None)
        area = 1.0 if self.tiling is None else self.tiling.area_of(mask_logits)
        logits, saliency, attended = self.readout.gather(found.scores, found.values, mask_logits[:, 0], area)
        distances = None
        if found.distance8 is not None and found.distance16 is not None and found.distance32 is not None:
            distances = [found.distance8, found.distance16, found.distance32]
        anomaly_map = self._combine(distances, mask_logits, found.subspace_map)
        class_map = mask_logits[:, 1:].softmax(dim=1) if self.config.class_map else None
        return DetectorOutputs(
            logits,
            saliency,
            attended,
            None if self.config.good_class is None else self.pool(anomaly_map),
            anomaly_map,
            class_map,
            found.embedding,
            mask_logits,
            distances=distances,
            subspace_map=found.subspace_map,
        )

    def pool(self, maps: Tensor) -> Tensor:
        """Scores of maps ``[N, h, w]``: see ``pool``. Of tiled frames, as many cells count as of one tile: a defect of
        ten pixels is the same in a larger frame.
        """
        return pool(maps, 1.0 if self.tiling is None else self.tiling.area_of(maps))

    @property
    def top_share(self) -> float:
        """The share of the whole frame's map that makes the score."""
        return TOP_SHARE / (1.0 if self.config.tiles is None else self.config.tiles.area)

    def reconstruction_map(self, distances: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The three distances summed on the stride-4 grid and smoothed: ``[N, h, w]``."""
        total = torch.stack([stretch_to(value[:, None], size) for value in distances]).sum(dim=0)
        return torch.as_tensor(self.smoothing(total)[:, 0])

    def _combine(self, distances: Sequence[Tensor] | None, mask_logits: Tensor, subspace_map: Tensor | None) -> Tensor:
        scaled = (mask_logits[:, 0] - self.map_center[1]) / self.map_scale[1]
        combined = self.map_weight[1] * torch.maximum(scaled, self.mask_floor)
        if distances is not None:
            size = (mask_logits.shape[-2], mask_logits.shape[-1])
            rebuilt = (self.reconstruction_map(distances, size) - self.map_center[0]) / self.map_scale[0]
            combined = combined + self.map_weight[0] * rebuilt
        if subspace_map is not None:
            combined = combined + self.map_weight[2] * (subspace_map - self.map_center[2]) / self.map_scale[2]
        return combined


def _without_floor(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Models of earlier versions have no floor."""
    state.setdefault(f"{prefix}mask_floor", torch.tensor(NO_FLOOR))


def pool(maps: Tensor, area: float = 1.0) -> Tensor:
    """Mean of the largest ``TOP_SHARE`` of each map, as ``vision.explanations`` says: ``[N, h, w]`` to ``[N]``.

    Args:
        area: of the maps, in pieces of which the share is meant.
    """
    flat = maps.flatten(1)
    return flat.topk(max(1, round(TOP_SHARE / area * flat.shape[1])), dim=1).values.mean(dim=1)


def embed(features: Tensor) -> Tensor:
    """Mean of backbone features ``[N, C, h, w]``, brought to ``EMBEDDING_SIZE`` numbers by a fixed cosine transform
    over the channels: orthogonal directions that mix all of them, without a weight to be stored. ``[N, E]``, float32.
    """
    means = features.detach().float().mean(dim=(2, 3))
    channels = means.shape[1]
    size = min(channels, EMBEDDING_SIZE)
    angle = torch.arange(size, device=means.device)[None] * (torch.arange(channels, device=means.device)[:, None] + 0.5)
    return torch.as_tensor(means @ (torch.cos(angle * (torch.pi / channels)) * (2.0 / channels) ** 0.5))
