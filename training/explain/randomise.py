"""Parameter randomisation: an explanation that stays while the model's weights are destroyed explains something else.

Source: Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, cascading from the output to the input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from training.explain.figures import rank_correlation
from training.explain.methods import engine_maps, torch_maps
from training.explain.subjects import Subject
from training.metrics import F64
from training.torch_engine import TorchEngine
from vision.console import track
from vision.model.detector import Detector
from vision.types import FloatArray

_SEEDS = 3
# The last stage of the cascade, when everything is random.
_LAST = "CNN"


def correlations(detector: Detector, subjects: Sequence[Subject], seed: int) -> dict[str, dict[str, F64]]:
    """How much of each map is left when the weights are random.

    Returns:
        By method and stage of the cascade, one value a frame: the absolute rank correlation between the map and the one
        of the broken model, the mean over several draws of weights; 0 is right, 1 is a map that ignores the weights.
        Integrated gradients are there at the last stage alone.
    """
    before = _maps(detector, subjects, seed, everything=True)
    found: dict[str, dict[str, F64]] = {name: {} for name in before if name != "random"}
    for number in range(_SEEDS):
        what = f"Randomising weights, {number + 1} of {_SEEDS}"
        stages = sum(1 for _ in _parts(detector))
        for stage, broken in track(cascade(detector, seed + number), what, total=stages, unit="stages"):
            after = _maps(broken, subjects, seed, everything=stage == _LAST)
            for name in found.keys() & after.keys():
                pairs = zip(before[name], after[name], strict=True)
                values = np.array([abs(rank_correlation(one, other)) for one, other in pairs])
                found[name][stage] = found[name].get(stage, 0.0) + values / _SEEDS
    return found


def _maps(detector: Detector, subjects: Sequence[Subject], seed: int, *, everything: bool) -> dict[str, FloatArray]:
    frames = np.stack([subject.frame for subject in subjects])
    references = np.stack([subject.reference for subject in subjects]) if everything else None
    targets = [subject.target for subject in subjects]
    own = engine_maps(TorchEngine(detector).run(frames), targets, seed)
    return own | torch_maps(detector, frames, references, targets)


def cascade(detector: Detector, seed: int) -> Iterator[tuple[str, Detector]]:
    """Copies of the detector with ever more random weights, and what was randomised last; the last one is all random.

    Parts go from the output to the input: read-out, mask head, attention blocks, fusion, reconstruction, CNN.
    """
    broken = copy.deepcopy(detector).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, part in _parts(broken):
        for module in part.modules():
            for value in module.parameters(recurse=False):
                _randomise(value, generator)
        yield name, broken


def _parts(detector: Detector) -> Iterator[tuple[str, nn.Module]]:
    yield "read-out", detector.readout
    if detector.mask_head is not None:
        yield "mask head", detector.mask_head
    for index in reversed(range(len(detector.blocks))):
        yield f"attention block {index + 1}", detector.blocks[index]
    yield "fusion", detector.fusion
    if detector.reconstruction is not None:
        yield "reconstruction", detector.reconstruction
    yield _LAST, detector.backbone


@torch.no_grad()
def _randomise(value: Tensor, generator: torch.Generator) -> None:
    """Numbers of the same mean and deviation: gains stay around 1, and activations in range."""
    value.copy_(value.mean() + value.std(correction=0) * torch.randn(value.shape, generator=generator))
