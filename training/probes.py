"""Frames that a run keeps for those who change the model afterwards: to measure accuracy, and to find value ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.stores import FrameStore
from training.synthesis import add_defect_in
from vision.types import Frame

# Half good and half defective, 64 frames have 1024 pairs: one pair in the wrong order costs 0.1 points of image AUROC.
_CHECK_FRAMES = 64
# More frames widen the value ranges of an 8-bit model hardly any more.
_RANGE_FRAMES = 32
# Above 256 px there are fewer frames, so that a bundle grows by about 15 MB (as PNG); two at least, and with them a
# bundle of 13 megapixels has 130 MB.
_MOST_BYTES = 24 * 2**20


@dataclass(frozen=True)
class Probes:
    """``check``: frames that did not train the model, or in its second round alone, uint8 ``[M, H, W, 3]`` RGB;
    ``is_defect`` bool ``[M]``, all true for a model without a good class. ``ranges``: training frames, uint8
    ``[K, H, W, 3]``, for 8-bit value ranges.
    """

    check: Frame
    is_defect: NDArray[np.bool_]
    ranges: Frame

    def __len__(self) -> int:
        return len(self.check)


def choose_probes(
    train: FrameStore, validation: FrameStore, good: str | None, seed: int, piece: tuple[int, int] | None = None
) -> Probes:
    """Pick frames of all labels in turn. Good frames make up for missing defects by getting synthetic ones.

    A synthetic defect is as large as those of a ``piece`` (height, width in px), what the model looks at at once: the
    frame, or a tile of it.
    Falls back to training frames where there are hardly any validation frames; accuracy is then flattered, and just as
    much for both models that are compared.
    """
    piece = piece or (train[0][0].shape[0], train[0][0].shape[1])
    store = validation if len(validation) >= 2 else train
    check, is_defect = _balanced(store, good, _CHECK_FRAMES, np.random.default_rng((seed, 13)), piece)
    ranges, _ = _balanced(train, good, _RANGE_FRAMES, np.random.default_rng((seed, 14)), piece)
    return Probes(check, is_defect, ranges)


def _balanced(
    store: FrameStore, good: str | None, wanted: int, rng: np.random.Generator, piece: tuple[int, int]
) -> tuple[Frame, NDArray[np.bool_]]:
    """Half good frames and half defects, or defects alone where no part is good."""
    wanted = max(2, min(wanted, _MOST_BYTES // store[0][0].nbytes))
    goods = [index for index, sample in enumerate(store.samples) if sample.label == good]
    defects = in_turns([sample.label for sample in store.samples if sample.label != good])
    others = [index for index, sample in enumerate(store.samples) if sample.label != good]
    if not goods:
        chosen = [others[place] for place in defects[:wanted]]
        return np.stack([store[index][0] for index in chosen]), np.ones(len(chosen), np.bool_)
    half = wanted // 2
    frames = [store[index][0] for index in _spread(goods, half)]
    labels = [False] * len(frames)
    frames += [store[others[place]][0] for place in defects[:half]]
    # From the end: where good frames are many, the damaged ones are not the good ones of the check.
    damaged = _spread(goods[::-1], max(0, half - len(defects)))
    frames += [add_defect_in(store[index][0], store[int(rng.choice(goods))][0], rng, piece)[0] for index in damaged]
    labels += [True] * (len(frames) - len(labels))
    return np.stack(frames), np.array(labels, np.bool_)


def in_turns(labels: list[str]) -> list[int]:
    """Places of ``labels`` such that every label comes up as early and as often as it can."""
    by_label: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        by_label.setdefault(label, []).append(place)
    rounds = max((len(places) for places in by_label.values()), default=0)
    return [places[turn] for turn in range(rounds) for places in by_label.values() if turn < len(places)]


def _spread(indices: list[int], count: int) -> list[int]:
    """``count`` of ``indices`` (or all of them), evenly spaced: neighbours often show the same part."""
    if count <= 0:
        return []
    step = max(1.0, len(indices) / count)
    return [indices[int(place * step)] for place in range(min(count, len(indices)))]
