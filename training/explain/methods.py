"""Ways to explain a class's logit by a map, ours and the usual ones; each gives ``[N, h, w]``, higher is more evidence.

The formulas are written out here and checked against captum in the tests; docs/decisions/0018 says why no library is
used at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision.model.detector import Detector
from vision.model.mixers import Block
from vision.types import FloatArray, ModelOutputs

Pixels = NDArray[np.uint8]

INTEGRATION_STEPS = 24
"""Of integrated gradients; with these the sum is within a few per cent of the difference of the logits."""
_INTEGRATION_BATCH = 8


@dataclass(frozen=True, slots=True)
class Method:
    """One way to explain. ``needs_run``: it needs gradients or weights, and so the torch model."""

    title: str
    source: str
    needs_run: bool = False


METHODS = {
    "saliency": Method("Read-out saliency (ours)", "contributions that add up to the logit"),
    "attention": Method("Read-out attention (ours)", "where the class's query looks, whatever it finds there"),
    "anomaly_map": Method("Anomaly map", "the same for every class"),
    "grad_cam": Method("Grad-CAM", "Selvaraju et al. 2017, on the fused tokens", needs_run=True),
    "grad_cam_pp": Method("Grad-CAM++", "Chattopadhay et al. 2018, on the fused tokens", needs_run=True),
    "rollout": Method("Attention rollout", "Abnar, Zuidema 2020, from the class's query down", needs_run=True),
    "integrated_gradients": Method(
        "Integrated gradients", "Sundararajan et al. 2017, from a good part's frame", needs_run=True
    ),
    "random": Method("Random", "uniform noise on the read-out's grid"),
}
"""In the order in which reports show them."""

OURS = "saliency"


def engine_maps(outputs: ModelOutputs, targets: Sequence[int], seed: int) -> dict[str, FloatArray]:
    """The maps that the graph itself gives, and random ones.

    Args:
        outputs: of N frames.
        targets: N class indices, whose logits are to be explained.
        seed: of the random maps.
    """
    rows = np.arange(len(outputs))
    maps = {"saliency": outputs.saliency_map[rows, targets], "attention": outputs.attention_map[rows, targets]}
    if outputs.anomaly_map is not None:
        maps["anomaly_map"] = outputs.anomaly_map
    rng = np.random.default_rng((seed, 5))
    maps["random"] = rng.random(maps["saliency"].shape, dtype=np.float32)
    return maps


def torch_maps(
    detector: Detector, frames: Pixels, references: Pixels | None, targets: Sequence[int]
) -> dict[str, FloatArray]:
    """The maps that need the weights.

    Args:
        frames: uint8 ``[N, H, W, 3]`` RGB at input size.
        references: of the same shape, frames without what is to be explained; where integrated gradients start. None
            leaves these out, which take longer than all others together.
    """
    detector.eval()
    chosen = torch.tensor(list(targets))
    pixels = torch.from_numpy(frames)
    cam, cam_pp = grad_cams(detector, pixels, chosen)
    maps = {"grad_cam": cam, "grad_cam_pp": cam_pp, "rollout": rollout(detector, pixels, chosen)}
    if references is not None:
        start = torch.from_numpy(references).float()
        maps["integrated_gradients"] = integrated_gradients(detector, pixels.float(), start, chosen)
    return {name: values.numpy() for name, values in maps.items()}


def grad_cams(detector: Detector, frames: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM and Grad-CAM++ ``[N, h, w]`` on the fused tokens: the last convolutions, which attention reads.

    Sources: Selvaraju et al. 2017, eq. 1 and 2; Chattopadhay et al. 2018, eq. 10, 11 and 19.
    """
    with torch.no_grad():
        features = detector.backbone(frames)
    fused: list[Tensor] = []

    def tap(_: torch.nn.Module, __: object, output: tuple[Tensor, tuple[int, int]]) -> tuple[Tensor, tuple[int, int]]:
        fused.append(output[0].detach().requires_grad_())
        return fused[0], output[1]

    handle = detector.fusion.register_forward_hook(tap)
    try:
        with torch.enable_grad():
            outputs = detector.read(features)
            score = outputs.class_logits.gather(1, targets[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, fused)
    finally:
        handle.remove()
    activation = fused[0].detach()
    grid = (features[2].shape[-2], features[2].shape[-1])
    weights = gradient.mean(dim=1, keepdim=True)
    cam = (weights * activation).sum(dim=2).relu()
    square = gradient.square()
    below = 2.0 * square + (activation * gradient**3).sum(dim=1, keepdim=True)
    alpha = torch.where(below != 0, square / torch.where(below != 0, below, torch.ones_like(below)), 0.0)
    weights = (alpha * gradient.relu()).sum(dim=1, keepdim=True)
    cam_pp = (weights * activation).sum(dim=2).relu()
    return cam.reshape(-1, *grid), cam_pp.reshape(-1, *grid)


@torch.no_grad()
def rollout(detector: Detector, frames: Tensor, targets: Tensor) -> Tensor:
    """The class's attention, followed down through the blocks to the places it came from: ``[N, h, w]``.

    Source: Abnar, Zuidema 2020, section 3: heads are averaged, half of every block is the residual connection.
    """
    with watched_blocks(list(detector.blocks)) as looks:
        features = detector.backbone(frames)
        attended = detector.read(features).attention_map
    grid = (features[2].shape[-2], features[2].shape[-1])
    chosen = attended[torch.arange(len(frames)), targets][:, None]
    factors = (chosen.shape[-2] // grid[0], chosen.shape[-1] // grid[1])
    share = torch.nn.functional.avg_pool2d(chosen, factors).flatten(1)  # on the tokens' own grid
    for look in reversed(looks):
        share = 0.5 * share + 0.5 * torch.einsum("nt,nts->ns", share, look.mean(dim=1))
    return share.reshape(-1, *grid)


@contextmanager
def watched_blocks(blocks: Sequence[torch.nn.Module]) -> Iterator[list[Tensor]]:
    """While it is open, every forward pass appends what the heads of each block look at: ``[N, heads, T, T]``."""
    looks: list[Tensor] = []

    def tap(block: torch.nn.Module, inputs: tuple[Tensor, tuple[int, int]]) -> None:
        if isinstance(block, Block) and block.attention is not None:
            looks.append(block.attention.looks_at(block.norm_mixer(inputs[0]), inputs[1]))

    handles = [block.register_forward_pre_hook(tap) for block in blocks]
    try:
        yield looks
    finally:
        for handle in handles:
            handle.remove()


def integrated_gradients(
    detector: Callable[[Tensor], object],
    frames: Tensor,
    references: Tensor,
    targets: Tensor,
    steps: int = INTEGRATION_STEPS,
) -> Tensor:
    """Gradients along the straight line from reference to frame, times their difference; summed over colours.

    Source: Sundararajan et al. 2017, eq. 1, by the midpoint rule. Adds up to the difference of the two logits, nearly.

    Args:
        detector: takes float ``[N, H, W, 3]`` in 0..255.
        frames, references: float ``[N, H, W, 3]``.
        targets: ``[N]`` class indices.

    Returns:
        ``[N, H, W]``
    """
    shares = (torch.arange(steps) + 0.5) / steps
    result = []
    for frame, reference, target in zip(frames, references, targets, strict=True):
        total = torch.zeros_like(frame)
        for part in torch.split(shares, _INTEGRATION_BATCH):
            path = reference + part.view(-1, 1, 1, 1) * (frame - reference)
            path.requires_grad_()
            with torch.enable_grad():
                logits = detector(path).class_logits  # type: ignore[attr-defined]
                (gradient,) = torch.autograd.grad(logits[:, target].sum(), path)
            total += gradient.sum(dim=0)
        result.append(((frame - reference) * total / steps).sum(dim=-1))
    return torch.stack(result)
