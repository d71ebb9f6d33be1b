"""Whether the tokens that the read-out looks at most are those on the defect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data import Sample, read_frame, read_mask
from training.masks import shares_on_grid
from training.metrics import F64
from vision.engine import Engine
from vision.manifest import Manifest
from vision.preprocess import to_model_input
from vision.types import FloatArray

TOP_SHARE = 0.1
_STRIDE = 16
_BATCH = 8


def mask_share_in_top(engine: Engine, manifest: Manifest, samples: Sequence[Sample], white_level: int) -> F64:
    """Of each defect with a mask, the share of its pixels inside the top 10 % of tokens: chance has 0.1.

    Tokens are ranked by the attention of the class that the frame is labelled with; of the first defect class where the
    model does not know the label.
    """
    chosen = [(sample, sample.mask) for sample in samples if sample.is_defect and sample.mask is not None]
    shares: list[float] = []
    most = manifest.input.most_frames(_BATCH)
    for start in range(0, len(chosen), most):
        group = chosen[start : start + most]
        frames = [to_model_input(read_frame(sample.path, white_level), manifest.input) for sample, _ in group]
        outputs = engine.run(np.stack(frames))
        for (sample, mask), attention in zip(group, outputs.attention_map, strict=True):
            known = sample.label in manifest.classes
            index = manifest.classes.index(sample.label if known else manifest.defect_classes[0])
            shares.append(_share(attention[index], read_mask(mask), manifest))
    return np.array([share for share in shares if np.isfinite(share)], np.float64)


def _share(attention: FloatArray, mask: NDArray[np.bool_], manifest: Manifest) -> float:
    grid = (manifest.input.height // _STRIDE, manifest.input.width // _STRIDE)
    ranked = shares_on_grid(attention, grid).ravel()
    covered = shares_on_grid(mask.astype(np.float32), grid).ravel()
    top = np.argsort(-ranked, kind="stable")[: max(1, round(TOP_SHARE * ranked.size))]
    return float(covered[top].sum() / covered.sum()) if covered.sum() > 0 else float("nan")
